"""What data may unpack to, and what is no data: bombs and special files are refused by name and cost nothing."""

from __future__ import annotations

import io
import os
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from multissl.contract.data import Sample, Unreadable
from multissl.limits import PIXELS, RATIO, SAMPLE_BYTES, SOUND_VALUES, TABLE_BYTES, check_unpacked
from multissl.modalities.audio.files import Clip
from multissl.modalities.image import files as images
from multissl.modalities.image.files import load
from multissl.modalities.image.headers import check_pixels
from multissl.modalities.rl.recorded import read_replay
from multissl.modalities.tabular.tables import read_table
from multissl.modalities.text.files import read_texts
from multissl.modalities.video.files import load_clip
from multissl.sources.opening import open_source
from multissl.sources.payloads import Slice
from multissl.sources.rows import Bad
from tests.helpers.paired_data import pairs

SUFFIXES = images.SUFFIXES


def picture(kind: str, width: int = 40, height: int = 20, pages: int = 1) -> bytes:
    file = io.BytesIO()
    image = Pillow.effect_noise((width, height), 60)
    more = [image.rotate(90 * i) for i in range(1, pages)]
    image.save(file, kind, **({"save_all": True, "append_images": more} if more else {}))
    return file.getvalue()


def lying_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def sample(data: Any) -> Sample:
    return Sample(data, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("pages", [1, 3])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header_and_read_once_the_limit_is_lifted(
    kind: str, pages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pages > 1 and kind not in ("GIF", "TIFF"):
        pytest.skip("one page")
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(picture(kind, pages=pages))
    channels = pages if kind == "TIFF" else 3
    monkeypatch.setenv(PIXELS.variable, str(800 * pages - 1))
    decode = images._pages if kind in ("TIFF", "BMP") else None
    with pytest.raises(Unreadable, match=rf"a.{kind.lower()}: .*40 x 20.*MULTISSL_MAX_PIXELS={800 * pages}"):
        load(sample(str(path)), channels)
    monkeypatch.setenv(PIXELS.variable, str(800 * pages))
    assert load(sample(str(path)), channels).shape[1:] == (20, 40)
    assert decode is None or Pillow.MAX_IMAGE_PIXELS  # Pillow's own limit is as it was


@pytest.mark.parametrize("side", [60_000, 2**31 - 1])
def test_a_header_that_lies_takes_no_memory(side: int, tmp_path: Path) -> None:
    path = tmp_path / "lie.png"
    path.write_bytes(lying_png(side, side))
    with pytest.raises(Unreadable, match=r"lie.png: its header says [\d,]+ x [\d,]+, which are"):
        load(sample(str(path)), 3)


def test_headers_of_every_kind_of_webp_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PIXELS.variable, "700")
    image = Pillow.effect_noise((40, 20), 60).convert("RGBA")
    for more in ({"lossless": True}, {"lossless": False}, {"exif": b"Exif\0\0abc"}):
        file = io.BytesIO()
        image.save(file, "WEBP", **more)
        with pytest.raises(ValueError, match="40 x 20"):
            check_pixels(file.getvalue())
    check_pixels(b"\xff\xd8\xff")  # cut off: the decoder says so
    check_pixels(b"\x89PNG")


def test_arrays_hold_what_their_header_says(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (200_000, 200_000, 3)}
    )
    path = tmp_path / "lie.npy"
    path.write_bytes(file.getvalue() + b"xx")
    for read in (lambda s: load(s, 3), load_clip):
        with pytest.raises(Unreadable, match=r"lie.npy: its header says 120,000,000,000 bytes of numbers"):
            read(sample(str(path)))


def replay(path: Path, **more: np.ndarray) -> Path:
    frames = np.zeros((30, 8, 8), np.uint8)
    np.savez_compressed(
        path, allow_pickle=False, frames=frames, actions=np.arange(30) % 3,
        terminated=np.arange(30) % 10 == 9, **more,
    )  # fmt: skip
    return path


def test_an_archive_that_only_a_bomb_is_packed_like_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multissl.limits.SMALL", 1 << 20)
    path = replay(tmp_path / "bomb.npz", more=np.zeros(3 << 20, np.uint8))
    assert len(read_replay(str(path)).frames) == 30  # what nobody asks for is not unpacked
    big = np.zeros((200, 128, 128), np.uint8)
    np.savez_compressed(path, frames=big, actions=np.arange(200) % 3, terminated=np.arange(200) % 50 == 49)
    with pytest.raises(
        ValueError, match=r"array 'frames' unpacks to .* times its packed size, the limit is 200"
    ):
        read_replay(str(path))
    monkeypatch.setenv(RATIO.variable, "5000")
    assert len(read_replay(str(path)).frames) == 200
    monkeypatch.setenv(TABLE_BYTES.variable, "1000000")
    with pytest.raises(ValueError, match=r"unpacks to 3,276,\d+ bytes, the limit is 1,000,000"):
        read_replay(str(path))
    check_unpacked(0, 100, "an empty member")


def test_a_zip_whose_members_are_no_arrays_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("frames", "actions", "terminated"):
            file.writestr(f"{name}.npy", b"no array")
    with pytest.raises(ValueError, match=r"frames are \|S8"):
        read_replay(str(path))


def wav(values: int, rate: int = 16_000, channels: int = 1) -> bytes:
    data = np.random.default_rng(0).integers(-9000, 9000, values * channels).astype("<i2").tobytes()
    head = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * 2 * channels, 2 * channels, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + head
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )


def test_a_sound_of_too_many_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("soundfile")
    path = tmp_path / "a.wav"
    path.write_bytes(wav(16_000, channels=4))
    monkeypatch.setenv(SOUND_VALUES.variable, "63999")
    with pytest.raises(Unreadable, match=r"a.wav: .* 64,000 values, the limit is 63,999"):
        Clip(sample(str(path)), 16_000)
    monkeypatch.setenv(SOUND_VALUES.variable, "64000")
    assert Clip(sample(str(path)), 16_000).length == 16_000


def test_a_frame_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 64, "yuv420p"
        for shade in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((64, 32, 3), 40 * shade, np.uint8))
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    monkeypatch.setenv(PIXELS.variable, "2000")
    with pytest.raises(Unreadable, match=r"a.mp4: its header says 32 x 64"):
        load_clip(sample(str(path)))
    monkeypatch.delenv(PIXELS.variable)
    assert len(load_clip(sample(str(path))).times) == 5


def test_a_tar_is_believed_no_further_than_it_reaches(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(3):
            info = tarfile.TarInfo(f"{i}.png")
            info.size = len(picture("PNG"))
            tar.addfile(info, io.BytesIO(picture("PNG")))
    whole = path.read_bytes()
    info = tarfile.TarInfo("huge.png")
    info.size = 1 << 40
    end = 3 * (512 + -(-len(picture("PNG")) // 512) * 512)
    path.write_bytes(whole[:end] + info.tobuf(tarfile.GNU_FORMAT) + picture("PNG"))
    with pytest.raises(ValueError, match="is no plain tar"):
        open_source(str(path), "all", SUFFIXES)
    for size, said in ((1 << 40, "has 1,099,511,627,776 bytes, the limit"), (1 << 20, "it is cut off")):
        with pytest.raises(Unreadable, match=rf"huge.png of .*a.tar .*{said}"):
            load(sample(Slice(str(path), end, size, "huge.png")), 3)
    info = tarfile.TarInfo("0.cls")
    info.size = 1 << 36
    path.write_bytes(whole[:end] + info.tobuf(tarfile.GNU_FORMAT) + b"1")
    with pytest.raises(ValueError, match=r"0.cls of .*a.tar has 68,719,476,736 bytes"):
        open_source(str(path), "all", SUFFIXES)


def test_a_sample_too_large_to_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture("PNG"))
    monkeypatch.setenv(SAMPLE_BYTES.variable, "10")
    with pytest.raises(Unreadable, match="MULTISSL_MAX_SAMPLE_BYTES"):
        load(sample(str(path)), 3)
    monkeypatch.setenv(SAMPLE_BYTES.variable, "many")
    with pytest.raises(
        Unreadable, match="MULTISSL_MAX_SAMPLE_BYTES=many: want a whole number above 0, of bytes"
    ):
        load(sample(str(path)), 3)


def test_a_parquet_of_too_many_rows_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a word"] * 100, "label": [1] * 100}), path)
    monkeypatch.setenv(TABLE_BYTES.variable, "799")
    for read in (lambda p: read_table(p), lambda p: read_texts(p, "train")):
        with pytest.raises(ValueError, match=r"a.parquet takes at least 800 bytes, the limit is 799"):
            read(str(path))


def test_a_damaged_parquet_is_said_in_a_line_by_every_reader(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(0)
    columns = {
        "text": [f"{x}" for x in rng.random(3000)],
        "image": [b"x" * 9] * 3000,
        "label": [*range(3000)],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "good.parquet")
    whole = (tmp_path / "good.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flip.parquet").write_bytes(whole[:2000] + bytes(6000) + whole[8000:])
    readers: list[Callable[[str], Any]] = [
        read_table, lambda p: read_texts(p, "train"), lambda p: pairs(p).dataset("train")
    ]  # fmt: skip
    for read in readers:
        for name in ("cut.parquet", "flip.parquet"):
            with pytest.raises(ValueError, match=rf"{name} cannot be read as parquet .*is the file whole\?$"):
                read(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"cut.parquet cannot be read as parquet"):
        open_source(str(tmp_path / "cut.parquet"), "train", SUFFIXES)


# ------------------------------------------------------------------------------------------- special files


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        before = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is short
        try:
            server.bind(path.name)
        finally:
            os.chdir(before)


SPECIAL: dict[str, tuple[Callable[[Path], None], str]] = {
    "fifo": (fifo, "a FIFO"), "device": (device, "a device"), "socket": (listening, "a socket"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_of_data_is_never_opened(kind: str, tmp_path: Path) -> None:
    make, said = SPECIAL[kind]
    folder = tmp_path / "d"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(picture("PNG"))
    for suffix in (".png", ".wav", ".mp4", ".npy"):
        make(folder / f"x{suffix}")
    source = open_source(str(folder), "all", (".png", ".wav", ".mp4", ".npy"))
    bad = [source[i] for i in range(len(source)) if "/x." in str(source[i].data)]
    assert len(bad) == 4
    readers: list[Callable[[Sample], Any]] = [lambda s: load(s, 3), lambda s: Clip(s, 16_000), load_clip]
    for one in bad:
        for read in readers:
            with pytest.raises(Unreadable, match=f"is {said} and no file of data, so it is not opened"):
                read(one)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("suffix", [".csv", ".txt", ".tar", ".parquet", ".jsonl", ".npz"])
def test_data_that_is_no_file_is_said_by_every_modality(kind: str, suffix: str, tmp_path: Path) -> None:
    make, said = SPECIAL[kind]
    path = tmp_path / f"x{suffix}"
    make(path)
    for read in (
        lambda p: open_source(p, "train", SUFFIXES), lambda p: read_texts(p, "train"), read_table, read_replay,
        lambda p: pairs(p).dataset("train"),
    ):  # fmt: skip
        with pytest.raises(
            ValueError, match=f"is {said} and no file|no such file|is no source|is no file|is no table"
        ):
            read(str(path))


def test_a_text_among_others_that_is_a_fifo_is_no_text(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"some words {i}")
    os.mkfifo(tmp_path / "x.txt")
    texts = read_texts(str(tmp_path), "all").texts
    assert [t.reason for t in texts if isinstance(t, Bad)] == [
        f"{tmp_path}/x.txt is a FIFO and no file of data, so it is not opened: take it out of the data"
    ]
