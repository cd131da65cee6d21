"""Rotary positions of grids: queries and keys of patches are turned by angles that tell where they lie.

2-D as in DINOv3 (Siméoni et al. 2025, arXiv 2508.10104): centers of patches in [-1, 1] by axis, a quarter of the head's
channels for each axis, twice; channel j turns with channel j + d/2. 3-D as in V-JEPA 2 (Assran et al. 2025, arXiv
2506.09985): whole places of tokens, about a third of the channels for each axis and the rest unturned; channels 2i and
2i+1 turn together, but by angles that are tiled, not repeated. That is a slip which the authors kept for the sake of
their models, and so it is kept here.
Tokens before the patches have the angle 0 and stay as they are.
Shapes: R rows, N tokens, P tokens before them, d width of a head, T packed tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Angles of packed tokens, and which channels turn together."""

    cos: Tensor
    """float32 [T, 1, d]"""
    sin: Tensor
    """float32 [T, 1, d]"""
    adjacent: bool
    """Whether channels 2i and 2i+1 are a pair; else j and j + d/2."""

    def select(self, tokens: Tensor) -> Rotation:
        """Return the angles of some of the tokens, int64 [S]."""
        return Rotation(self.cos.index_select(0, tokens), self.sin.index_select(0, tokens), self.adjacent)

    def turn(self, x: Tensor) -> Tensor:
        """Return queries or keys [T, H, d] turned, in their own precision."""
        wide = x.float()
        if self.adjacent:
            even, odd = wide[..., ::2], wide[..., 1::2]
            crossed = torch.stack([-odd, even], -1).flatten(-2)
        else:
            first, second = wide.chunk(2, -1)
            crossed = torch.cat([-second, first], -1)
        return (wide * self.cos + crossed * self.sin).to(x.dtype)


def axial_periods(width: int, base: float) -> Tensor:
    """Return the d/4 periods of a 2-D grid, float32."""
    quarter = width // 4
    return base ** (torch.arange(quarter, dtype=torch.float32) / quarter)


def axial_angles(grid: Sequence[int], periods: Tensor) -> Tensor:
    """Return the angles of a 2-D grid, float32 [N, d]."""
    axes = [(torch.arange(n, dtype=torch.float32, device=periods.device) + 0.5) / n * 2 - 1 for n in grid]
    centers = torch.stack(torch.meshgrid(axes, indexing="ij"), -1).flatten(0, 1)  # [N, 2]
    angles = 2 * math.pi * centers[:, :, None] / periods.float()  # [N, 2, d/4]
    return angles.flatten(1).tile(2)


def clip_angles(grid: Sequence[int], width: int, base: float, device: torch.device) -> Tensor:
    """Return the angles of a 3-D grid, float32 [N, d]."""
    part = 2 * (width // 3 // 2)
    frequency = 1.0 / base ** (torch.arange(part // 2, dtype=torch.float32, device=device) / (part / 2))
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in grid]
    places = torch.meshgrid(axes, indexing="ij")
    parts = [(place.flatten()[:, None] * frequency).tile(2) for place in places]  # each [N, part]
    rest = torch.zeros(parts[0].shape[0], width - 3 * part, device=device)
    return torch.cat([*parts, rest], 1)


def pack(angles: Sequence[Tensor], rows: Sequence[int], adjacent: bool) -> Rotation:
    """Return the rotation of packed groups from the angles of each, [R_i or 1, N_i, d]."""
    whole = [a.expand(r, -1, -1).flatten(0, 1) for a, r in zip(angles, rows, strict=True)]
    packed = torch.cat(whole)[:, None]  # [T, 1, d]
    return Rotation(packed.cos(), packed.sin(), adjacent)
