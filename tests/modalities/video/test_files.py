"""Reading videos: files of every kind by both readers, folders of frames, shards, and what is broken."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from multissl.configs import video
from multissl.contract.data import Sample, Unreadable
from multissl.contract.plans import CLEAN, ViewPlan
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.batches import Data, StepBatches
from multissl.modalities.video import files as video_files
from multissl.modalities.video.adapter import Video
from multissl.modalities.video.files import Decord, PyAV, load_clip, open_clip, open_videos, read_frames
from multissl.random import RowRandom
from multissl.run import train as run
from multissl.run.folder import RunFolder

MISSING = "the extra `video` is not installed"


def needs(package: str) -> None:
    """Skip where a package is not installed, without loading it: decord has to come after others."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(MISSING)


def levels(frames: int, side: int = 64) -> np.ndarray:
    """Frame t is gray of brightness 10 * t."""
    return np.broadcast_to(10 * np.arange(frames)[:, None, None, None], (frames, side, side, 3)).astype(
        np.uint8
    )


def write(path: Path, frames: np.ndarray, times: list[int] | None = None, options: Any = None) -> Path:
    """A video file of 10 frames per second, or of frames at `times` in tenths of a second."""
    av = pytest.importorskip("av", reason=MISSING)
    codec = {".webm": "libvpx", ".avi": "mpeg4"}.get(path.suffix, "h264")
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for t, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = (times or range(len(frames)))[t], Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def brightness(frames: torch.Tensor) -> list[int]:
    """What `levels` said, of frames [T, 3, H, W]."""
    return (frames.float().mean((1, 2, 3)) / 10).round().int().tolist()


@pytest.fixture(params=["decord", "av"])
def reader(request: pytest.FixtureRequest) -> Any:
    needs(request.param)
    return {"decord": Decord, "av": PyAV}[request.param]


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".webm"])
def test_both_readers_find_the_same_frames_by_number(tmp_path: Path, suffix: str, reader: Any) -> None:
    path = write(tmp_path / f"a{suffix}", levels(20))
    for data in (path, path.read_bytes()):
        clip = reader(data)
        np.testing.assert_allclose(clip.times, np.arange(20) / 10, atol=2e-3)
        assert brightness(video_files.frames_of(clip, [13, 2, 2, 19, 7])) == [13, 2, 2, 19, 7]


def test_a_square_moves_as_it_was_drawn(tmp_path: Path, reader: Any) -> None:
    frames = np.full((8, 64, 64, 3), 20, np.uint8)
    for t in range(8):
        frames[t, 24:40, 8 + 4 * t : 24 + 4 * t] = 220
    path = write(tmp_path / "a.mp4", frames)
    modality = Video(Video.Config(size=32, patch=8, frames=8, stride=1))
    raw = modality.collate([Sample(reader(path), 0)], {"video": CLEAN}, RowRandom((0,), 0, 1, 1))
    x = (raw["video"]["clean"][0].float().mean(1) > 120).float()  # [T, S, S]
    at = torch.arange(32.0) + 0.5
    places = torch.stack([(x * at).sum((1, 2)), (x * at[:, None]).sum((1, 2))], 1) / x.sum((1, 2))[:, None]
    expected = torch.stack([8 + 2.0 * torch.arange(8), torch.full((8,), 16.0)], 1)  # half the size: 2 a frame
    torch.testing.assert_close(places, expected, atol=0.2, rtol=0)


def test_frames_at_an_uneven_rate_keep_their_times(tmp_path: Path, reader: Any) -> None:
    path = write(tmp_path / "a.mp4", levels(6), [0, 1, 2, 8, 9, 10])
    clip = reader(path)
    np.testing.assert_allclose(clip.times, [0, 0.1, 0.2, 0.8, 0.9, 1.0], atol=2e-3)
    modality = Video(Video.Config(size=16, patch=8, frames=4, seconds=0.8))
    (span,) = modality._spans("clean", clip.times, torch.zeros(1, 11, 4), Sample(None, 0))
    assert span.frames == [2, 2, 2, 3]  # 0.2, 0.4, 0.6 and 0.8 s: nothing new is shown for six tenths


def test_pyav_reads_where_decord_is_missing_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", levels(8))

    def broken(_data: Any) -> None:
        raise ImportError("no decord here")

    monkeypatch.setattr(video_files, "Decord", broken)
    clip = open_clip(path)
    assert isinstance(clip, PyAV)
    assert brightness(read_frames(path, [6, 1])) == [6, 1]


def test_decord_leaves_other_decoders_alone(tmp_path: Path) -> None:
    needs("decord")
    path = write(tmp_path / "a.mp4", levels(4))
    code = f"""
import numpy as np, io
from multissl.modalities.video.files import Decord, decode
from PIL import Image
assert len(Decord({str(path)!r}).times) == 4
stored = io.BytesIO()
Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(stored, "png")
assert (decode(stored.getvalue(), 3) == 7).all()
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=120
    )  # a fresh process: the order of imports counts


def test_folders_of_frames_are_videos_of_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind in ("a", "b"):
            for number in range(2):
                folder = tmp_path / split / kind / f"v{number}"
                folder.mkdir(parents=True)
                for t, pixels in enumerate(levels(4)):
                    Pillow.fromarray(pixels).save(folder / f"frame{t:03}.png")
    source = open_videos(str(tmp_path), "train")
    assert [s.label for s in (source[i] for i in range(len(source)))] == [0, 0, 1, 1]
    assert source.classes == ["a", "b"]
    assert len(open_videos(str(tmp_path), "val")) == 4
    assert brightness(read_frames(source[3].data, [3, 0])) == [3, 0]


def test_frames_of_a_folder_come_as_their_names_are_counted(tmp_path: Path) -> None:
    for t, pixels in enumerate(levels(12, 8)):
        Pillow.fromarray(pixels).save(tmp_path / f"frame{t}.png")
    assert brightness(read_frames(tmp_path, range(12))) == list(range(12))


def test_a_folder_of_loose_pictures_is_refused(tmp_path: Path) -> None:
    Pillow.fromarray(levels(1)[0]).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="want a folder of frames for each video"):
        open_videos(str(tmp_path), "train")


def test_frames_of_two_sizes_are_no_video(tmp_path: Path) -> None:
    for t, side in enumerate((8, 16)):
        Pillow.fromarray(levels(1, side)[0]).save(tmp_path / f"{t}.png")
    with pytest.raises(ValueError, match=r"1\.png has another size"):
        read_frames(tmp_path, [0, 1])


def test_shards_and_lists_hold_videos(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", levels(8))
    with tarfile.open(tmp_path / "s-train.tar", "w") as tar:
        for n in range(12):
            for name, content in ((f"{n}.mp4", path.read_bytes()), (f"{n}.cls", str(n % 2).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    source = open_videos(str(tmp_path / "s-train.tar"), "train")
    assert [source[i].label for i in range(4)] == [0, 1, 0, 1]
    assert brightness(read_frames(source[2].data, [5])) == [5]
    (tmp_path / "list.csv").write_text("path,label\n" + "a.mp4,x\n" * 11 + "a.mp4,y\n")
    listed = open_videos(str(tmp_path / "list.csv"), "train")
    assert brightness(read_frames(listed[0].data, [7, 3])) == [7, 3]


def test_arrays_are_videos(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", levels(5)[..., 0])
    found = read_frames(tmp_path / "a.npy", [4, 0])
    assert found.shape == (2, 3, 64, 64)
    assert brightness(found) == [4, 0]


def test_a_frame_beyond_the_end_is_named() -> None:
    with pytest.raises(ValueError, match="frames 2 to 5 of 5"):
        read_frames(levels(5), [2, 5])


# what is broken


def unreadable(path: Path) -> str:
    """The one line that says why, from opening or from decoding."""
    modality = Video(Video.Config(size=16, local_size=16, patch=8, frames=4, stride=1, seconds=0))
    with pytest.raises(Unreadable) as caught:
        modality.collate([Sample(str(path), 3)], {"video": ViewPlan(num_global=2)}, RowRandom((0,), 0, 1, 1))
    assert caught.value.index == 3
    assert "\n" not in caught.value.reason
    assert str(path) in caught.value.reason
    return caught.value.reason


def test_a_truncated_file_is_one_line(tmp_path: Path) -> None:
    whole = write(
        tmp_path / "whole.mp4", np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
    )
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert unreadable(tmp_path / "cut.mp4")


def test_a_file_without_its_last_frames_is_a_shorter_video(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
    whole = write(tmp_path / "whole.mp4", noise, options={"movflags": "faststart"})
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 4])
    clip = open_clip(tmp_path / "cut.mp4")  # what is there is a shorter video
    assert 1 < len(clip.times) < 20
    assert len(video_files.frames_of(clip, [0, 1])) == 2
    with pytest.raises(ValueError, match="frames 0 to 19 of"):
        video_files.frames_of(clip, [0, 19])


def test_a_video_of_one_frame_an_empty_file_and_text_are_one_line_each(tmp_path: Path) -> None:
    assert "1 frame: a clip needs 2 or more" in unreadable(write(tmp_path / "one.mp4", levels(1)))
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert "the file is empty" in unreadable(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("no video at all\n" * 50)
    assert unreadable(tmp_path / "text.mp4")
    assert "No such file" in unreadable(tmp_path / "absent.mp4")


def test_broken_videos_are_skipped_and_listed(tmp_path: Path) -> None:
    for n in range(6):
        np.save(tmp_path / f"{n}.npy", levels(6, 16) + n if n != 2 else levels(1, 16))
    modality = Video(Video.Config(data=str(tmp_path), size=16, local_size=16, patch=8, frames=4, stride=1))
    steps = StepBatches(modality, {"video": ViewPlan(num_global=1)}, 5, 0, 0, 1, final=False)
    skipped = [s for step in range(2) for s in steps[step][1]]
    assert [reason for _, reason in skipped]
    assert all("2.npy: 1 frame" in reason for _, reason in skipped)


def test_a_run_skips_counts_and_lists_broken_files_and_takes_an_uneven_one(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8)
    data = tmp_path / "data"
    data.mkdir()
    for name in "abcde":
        write(data / f"{name}.mp4", noise)
    write(data / "uneven.mp4", noise[:6], [0, 1, 2, 8, 9, 10])
    write(data / "one.mp4", noise[:1])
    (data / "cut.mp4").write_bytes((data / "a.mp4").read_bytes()[:3000])
    made = video.infonce()
    made.modality = made.modality.replace(data=str(data), frames=4, size=16, local_size=8, seconds=0.4)
    made.encoders["video"] = TransformerEncoder.Config(dim=8, depth=1, heads=1, pooling="mean")
    made = made.replace(batch_size=4, steps=4, evals={}, log_every=1, loggers={}, data=Data(workers=0))
    run.train(made, tmp_path / "run")
    lines = RunFolder(tmp_path / "run").read_metrics()
    notes = [x["text"] for x in lines if x["kind"] == "note" and x["text"].startswith("unreadable sample")]
    assert len(notes) == 2, notes
    assert all("\n" not in text for text in notes)
    assert sum("cut.mp4: " in text for text in notes) == 1
    assert sum("one.mp4: 1 frame: a clip needs 2 or more" in text for text in notes) == 1
    assert [x["unreadable"] for x in lines if x["kind"] == "train"][-1] == 2
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["skipped"] == 2


def test_the_readers_name_what_has_to_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"x")

    def absent(module: str) -> None:
        raise ImportError(f"{module} could not be imported; install it with: pip install 'multissl[video]'")

    monkeypatch.setattr(video_files.registry, "require", absent)
    with pytest.raises(ImportError, match=r"multissl\[video\]"):
        load_clip(Sample(str(path), 0))
