"""Classical image features that learning has to beat: pixels, and histograms of gradients and colors.

Dalal and Triggs, CVPR 2005 (9 unsigned orientations, blocks of 2x2 cells, L2-Hys), beside the square root of
a 64-bin RGB histogram. Cells are an eighth of the side, at 32 px 4 px; larger images are averaged down to 96
px first.
Shapes: R rows, C channels, S pixels per side.  State: none.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Views
from multissl.modalities.image.ops import luminance

BINS, CELLS, LEVELS = 9, 8, 4


def pixels(views: Views, mean: tuple[float, ...], std: tuple[float, ...], largest: int) -> Tensor:
    """The images of clean views, values 0 to 1, averaged to squares of at most `largest` pixels: [R, C, S, S]."""
    x = views.x.float()
    x = (
        x * torch.tensor(std, device=x.device)[:, None, None]
        + torch.tensor(mean, device=x.device)[:, None, None]
    )
    side = min(max(x.shape[-2:]), largest)
    return x if x.shape[-2:] == (side, side) else F.adaptive_avg_pool2d(x, side)


def pixel_floor(views: Views, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Pixels of at most 32 x 32, [R, C*S*S]."""
    return pixels(views, mean, std, 32).flatten(1)


def histogram_floor(views: Views, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Histograms of gradients (1,764 values) and, for RGB, of colors (64)."""
    x = pixels(views, mean, std, 96)
    gradients = hog(luminance(x)[:, 0])
    return torch.cat([gradients, colors(x)], 1) if x.shape[1] == 3 else gradients


def hog(gray: Tensor) -> Tensor:
    """Histograms of oriented gradients of [R, S, S]: [R, 7*7*2*2*9]."""
    cell = max(gray.shape[-1] // CELLS, 1)
    side = min(cell * CELLS, gray.shape[-1])
    gray = gray[:, :side, :side]
    dy, dx = torch.zeros_like(gray), torch.zeros_like(gray)
    dy[:, 1:-1] = gray[:, 2:] - gray[:, :-2]
    dx[:, :, 1:-1] = gray[:, :, 2:] - gray[:, :, :-2]
    size = torch.sqrt(dx**2 + dy**2)  # [R, side, side]
    turn = torch.atan2(dy, dx) % math.pi / math.pi * BINS
    votes = gray.new_zeros(len(gray), BINS, side, side)
    votes.scatter_(1, turn.long().clamp_(max=BINS - 1)[:, None], size[:, None])
    cells = F.avg_pool2d(votes, cell)  # [R, 9, cells, cells]
    blocks = F.unfold(cells, 2)  # [R, 9*4, blocks]
    blocks = F.normalize(blocks, dim=1, eps=1e-5).clamp(max=0.2)
    return F.normalize(blocks, dim=1, eps=1e-5).flatten(1)


def colors(x: Tensor) -> Tensor:
    """Square roots of the shares of 4 x 4 x 4 colors in RGB images [R, 3, S, S]: [R, 64]."""
    level = (x * LEVELS).long().clamp(0, LEVELS - 1)
    color = (level[:, 0] * LEVELS + level[:, 1]) * LEVELS + level[:, 2]
    counts = torch.zeros(len(x), LEVELS**3, device=x.device)
    flat = color.flatten(1)
    counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=counts.dtype))
    return (counts / flat.shape[1]).sqrt()
