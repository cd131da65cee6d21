"""Fog, frost, snow and spatter of ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261).

Fog is the original's. The others are likenesses, and their names say so: the original's frost is cut from photographs
of ice, where this one is made of ridges in clouds; its snow is smeared by ImageMagick; its drops of water are shaded
along their edges by OpenCV. All are made for a picture of 224 pixels and shrunk to the one at hand, so that a small
picture shows what a large one would.
Shapes: h, w pixels of the layer, H, W of the picture; values 0 to 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.evaluators.blurring import scale_of, smoothed, trailed, uniform, zoomed

ICE = (0.85, 0.93, 1.0)
WATER = (175 / 255, 238 / 255, 238 / 255)
MUD = (63 / 255, 42 / 255, 20 / 255)
GRAY = (0.299, 0.587, 0.114)
"""The share of each channel in the brightness of a pixel."""


def fog(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Add clouds, and darken the sum."""
    thick, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    most = x.max()
    return (x + thick * fitted(clouds(x, decay, draw), x)) * most / (most + thick)


def frost_like(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Add bright ridges, as of ice on a window, to a darker picture."""
    share, strength = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    ridges = (1 - (2 * clouds(x, 1.4, draw) - 1).abs()) ** 3
    return share * x + strength * color(ICE) * fitted(ridges, x)


def snow_like(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Whiten the picture and let flakes fall, twice: once turned around."""
    mean, std, zoom, least, radius, sigma, share = (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    flakes = zoomed(mean + std * torch.randn(1, *layer_shape(x), generator=draw), zoom)
    flakes = torch.where(flakes < least, 0.0, flakes).clamp(0, 1)
    flakes = fitted(trailed(flakes, radius, sigma, -135 + 90 * uniform(draw)), x)
    white = 1.5 * (color(GRAY) * x).sum(0, keepdim=True) + 0.5
    return share * x + (1 - share) * torch.maximum(x, white) + flakes + flakes.flip(1, 2)


def spatter_like(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Let drops of water lie on the lens, or mud from severity 4 on."""
    mean, std, sigma, least, strength = (
        (0.65, 0.3, 4, 0.69, 0.6),
        (0.65, 0.3, 3, 0.68, 0.6),
        (0.65, 0.3, 2, 0.68, 0.5),
        (0.65, 0.3, 1, 0.65, 1.5),
        (0.67, 0.4, 1, 0.65, 1.5),
    )[severity - 1]
    liquid = smoothed(mean + std * torch.randn(1, *layer_shape(x), generator=draw), sigma)
    drops = (liquid >= least).float()
    if severity < 4:
        return x + strength * color(WATER) * fitted(smoothed(drops, 1.0), x)
    mud = smoothed(drops, strength)
    mud = fitted(torch.where(mud < 0.8, 0.0, mud), x)
    return x * (1 - mud) + color(MUD) * mud


def color(channels: tuple[float, float, float]) -> Tensor:
    """Return a color as [3, 1, 1]."""
    return torch.tensor(channels)[:, None, None]


def layer_shape(x: Tensor) -> tuple[int, int]:
    """Return the pixels (h, w) of a layer for pictures whose shorter side has 224."""
    scale = scale_of(x)
    return round(x.shape[1] / scale), round(x.shape[2] / scale)


def fitted(layer: Tensor, x: Tensor) -> Tensor:
    """Return a layer [1, h, w] at the size of x [C, H, W]."""
    size = (x.shape[1], x.shape[2])
    return F.interpolate(layer[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


def clouds(x: Tensor, decay: float, draw: torch.Generator) -> Tensor:
    """Return clouds [1, h, w] from 0 to 1: heights by the diamond-square algorithm on a torus, of which a part is cut.

    From one size of steps to the half the heights' noise falls by the square of `decay`, as in the original.
    """
    high, wide = layer_shape(x)
    heights, noise = torch.zeros(1, 1), 1.0

    def between(*four: Tensor) -> Tensor:
        drawn = 2 * torch.rand(four[0].shape, generator=draw) - 1
        return torch.stack(four).mean(0) + noise * drawn

    while len(heights) < max(high, wide):
        right, below = heights.roll(-1, 1), heights.roll(-1, 0)
        centers = between(heights, right, below, right.roll(-1, 0))
        across = between(heights, right, centers, centers.roll(1, 0))
        down = between(heights, below, centers, centers.roll(1, 1))
        rows = [torch.stack(pair, 2).flatten(1) for pair in ((heights, across), (down, centers))]
        heights = torch.stack(rows, 1).flatten(0, 1)
        noise /= decay**2
    heights = heights - heights.min()
    return (heights / heights.max())[None, :high, :wide]
