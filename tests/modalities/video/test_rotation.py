"""Films of phones are stored lying and say how they are turned: both readers show them as a player does."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multissl.modalities.video.files import Decord, PyAV, open_clip

ONE = 1 << 16
MATRICES = {
    0: (ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30), 90: (0, ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30),
    180: (-ONE, 0, 0, 0, -ONE, 0, 0, 0, 1 << 30), 270: (0, -ONE, 0, ONE, 0, 0, 0, 0, 1 << 30),
}  # fmt: skip
"""The matrix of a track's header by the degrees that it turns its pictures clockwise (ISO 14496-12, 8.3.2)."""


def film(path: Path, degrees: int) -> Path:
    """A film of four colors, seen as red, green, blue from the top left once it is turned."""
    av: Any = pytest.importorskip("av", reason="the extra `video` is not installed")
    seen = np.zeros((32, 64, 3), np.uint8)
    seen[:16, :32], seen[:16, 32:], seen[16:, :32] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    stored = np.ascontiguousarray(np.rot90(seen, degrees // 90))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = *stored.shape[:2], "yuv420p"
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    at = content.index(b"tkhd") + 44  # behind version, times, number, length and volume
    assert content[at : at + 36] == struct.pack(">9i", *MATRICES[0])
    path.write_bytes(content[:at] + struct.pack(">9i", *MATRICES[degrees]) + content[at + 36 :])
    return path


@pytest.mark.parametrize("degrees", [*MATRICES])
def test_both_readers_turn_a_film_as_it_says(tmp_path: Path, degrees: int) -> None:
    path = film(tmp_path / "a.mp4", degrees)
    readers: list[Any] = [PyAV(str(path)), open_clip(str(path))]
    if importlib.util.find_spec("decord"):
        readers.append(Decord(str(path)))
    for reader in readers:
        frames = reader.read([0, 5])
        assert frames.shape == (2, 32, 64, 3)
        for place, color in (((8, 16), 0), ((8, 48), 1), ((24, 16), 2)):
            assert frames[1][place].argmax() == color
