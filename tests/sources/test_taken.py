"""What a source takes and what it leaves out is said; files are known by content where their name says nothing."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from multissl.modalities.audio import files as audio
from multissl.modalities.image.adapter import Image as Pictures
from multissl.modalities.image.files import SUFFIXES, load
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.text.adapter import Text
from multissl.modalities.video.files import open_videos, read_frames
from multissl.sources import kinds
from multissl.sources.opening import open_source
from multissl.sources.splits import SplitSamples


def picture(form: str = "PNG", level: int = 0) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((12, 10, 3), level, np.uint8)).save(out, form)
    return out.getvalue()


def put(path: Path, data: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture() if data is None else data)
    return path


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as out:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def opened(path: Path, split: str = "all") -> SplitSamples:
    return open_source(str(path), split, SUFFIXES)


def test_a_folder_says_what_it_leaves_out_and_what_to_install(tmp_path: Path, said: list[str]) -> None:
    for i in range(3):
        put(tmp_path / f"{i}.png")
        put(tmp_path / f"{i}.heic", b"\0\0\0\x18ftypheic")
    put(tmp_path / "notes.txt", b"x")
    put(tmp_path / "unknown", b"x")
    data = open_source(str(tmp_path), "all", (".png",))
    assert len(data) == 3
    (line,) = said
    assert "took 3 of 8 files; left out: .heic 3 (pip install pillow-heif), " in line
    assert ".txt 1" in line
    assert "no suffix 1" in line
    opened(tmp_path, "val")
    assert len(said) == 2, "another question, said once: the listing is kept"
    opened(tmp_path, "train")
    assert len(said) == 2


def test_everything_that_decoders_read_is_taken(tmp_path: Path, said: list[str]) -> None:
    forms = {
        ".jfif": "JPEG",
        ".png": "PNG",
        ".ppm": "PPM",
        ".tga": "TGA",
        ".avif": "AVIF",
        ".jp2": "JPEG2000",
    }
    forms = {suffix: form for suffix, form in forms.items() if suffix in SUFFIXES}
    assert ".jfif" in forms
    for suffix, form in forms.items():
        put(tmp_path / f"a{suffix}", picture(form, 100))
    data = opened(tmp_path)
    assert len(data) == len(forms)
    assert not said
    for sample in data:
        assert abs(float(load(sample, 3).float().mean()) - 100) < 3


def test_heic_is_read_where_its_plugin_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="reads .heic, and is not installed")
    heif.from_pillow(Image.fromarray(np.full((64, 64, 3), 100, np.uint8))).save(tmp_path / "a.heic")
    (sample,) = opened(tmp_path)
    assert abs(float(load(sample, 3).float().mean()) - 100) < 3


def test_files_without_a_suffix_are_known_by_content(tmp_path: Path) -> None:
    for name in ("a", "scan.2024", "b.v1.2"):
        put(tmp_path / name)
    put(tmp_path / "c", b"text")
    os.mkfifo(tmp_path / "pipe")
    assert [Path(s.data).name for s in opened(tmp_path)] == ["a", "b.v1.2", "scan.2024"]


def test_a_stray_file_hides_neither_classes_nor_splits_nor_shards(tmp_path: Path) -> None:
    for i in range(20):
        put(tmp_path / "c" / "ab"[i % 2] / f"{i}.png")
        put(tmp_path / "s" / ("train", "test")[i % 2] / "ab"[i // 10] / f"{i}.png")
    put(tmp_path / "c" / "preview.png")
    put(tmp_path / "s" / "preview.png")
    assert sorted(s.label for s in opened(tmp_path / "c")) == [-1] + [0] * 10 + [1] * 10
    assert len(opened(tmp_path / "s", "test")) == 10
    assert sorted(s.label for s in opened(tmp_path / "s", "test")) == [0] * 5 + [1] * 5
    put(tmp_path / "t" / "preview.png")
    tar(tmp_path / "t" / "x-train.tar", {f"{i}.png": picture() for i in range(20)})
    tar(tmp_path / "t" / "x-test.tar", {f"{i}.png": picture() for i in range(5)})
    assert len(opened(tmp_path / "t", "all")) == 21
    assert len(opened(tmp_path / "t", "test")) == 5


def test_a_table_about_the_files_of_a_folder_adds_none(tmp_path: Path, said: list[str]) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for i in range(12):
        put(tmp_path / f"{i}.png")
    parquet.write_table(arrow.table({"path": [f"{i}.png" for i in range(12)]}), tmp_path / "about.parquet")
    parquet.write_table(arrow.table({"x": [1.0]}), tmp_path / "other.parquet")
    assert len(opened(tmp_path)) == 12
    assert ".parquet 2" in said[0]


def test_names_with_dots_keep_their_samples_in_shards_and_pairs(tmp_path: Path, said: list[str]) -> None:
    names = [f"IMG_{i}.png" if i % 2 else f"IMG_v1.{i}.png" for i in range(20)]
    data = opened(tar(tmp_path / "half.tar", {name: picture() for name in names}))
    assert sorted(s.data.name for s in data) == sorted(names)
    assert not said
    opened(tar(tmp_path / "more.tar", {"0.jpg": picture("JPEG"), "0.seg.png": picture(), "0.txt": b"x"}))
    assert "took 1 of 3 members; left out: " in said[0]
    members: dict[str, Any] = {
        "image": Pictures.Config(size=32, local_size=16, patch=16),
        "text": Text.Config(),
    }
    parts = {f"2024.01.{i:02}_cam.png": picture(level=i) for i in range(20)}
    parts |= {f"2024.01.{i:02}_cam.txt": f"caption {i}".encode() for i in range(20)}
    for name, content in parts.items():
        put(tmp_path / "pairs" / name, content)
    for path in (tmp_path / "pairs", tar(tmp_path / "pairs.tar", parts)):
        pairs: Any = Paired(Paired.Config(members=members, data=(str(path),))).dataset("all")
        assert len(pairs) == 20
        assert sorted(pairs[i].data.parts["text"] for i in range(20)) == sorted(
            f"caption {i}" for i in range(20)
        )


def test_the_first_reason_stands_where_nothing_can_be_read(tmp_path: Path) -> None:
    for i in range(3):
        put(tmp_path / f"{i}.png", b"no picture")
    with pytest.raises(ValueError, match=r"none of the images can be read.*: .*0\.png"):
        Pictures(Pictures.Config(data=str(tmp_path), measure=True)).fit()
    put(tmp_path / "h" / "a.heic", b"x")
    with pytest.raises(
        ValueError, match=r"holds no images, found 1 files \(\.heic\).*; pip install pillow-heif for"
    ):
        open_source(str(tmp_path / "h"), "all", (".png",))


def test_sounds_of_any_container_are_taken(tmp_path: Path) -> None:
    av: Any = pytest.importorskip("av", reason="the extra `video` is not installed")
    pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
    wave = (0.1 * np.sin(np.arange(44_100) / 20)).astype(np.float32)[None]
    for name, codec, form in (("a.m4a", "aac", "ipod"), ("b.aac", "aac", "adts"), ("c.wav", "aac", "mp4")):
        with av.open(str(tmp_path / name), "w", format=form) as container:
            stream = container.add_stream(codec, rate=44_100)
            stream.layout = "mono"
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate = 44_100
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
    data = open_source(str(tmp_path), "all", audio.SUFFIXES, "audio")
    assert [Path(s.data).name for s in data] == ["a.m4a", "b.aac", "c.wav"]
    for sample in data:
        clip = audio.Clip(sample, 16_000)
        assert 0.9 < clip.length / 16_000 < 1.1
        assert float(clip.cut(4000, 8000).abs().max()) > 0.05


def test_a_mixed_folder_of_films_and_frames_is_taken_whole(tmp_path: Path) -> None:
    for name in "ab":
        for i in range(12):
            put(tmp_path / "frames" / name / f"frame{i}.png", picture(level=i * 20))
    np.save(tmp_path / "film.npy", np.zeros((4, 16, 16, 3), np.uint8))
    put(tmp_path / "cover.png")
    data = open_videos(str(tmp_path), "all")
    assert sorted(Path(s.data).name for s in data) == ["a", "b", "film.npy"]
    assert read_frames(next(s.data for s in data if Path(s.data).name == "a"), [0, 2, 11])[:, 0, 0, 0].tolist() == [
        0, 40, 220,
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_pictures_are_known_by_their_first_bytes(tmp_path: Path, form: str) -> None:
    assert kinds.content_kind(str(put(tmp_path / "x", picture(form)))) in SUFFIXES
