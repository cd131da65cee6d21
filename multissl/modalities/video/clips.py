"""What a clip shows: which frames it takes, which part of them, and its tokens' values and places.

Frames are spread by a stride in frames (VideoMAE, arXiv 2203.12602) or over seconds of the video's own clock; a clip
longer than its video stands still on the last frame, it never wraps around. The crop stays the same over a clip.
Shapes: R rows, C channels, T frames, H, W pixels, S pixels per side, N tubelets:
slots of time, then rows, then columns.  State: none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Box = tuple[int, int, int, int]


class Clip(ABC):
    """A video that is open."""

    times: np.ndarray
    """float64 [T], ascending: the second at which each frame is shown."""

    @abstractmethod
    def read(self, index: Sequence[int]) -> np.ndarray:
        """Return the frames of ascending, distinct numbers, uint8 [T, H, W, 3]."""


class Span(NamedTuple):
    """The frames of a clip, and its begin and length in shares of the video's time."""

    frames: list[int]
    begin: float
    length: float


def choose_frames(times: np.ndarray, frames: int, stride: int, seconds: float, place: float) -> Span:
    """Frames of a clip that begins at `place`, a share 0 to 1 of the room that it has in the video.

    `seconds` > 0: frames/seconds of them a second, each the one shown at that time; else every `stride`-th frame.
    """
    count = len(times)
    gap = (times[-1] - times[0]) / (count - 1)
    if seconds > 0:
        whole = times[-1] - times[0] + gap
        start = place * max(whole - seconds, 0.0)
        at = times[0] + start + seconds * np.arange(frames) / frames
        index = np.searchsorted(times, at + 1e-6 * gap, side="right") - 1
        return Span(index.clip(0, count - 1).tolist(), start / whole, min(seconds / whole, 1.0))
    length = (frames - 1) * stride + 1
    start = min(int(place * (max(count - length, 0) + 1)), max(count - length, 0))
    index = np.minimum(start + stride * np.arange(frames), count - 1)
    return Span(index.tolist(), start / count, min(frames * stride / count, 1.0))


def resize_clip(frames: Tensor, box: Box, size: int) -> Tensor:
    """A box (top, left, height, width) of frames [T, C, H, W] at another size, bicubic with antialias."""
    top, left, h, w = box
    part = frames[:, :, top : top + h, left : left + w].contiguous(memory_format=torch.channels_last)
    return (
        part if (h, w) == (size, size) else F.interpolate(part, (size, size), mode="bicubic", antialias=True)
    )


def center_box(height: int, width: int, size: int, zoom: float) -> Box:
    """The square in the middle whose side is the short one's / zoom; frames of the very size stay whole."""
    if height == width == size:
        return 0, 0, size, size
    side = max(round(min(height, width) / zoom), 1)
    return (height - side) // 2, (width - side) // 2, side, side


def tubelets(x: Tensor, patch: Sequence[int]) -> Tensor:
    """Clips [R, C, T, H, W] as the values of their tubelets [R, N, t*p*p*C], in time, row, column, channel order."""
    for axis, size in enumerate(patch):
        x = x.unflatten(2 + 2 * axis, (-1, size))  # [R, C, T/t, t, H/p, p, W/p, p]
    x = x.permute(0, 2, 4, 6, 3, 5, 7, 1)
    return x.flatten(4).flatten(1, 3)


def tubelet_centers(places: Tensor, grid: Sequence[int], flipped: Tensor) -> Tensor:
    """Where the tubelets' centers lie in the video, (time, row, column) in shares of it: [R, N, 3].

    places [R, 6] are the clip's begin, top, left and its length, height, width; flipped bool [R], left to right.
    """
    axes = []
    for axis, count in enumerate(grid):
        at = ((torch.arange(count, device=places.device) + 0.5) / count).expand(len(places), -1)  # [R, count]
        at = torch.where(flipped[:, None], 1 - at, at) if axis == 2 else at
        axes.append(places[:, axis, None] + places[:, 3 + axis, None] * at)
    t, h, w = grid
    shape = (len(places), t, h, w)
    parts = (axes[0][:, :, None, None], axes[1][:, None, :, None], axes[2][:, None, None, :])
    return torch.stack([p.expand(shape) for p in parts], dim=-1).flatten(1, 3)
