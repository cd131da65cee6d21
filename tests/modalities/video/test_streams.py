"""Videos of every container and codec: clocks that cannot be believed, and streams without an index."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multissl.modalities.video.clips import choose_frames
from multissl.modalities.video.files import PyAV, frames_of, open_clip
from tests.modalities.video.test_files import brightness, levels

av: Any = pytest.importorskip("av", reason="the extra `video` is not installed")
WRAP = str(2**33 / 90_000 - 0.4)
"""Seconds after which the counter of an MPEG stream runs over within 0.4 s."""


def stream(
    path: Path, frames: np.ndarray, codec: str, b_frames: int = 0, form: str | None = None,
    times: list[int] | None = None, options: Any = None,
) -> Path:  # fmt: skip
    """A video of 25 frames per second, or of frames at `times` in 1/25 s, a key frame every 12, in a named format."""
    with av.open(str(path), "w", format=form, options=options or {}) as container:
        out = container.add_stream(codec, rate=25)
        out.width, out.height, out.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        out.bit_rate = 4_000_000
        out.codec_context.max_b_frames, out.codec_context.gop_size = b_frames, 12
        for t, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = (times or range(len(frames)))[t], Fraction(1, 25)
            container.mux(out.encode(frame))
        container.mux(out.encode())
    return path


def without_stamps(path: Path, numbers: set[int]) -> Path:
    """A transport stream whose packets of some numbers say no time."""
    content = bytearray(path.read_bytes())
    heads = re.finditer(rb"\x00\x00\x01[\xe0-\xef]..[\x80-\xbf]", bytes(content), re.S)
    for number, found in enumerate(heads):
        at = found.start()
        if number in numbers:
            content[at + 7] &= 0x3F
            content[at + 9 : at + 9 + content[at + 8]] = b"\xff" * content[at + 8]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "codec", "b_frames", "form", "options"),
    [
        ("a.mpg", "mpeg2video", 0, None, {}),
        ("a.mpg", "mpeg2video", 2, None, {}),
        ("a.mpeg", "mpeg1video", 2, None, {"output_ts_offset": WRAP}),
        ("a.mpg", "mpeg2video", 2, "mpegts", {}),
        ("a.mpg", "h264", 2, "mpegts", {"output_ts_offset": WRAP, "mpegts_copyts": "1"}),
        ("a.mpg", "h264", 2, "mpegts", {"mpegts_m2ts_mode": "1"}),
        ("a.mpg", "mpeg2video", 2, "mpeg2video", {}),
        ("a.mpg", "h264", 2, "h264", {}),
        ("a.avi", "mpeg4", 2, None, {}),
        ("a.mkv", "mpeg4", 2, None, {}),
    ],
)
def test_streams_of_every_kind_have_the_times_and_frames_that_were_written(
    tmp_path: Path, name: str, codec: str, b_frames: int, form: str | None, options: dict[str, str]
) -> None:
    path = stream(tmp_path / name, levels(20), codec, b_frames, form, options=options)
    for data in (path, path.read_bytes()):
        for clip in (open_clip(data), PyAV(data)):
            np.testing.assert_allclose(clip.times - clip.times[0], np.arange(20) / 25, atol=2e-3)
            assert brightness(frames_of(clip, range(20))) == list(range(20))
            for number in range(20):
                assert brightness(frames_of(clip, [number])) == [number]


def test_small_frames_that_share_a_packet_are_told_apart(tmp_path: Path) -> None:
    small = np.zeros((150, 32, 32, 3), np.uint8)
    small[:, :16] = 12 * (np.arange(150) % 20)[:, None, None, None]
    path = stream(tmp_path / "a.mpg", small, "mpeg1video")
    clip = open_clip(path)
    assert PyAV(path).stamps is None, "they are not stamped alike"
    np.testing.assert_array_equal(clip.times, np.arange(150) / 25)
    for index in (range(150), [112], [36, 72]):
        found = frames_of(clip, index)[:, :, :12].float().mean((1, 2, 3))
        torch.testing.assert_close(found, torch.from_numpy(small[index, 0, 0, 0]).float(), atol=5, rtol=0)


def test_clips_of_a_program_stream_are_spread_over_it(tmp_path: Path) -> None:
    clip = open_clip(stream(tmp_path / "a.mpg", levels(20), "mpeg2video"))
    assert choose_frames(clip.times, 8, 1, 0.64, 0.0).frames == list(range(0, 16, 2))


def test_files_put_together_are_counted(tmp_path: Path) -> None:
    for form, codec in ((None, "mpeg2video"), ("mpegts", "h264")):
        path = stream(tmp_path / "a.mpg", levels(20), codec, 2, form)
        path.write_bytes(path.read_bytes() * 2)
        clip = open_clip(path)
        np.testing.assert_array_equal(clip.times, np.arange(40) / 25)
        assert brightness(frames_of(clip, [0, 13, 19, 20, 33, 39])) == [0, 13, 19, 0, 13, 19]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_clock_that_jumps_by_a_day_is_counted(tmp_path: Path, suffix: str) -> None:
    times = [n + 25 * 95_443 * (n > 9) for n in range(20)]
    clip = open_clip(stream(tmp_path / f"a{suffix}", levels(20), "mpeg4", times=times))
    np.testing.assert_array_equal(clip.times, np.arange(20) / 25)
    assert brightness(frames_of(clip, range(20))) == list(range(20))


@pytest.mark.parametrize("number", [0, 19])
def test_a_first_or_last_frame_at_an_impossible_time_is_beside_the_others(
    tmp_path: Path, number: int
) -> None:
    times = [25 * 10**6 * (2 * n - 19) if n == number else n for n in range(20)]
    clip = open_clip(stream(tmp_path / "a.mkv", levels(20), "mpeg4", times=times))
    np.testing.assert_allclose(clip.times, np.arange(20) / 25, atol=2e-3)
    assert brightness(frames_of(clip, [0, 1, 18, 19])) == [0, 1, 18, 19]


@pytest.mark.parametrize("numbers", [{0}, {1}, {9}, {10}, {19}, {0, 9}, set(range(20))])
def test_frames_without_a_stamp_have_the_time_and_number_they_were_shown_at(
    tmp_path: Path, numbers: set[int]
) -> None:
    path = without_stamps(stream(tmp_path / "a.mpg", levels(20), "h264", 2, "mpegts"), numbers)
    clip = open_clip(path)
    np.testing.assert_allclose(clip.times, np.arange(20) / 25, atol=2e-3)
    for number in range(20):
        assert brightness(frames_of(clip, [number])) == [number]


@pytest.mark.parametrize(("codec", "form"), [("mpeg2video", None), ("h264", "mpegts"), ("mpeg4", "avi")])
def test_frames_far_into_a_stream_are_those_of_decoding_all_of_it(
    tmp_path: Path, codec: str, form: str | None
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    path = tmp_path / "a.mpg"
    stream(path, np.stack([np.roll(noise, (n // 3, n), (0, 1)) for n in range(300)]), codec, 2, form)
    with av.open(str(path)) as container:
        whole = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert len(whole) == 300
    clip = PyAV(path)
    for first in range(0, 300, 43):
        index = range(first, min(first + 6, 300))
        np.testing.assert_array_equal(clip.read(index), whole[index])
