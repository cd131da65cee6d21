"""Positions of tokens: learned tables, fixed sine-cosine tables, and their resampling to another grid.

Sine-cosine: Vaswani et al. 2017, arXiv 1706.03762, in the 2-D order of MAE (arXiv 2111.06377) and the
3-D order of V-JEPA (arXiv 2404.08471). Resampling: the two conventions of the released DINOv2 models (arXiv
2304.07193 and 2309.16588).
Shapes: N tokens of a grid, row-major, D width. A table is [1, 1+N, D], the class token first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.config import Config
from multissl.layers.interpolation import resample_any

MODES = {1: "linear", 2: "bicubic", 3: "trilinear"}
"""How a table is resampled, by the number of axes of its grid."""


@dataclass(kw_only=True, slots=True)
class Position(Config):
    """How tokens learn where they are."""

    kind: Literal["learned", "sincos", "rope", "relative", "none"] = "learned"
    """Learned embeddings; fixed sines and cosines; rotary: queries and keys turned by where patches lie, as in DINOv3
    and, of clips, V-JEPA 2; relative: a learned number for each head and step between two tokens, as in BEiT and
    data2vec; or none."""
    offset: float = 0.1
    """Added to the tokens of an axis before the scale factor of a resampled table is taken; 0 resamples to
    the plain size. DINOv2 was trained with 0.1, its models with registers with 0."""
    antialias: bool = False
    """Smooth before a 2-D table shrinks: on in DINOv2 with registers, off without."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How a 2-D table is resampled; bilinear in SigLIP 2."""
    base: float = 100.0
    """rope: the longest period; 100 in DINOv3, 10000 in V-JEPA 2."""
    column_first: bool = True
    """sincos in 2-D: the first half of the channels tells the column (MAE, I-JEPA), else the row (V-JEPA)."""
    uniform: bool = False
    """sincos in 3-D: a third of the channels for each axis (V-JEPA), else half of them for the first."""
    grid: tuple[int, ...] = ()
    """Tokens along each axis of the stored table; empty: those of a global view. Released DINOv2: 37 37."""
    std: float = 0.02
    """Deviation of a learned table at the start."""

    def __post_init__(self) -> None:
        if not 0 <= self.offset < 1:
            raise ValueError(
                f"position.offset={self.offset}: want 0 or a small share of a token below 1, such as 0.1"
            )
        if self.std < 0:
            raise ValueError(f"position.std={self.std}: want 0 or more, such as 0.02")
        if not self.base > 1:
            raise ValueError(f"position.base={self.base}: want more than 1, such as 100")
        if any(n < 1 for n in self.grid):
            raise ValueError(f"position.grid={self.grid}: want 1 or more tokens along every axis")


def resample(
    table: Tensor,
    old: Sequence[int],
    new: Sequence[int],
    offset: float = 0.1,
    antialias: bool = False,
    *,
    prefix: int = 1,
    interpolation: str = "bicubic",
) -> Tensor:
    """A table [1, prefix+prod(old), D] on another grid, [1, prefix+prod(new), D]; the class token's row is kept."""
    old, new = tuple(old), tuple(new)
    if torch.compiler.is_exporting() and len(old) == len(
        new
    ):  # its sizes are symbols, which no branch can ask
        mode = interpolation if len(old) == 2 else MODES[len(old)]
        return resample_any(table, old, new, offset, antialias, prefix, mode)
    if old == new:
        return table
    if len(old) != len(new) or len(old) not in MODES:
        raise ValueError(f"a position table of grid {old} cannot be resampled to grid {new}")
    if antialias and len(old) != 2:
        raise ValueError(
            f"position.antialias=True works on 2-D grids, this one has {len(old)} axes: switch it off"
        )
    mode = interpolation if len(old) == 2 else MODES[len(old)]
    grid = table[:, prefix:].float().mT.unflatten(2, old)  # [1, D, *old]
    if offset > 0:
        scale = [(n + offset) / o for n, o in zip(new, old, strict=True)]
        grid = F.interpolate(grid, scale_factor=scale, mode=mode, antialias=antialias)
    else:
        grid = F.interpolate(grid, size=new, mode=mode, antialias=antialias)
    assert grid.shape[2:] == new, (grid.shape, new)
    return torch.cat([table[:, :prefix], grid.flatten(2).mT.to(table.dtype)], dim=1)


def sincos(grid: Sequence[int], dim: int, column_first: bool = True, uniform: bool = False) -> Tensor:
    """A fixed table [1, 1+N, D] for a grid of 1 to 3 axes, with zeros for the class token.

    In 3-D half of the channels tell the first axis, a quarter each of the others; a third each if `uniform`.
    """
    axes = len(grid)
    if axes not in MODES:
        raise ValueError(f"position.kind=sincos knows grids of 1 to 3 axes, got {axes}: use learned")
    if axes == 3 and uniform:
        widths = [math.ceil(dim / 6) * 2] * 3  # together D or a little more, cut below
    else:
        widths = {1: [dim], 2: [dim // 2] * 2, 3: [dim // 2, dim // 4, dim // 4]}[axes]
    if any(w % 2 for w in widths) or sum(widths) < dim:
        raise ValueError(
            f"position.kind=sincos splits the width over {axes} axes: dim={dim} is no multiple of {2**axes}"
        )
    places = torch.meshgrid([torch.arange(n, dtype=torch.float64) for n in grid], indexing="ij")
    order = [1, 0] if axes == 2 and column_first else list(range(axes))
    parts = [_waves(places[axis].flatten(), width) for axis, width in zip(order, widths, strict=True)]
    return F.pad(torch.cat(parts, dim=1)[:, :dim], (0, 0, 1, 0)).float()[None]


def _waves(place: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, of places [N] at dim/2 frequencies from 1 to about 1/10000: [N, dim]."""
    frequency = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = place[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)
