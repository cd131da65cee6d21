"""Blurs of ImageNet-C, and what corruptions share: smoothing, sampling between pixels, lengths that follow a picture.

Hendrycks and Dietterich 2019, arXiv 1903.12261; constants as in `corrupting`. A disk is drawn by how much of each pixel
it covers, as its radius may be below one.
Shapes: C channels, H, W pixels; values 0 to 1.
"""

from __future__ import annotations

import functools
import math
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 224
"""Pixels of the pictures that the constants are for."""
SUBPIXELS = 5
"""Points of a pixel, along each axis, that tell how much of it a disk covers."""


def gaussian_blur(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Blur by a Gaussian."""
    return smoothed(x, (1, 2, 3, 4, 6)[severity - 1] * scale_of(x))


def defocus_blur(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Blur by a disk, whose edge is smoothed."""
    radius, edge = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    kernel = disk(radius * scale_of(x), edge * scale_of(x))
    side = len(kernel) // 2
    padded = F.pad(x[None], (side,) * 4, mode="replicate")[0]
    return F.conv2d(padded[:, None], kernel[None, None])[:, 0]


def zoom_blur(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Return the mean of a picture and of larger and larger ones of its center."""
    last, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    zooms = np.arange(1, last, step).tolist()
    return (x + sum(zoomed(x, zoom) for zoom in zooms)) / (len(zooms) + 1)


def glass_blur(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Blur, let pixels take the values of others nearby, and blur again."""
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    scale = scale_of(x)
    strewn = scattered(smoothed(x, sigma * scale), round(reach * scale), rounds, draw)
    return smoothed(strewn, sigma * scale)


def motion_blur_like(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Blur along a direction of at most 45 degrees; the original is made by ImageMagick."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return trailed(x, radius, sigma, 90 * uniform(draw) - 45, scale_of(x))


def uniform(draw: torch.Generator) -> float:
    """Return a number from 0 to 1."""
    return float(torch.rand((), generator=draw))


def scale_of(x: Tensor) -> float:
    """Return by what lengths are multiplied."""
    return min(x.shape[1:]) / SIDE


def smoothed(x: Tensor, sigma: float) -> Tensor:
    """Return x [C, H, W] under a Gaussian of four deviations each way; the border is repeated."""
    side = int(4 * sigma + 0.5)
    if not side:
        return x
    at = torch.arange(-side, side + 1)
    weights = torch.exp(-0.5 * (at / sigma) ** 2)
    weights = weights / weights.sum()
    x = F.pad(x[None], (side,) * 4, mode="replicate")[0][:, None]
    return F.conv2d(F.conv2d(x, weights[None, None, :, None]), weights[None, None, None])[:, 0]


def smoothed_by_mirrors(x: Tensor, sigma: float) -> Tensor:
    """Return x [C, H, W] under a Gaussian of three deviations each way, however long; the border is a mirror."""
    high, wide = x.shape[1:]
    return smoothing(high, sigma) @ x @ smoothing(wide, sigma).mT


@functools.lru_cache(maxsize=8)
def smoothing(count: int, sigma: float) -> Tensor:
    """Return the matrix [count, count] of that Gaussian along one axis."""
    side = int(3 * sigma + 0.5)
    at = torch.arange(-side, side + 1)
    weights = torch.exp(-0.5 * (at / sigma) ** 2)
    places = (torch.arange(count)[:, None] + at) % (2 * count)
    mirrored = torch.minimum(places, 2 * count - 1 - places)
    return torch.zeros(count, count).scatter_add_(1, mirrored, (weights / weights.sum()).expand(count, -1))


def disk(radius: float, edge: float) -> Tensor:
    """Return a disk [n, n] whose sum is 1, smoothed by a Gaussian of sigma `edge`."""
    side = math.ceil(radius) + 1
    points = (torch.arange((2 * side + 1) * SUBPIXELS) + 0.5) / SUBPIXELS - side - 0.5
    inside = (points[:, None] ** 2 + points**2 <= radius * radius).float()
    cover = smoothed(F.avg_pool2d(inside[None], SUBPIXELS), edge)[0]
    return cover / cover.sum()


def zoomed(x: Tensor, zoom: float) -> Tensor:
    """Return the center of x [C, H, W], enlarged to its size."""
    high, wide = x.shape[1:]
    h, w = math.ceil(high / zoom), math.ceil(wide / zoom)
    top, left = (high - h) // 2, (wide - w) // 2
    size = (max(high, round(h * zoom)), max(wide, round(w * zoom)))
    part = x[None, :, top : top + h, left : left + w]
    large = F.interpolate(part, size, mode="bilinear", align_corners=True)[0]
    down, right = (size[0] - high) // 2, (size[1] - wide) // 2
    return large[:, down : down + high, right : right + wide]


def scattered(x: Tensor, reach: int, rounds: int, draw: torch.Generator) -> Tensor:
    """Return x [C, H, W] whose pixels take, one after another from the last on, the value of one up to `reach` away.

    Pixels nearer to the border stay. The original's exchange is this copy: it assigns through numpy's views.
    """
    high, wide = x.shape[1:]
    places = list(product(range(high - reach, reach, -1), range(wide - reach, reach, -1)))
    source = list(range(high * wide))
    for _ in range(rounds if reach else 0):
        steps = torch.randint(-reach, reach, (len(places), 2), generator=draw).tolist()
        for (row, column), (right, down) in zip(places, steps, strict=True):
            source[row * wide + column] = source[(row + down) * wide + column + right]
    return x.flatten(1)[:, source].unflatten(1, (high, wide))


def trailed(x: Tensor, radius: int, sigma: float, degrees: float, scale: float = 1.0) -> Tensor:
    """Return x [C, H, W] smeared towards one side by half a Gaussian of 2 * radius + 1 points, `scale` pixels apart."""
    step = torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]) * scale
    weights = torch.exp(-0.5 * (torch.arange(2 * radius + 1) / sigma) ** 2)
    at = pixels(*x.shape[1:])
    parts = [weight * sampled(x, at + i * step, "border") for i, weight in enumerate(weights)]
    return torch.stack(parts).sum(0) / weights.sum()


def pixels(high: int, wide: int) -> Tensor:
    """Return the column and the row of each pixel: [H, W, 2]."""
    return torch.stack(torch.meshgrid(torch.arange(wide), torch.arange(high), indexing="xy"), -1).float()


def sampled(x: Tensor, at: Tensor, border: str) -> Tensor:
    """Return x [C, H, W] between its pixels at columns and rows [h, w, 2]: [C, h, w].

    Beyond it is its `border` or its `reflection`.
    """
    size = torch.tensor([x.shape[2], x.shape[1]])
    grid = (2 * at + 1) / size - 1
    return F.grid_sample(x[None], grid[None], "bilinear", padding_mode=border, align_corners=False)[0]
