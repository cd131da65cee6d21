"""The demo image dataset: ten synthetic motifs, drawn at start-up, so that an image run needs no download.

Every picture is a two-colored pattern (stripes, checks, dots, ...) and its class is the kind of pattern. All else
is nuisance, drawn per picture: rotation over the full circle, scale over a factor of 2.5, center and phase, the two
colors and which of them is in front, an illumination gradient, discs of clutter on top, pixel noise. No usual view
(crop, flip, color jitter, blur) undoes the rotation, the gradient or the clutter, so the class is not handed over
by the augmentation; an encoder has to find it.

Only a frozen random stream and integer arithmetic are used: the bytes are the same on every machine.

Baselines, weighted k-NN (20 neighbors, centered) from `train` to `val`, chance 10 %: raw pixels 35.2 %, histograms
of gradients and colors 71.5 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Pixels = np.ndarray  # int32 [n, h, w]
Column = np.ndarray  # int32 [n, 1, 1], one value per picture

TURN = 4096  # angles and phases: steps in one full turn
ONE = 1 << 14  # fixed-point 1.0 of sines and levels
HALF = 1024  # half the width of a picture, whatever its size in pixels

_SPLITS: dict[str, tuple[int, int]] = {"train": (5000, 1009), "val": (1000, 2003), "test": (1000, 3001)}
_SINE = np.array([round(ONE * math.sin(2 * math.pi * k / TURN)) for k in range(TURN)], dtype=np.int32)
_ATAN = np.array([round(TURN / 8 * math.atan(k / 256) / math.atan(1)) for k in range(257)], dtype=np.int32)
_ROOT = np.repeat(np.arange(2600, dtype=np.int32), 2 * np.arange(2600) + 1)  # floor(sqrt(k)), exactly


def sine(phase: Pixels) -> Pixels:
    """The sine of whole numbers, `TURN` to the turn, times `ONE`."""
    return _SINE[phase & (TURN - 1)]


def _off(phase: Pixels) -> Pixels:
    """Distance to the nearest whole turn, 0 to TURN / 2."""
    return np.abs(((phase + TURN // 2) & (TURN - 1)) - TURN // 2)


def _angle(x: Pixels, y: Pixels) -> Pixels:
    """The direction of (x, y) in steps of a turn, from a table over one eighth of the circle."""
    ax, ay = np.abs(x), np.abs(y)
    eighth = _ATAN[(np.minimum(ax, ay) << 8) // np.maximum(np.maximum(ax, ay), 1)]
    quarter = np.where(ay > ax, TURN // 4 - eighth, eighth)
    upper = np.where(x < 0, TURN // 2 - quarter, quarter)
    return np.where(y < 0, -upper, upper)


@dataclass(frozen=True)
class _Frame:
    """What a motif is drawn from, for n pictures of one class; all phases are in steps of TURN."""

    u: Pixels  # phase along the picture's own first axis
    v: Pixels  # phase along its second axis
    radius: Pixels  # phase outwards from the center
    angle: Pixels  # direction from the center
    shift: Column  # phase offset
    count: Column  # 0, 1 or 2: how many arms more than the fewest
    scale: Column  # how often it is repeated
    extra: np.ndarray  # int32 [n, 4], angles for the motif made of several waves


def _crosses(f: _Frame) -> Pixels:
    a, b = _off(f.u * 3 // 4), _off(f.v * 3 // 4)
    return 24 * np.maximum(np.minimum(460 - a, 1500 - b), np.minimum(1500 - a, 460 - b))


def _bricks(f: _Frame) -> Pixels:
    v = f.v * 3 // 4
    u = f.u * 3 // 8 + ((v >> 12) & 1) * (TURN // 2)
    return 24 * np.minimum(_off(v) - 420, 2 * _off(u) - 420)


def _blobs(f: _Frame) -> Pixels:
    """Five plane waves in drawn directions, which add up to patches without an order."""
    total = sine(f.u + f.shift)
    for k in range(4):
        way = f.extra[:, k, None, None]
        total = total + sine(((f.u * sine(way) + f.v * sine(way + TURN // 4)) >> 14) + way * 7)
    return total


_MOTIFS: dict[str, Callable[[_Frame], Pixels]] = {
    "stripes": lambda f: sine(f.u + f.shift),
    "checks": lambda f: 2 * (sine(f.u * 3 // 4) * (sine(f.v * 3 // 4) >> 2) >> 12),
    "dots": lambda f: sine(f.u) + sine(f.v) - ONE // 2,
    "rings": lambda f: sine(f.radius + f.shift),
    "rays": lambda f: sine(f.angle * (5 + 2 * f.count) + f.shift),
    "zigzag": lambda f: sine(f.v + _off(f.u * 3 // 4) * 3 // 2),
    "bricks": _bricks,
    "crosses": _crosses,
    "spiral": lambda f: sine(f.radius + f.angle * (2 + f.count) + f.shift),
    "blobs": _blobs,
}
CLASSES: tuple[str, ...] = tuple(_MOTIFS)


def _column(rng: np.random.RandomState, low: int, high: int, n: int) -> Column:
    return rng.randint(low, high, (n, 1, 1), dtype=np.int32)


def _frame(rng: np.random.RandomState, x: Pixels, y: Pixels, n: int) -> _Frame:
    """Shifts, turns and scales the pixel grid: each picture has its own center, rotation and period."""
    x = x - _column(rng, -800, 801, n)
    y = y - _column(rng, -800, 801, n)
    turn, scale = _column(rng, 0, TURN, n), _column(rng, 1200, 3000, n)  # 3000: a period of 5.5 in 32 pixels
    cos, sin = sine(turn + TURN // 4), sine(turn)
    u, v = (x * cos - y * sin) >> 14, (x * sin + y * cos) >> 14
    return _Frame(
        u=u * scale >> 8, v=v * scale >> 8, radius=_ROOT[u * u + v * v] * scale >> 8, angle=_angle(u, v),
        shift=_column(rng, 0, TURN, n), count=_column(rng, 0, 3, n), scale=scale,
        extra=rng.randint(0, TURN, (n, 4), dtype=np.int32),
    )  # fmt: skip


def _over(image: np.ndarray, color: np.ndarray, cover: Pixels) -> np.ndarray:
    """Return one color [n, 3] laid over the images [n, h, w, 3]; cover runs from 0 (none) to 256 (all)."""
    return image + ((color[:, None, None] - image) * cover[..., None] >> 8)


def _paint(rng: np.random.RandomState, level: Pixels, x: Pixels, y: Pixels) -> tuple[np.ndarray, np.ndarray]:
    """Colors a motif (level > 0 is in front) and adds light, clutter and noise: uint8 [n, h, w, 3].

    Returns it with the colors before all that, front then back, int32 [n, 2, 3].
    """
    n = len(level)
    dark, light = rng.randint(0, 126, (n, 3), dtype=np.int32), rng.randint(130, 256, (n, 3), dtype=np.int32)
    bright = _column(rng, 0, 2, n) == 0  # either of the two may be in front
    level = np.where(bright, level, -level)
    colors = np.where(bright, np.stack([light, dark], 1), np.stack([dark, light], 1))
    image = _over(
        np.broadcast_to(dark[:, None, None], (*level.shape, 3)), light, np.clip(128 + level // 48, 0, 256)
    )
    way, depth = _column(rng, 0, TURN, n), _column(rng, 0, 140, n)
    slope = (x * sine(way + TURN // 4) + y * sine(way)) >> 14  # up to +-1448 in the corners
    image = image * (256 + slope * depth // HALF)[..., None] >> 8
    for _ in range(4):
        cx, cy, radius = _column(rng, -HALF, HALF, n), _column(rng, -HALF, HALF, n), _column(rng, 100, 320, n)
        inside = (radius**2 - (x - cx) ** 2 - (y - cy) ** 2) // (2 * radius)  # about the distance to the edge
        image = _over(image, rng.randint(0, 256, (n, 3), dtype=np.int32), np.clip(128 + 4 * inside, 0, 256))
    image = image + rng.randint(-14, 15, image.shape, dtype=np.int8)
    return np.clip(image, 0, 255).astype(np.uint8), colors


def motifs(split: str, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of one split, uint8 [n, size, size, 3], and their classes, int64 [n], in mixed order."""
    drawn = drawings(split, size)
    return drawn.images, drawn.labels


class Drawings(NamedTuple):
    """Pictures and what they were drawn from."""

    images: np.ndarray
    """uint8 [n, size, size, 3]"""
    labels: np.ndarray
    """int64 [n]"""
    colors: np.ndarray
    """int32 [n, 2, 3]: in front and behind, before light and noise."""
    scales: np.ndarray
    """int32 [n]: 1200 to 2999; across a picture, a motif is repeated about scale / 512 times."""


def drawings(split: str, size: int = 32) -> Drawings:
    """The pictures of one split with their colors and scales."""
    n, seed = _SPLITS[split]
    rng = np.random.RandomState(seed)
    labels = (rng.permutation(n) % len(CLASSES)).astype(np.int64)
    images = np.empty((n, size, size, 3), dtype=np.uint8)
    colors, scales = np.empty((n, 2, 3), dtype=np.int32), np.empty(n, dtype=np.int32)
    grid = ((2 * np.arange(size, dtype=np.int32) + 1 - size) * HALF) // size
    x, y = grid[None, None, :], grid[None, :, None]
    for k, motif in enumerate(_MOTIFS.values()):
        rows = np.flatnonzero(labels == k)
        frame = _frame(rng, x, y, len(rows))
        level = np.broadcast_to(motif(frame), (len(rows), size, size))
        images[rows], colors[rows] = _paint(rng, level, x, y)
        scales[rows] = frame.scale[:, 0, 0]
    return Drawings(images, labels, colors, scales)
