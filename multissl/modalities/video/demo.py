"""The demo videos: textured surfaces that move in one of eight ways, drawn when they are first read.

A video is three shots of eight frames. All shots of a video share its motion: a pan to one of four sides, a zoom in or
out, a turn to the left or right, at a speed of the video's own; the class is the kind of motion. All else is drawn anew
for each shot: the texture, its two colors, two still discs in front and theirs; the light flickers from frame to
frame, and frames carry noise. Each kind of motion is another one played backwards, so a single frame tells nothing of
the class, and neither do colors or textures.

Only a frozen random stream and integer arithmetic are used: the bytes are the same on every machine. A test holds their
hash.
Shapes: T frames, S pixels per side.  State: the shots drawn so far.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from multissl.modalities.image.demo import ONE, TURN, sine
from multissl.modalities.video.clips import Clip
from multissl.sources.splits import SplitSamples

CLASSES = ("left", "right", "up", "down", "in", "out", "turn left", "turn right")
SHOTS, LENGTH, SIZE = 3, 8, 32
RATE = 8.0
"""Frames per second, for spans that are given in seconds."""
WAVES, DISCS = 4, 2
DARKEST = 90
"""Of 256: how bright the darkest frames are."""
SPLITS: dict[str, tuple[int, int]] = {"train": (2000, 4001), "val": (400, 5003), "test": (400, 6007)}
STEP = 64
"""Length units of a pixel."""


class Scene(Clip):
    """One video: its motion and the seed of its shots."""

    times = np.arange(SHOTS * LENGTH) / RATE

    def __init__(self, kind: int, speed: int, seed: int) -> None:
        self.kind, self.speed, self.seed = kind, speed, seed

    def read(self, index: Sequence[int]) -> np.ndarray:
        """uint8 [T, S, S, 3] of ascending frame numbers."""
        at = np.asarray(index)
        parts = []
        for s in np.unique(at // LENGTH).tolist():
            parts.append(_shot(self.kind, self.speed, self.seed + s)[at[at // LENGTH == s] % LENGTH])
        return np.concatenate(parts)


class Scenes(Sequence[Scene]):
    """The videos of a split; `labels` int64 [n]."""

    def __init__(self, split: str) -> None:
        count, seed = SPLITS[split]
        rng = np.random.RandomState(seed)
        self.labels = (rng.permutation(count) % len(CLASSES)).astype(np.int64)
        self.speeds = _draw(rng, 0, 1024, count)
        self.seeds = _draw(rng, 0, 1 << 30, count)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> Scene:  # type: ignore[override]
        return Scene(int(self.labels[row]), int(self.speeds[row]), int(self.seeds[row]))


def _draw(rng: np.random.RandomState, low: int, high: int, size: Any = None) -> Any:
    """Whole numbers of low to high - 1; the type is named because its default depends on the machine."""
    return rng.randint(low, high, size, dtype=np.int64)


@functools.cache
def scenes(split: str) -> Scenes:
    """The videos of "train", "val" or "test"."""
    return Scenes(split)


@functools.lru_cache(maxsize=SHOTS * sum(count for count, _ in SPLITS.values()))
def _shot(kind: int, speed: int, seed: int) -> np.ndarray:
    """The frames of one shot, uint8 [T, S, S, 3]; kept, 24 KB each, because a run sees every shot many times."""
    rng, at = np.random.RandomState(seed), np.arange(LENGTH)
    grid = (2 * np.arange(SIZE) + 1 - SIZE) * STEP // 2
    x, y = (
        np.broadcast_to(grid[None, None, :], (1, SIZE, SIZE)),
        np.broadcast_to(grid[None, :, None], (1, SIZE, SIZE)),
    )
    u, v = _moved(kind, speed, x, y, at[:, None, None] - (LENGTH - 1) / 2)
    level = np.zeros((), np.int64)
    for way, period, phase in zip(
        _draw(rng, 0, TURN, WAVES), _draw(rng, 7, 20, WAVES), _draw(rng, 0, TURN, WAVES), strict=True
    ):
        along = (u * int(sine(way + TURN // 4)) + v * int(sine(way))) // ONE  # [T, S, S]
        level = level + sine(along * TURN // (period * STEP) + phase)
    cover = np.clip(128 + level // 128, 0, 256)[..., None]
    dark, light = _draw(rng, 0, 126, 3), _draw(rng, 130, 256, 3)
    image = dark + ((light - dark) * cover >> 8)
    for _ in range(DISCS):
        cx, cy, radius = _draw(rng, -16, 17) * STEP, _draw(rng, -16, 17) * STEP, _draw(rng, 3, 8) * STEP
        inside = np.clip(128 + (radius**2 - (x - cx) ** 2 - (y - cy) ** 2) * 4 // radius, 0, 256)[..., None]
        image = image + ((_draw(rng, 0, 256, 3) - image) * inside >> 8)
    image = image * _draw(rng, DARKEST, 257, (LENGTH, 1, 1, 1)) >> 8
    noise = rng.randint(-10, 11, (LENGTH, SIZE, SIZE, 3), dtype=np.int8)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def _moved(
    kind: int, speed: int, x: np.ndarray, y: np.ndarray, t: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the surface is looked at, [T, S, S] each; t [T, 1, 1] in frames from the middle of the shot."""
    half = (2 * t).astype(np.int64)  # half frames: whole numbers
    if kind < 4:  # a pan of 0.8 to 2 pixels per frame
        way = half * (STEP * 8 + STEP * 12 * speed // 1024) // 20 * (-1 if kind % 2 else 1)
        return (x + way, y + 0 * way) if kind < 2 else (x + 0 * way, y + way)
    pace = half * (40 + 60 * speed // 1024) // 2 * (-1 if kind % 2 else 1)
    if kind < 6:  # a zoom by 4 to 10 % a frame
        scale = 1024 - pace
        return x * scale >> 10, y * scale >> 10
    turn = pace * TURN // 6434 // 1  # 1024 units are one radian
    cos, sin = sine(turn + TURN // 4), sine(turn)
    return (x * cos - y * sin) // ONE, (x * sin + y * cos) // ONE


def demo_split(split: str) -> SplitSamples:
    """Return the samples of "train", "val" or "test"; "all" is "train"."""
    videos = scenes("train" if split == "all" else split)
    count = len(videos)
    rows, no_groups = np.arange(count), np.full(count, -1)
    return SplitSamples(data=videos, labels=videos.labels, groups=no_groups, classes=list(CLASSES), rows=rows)
