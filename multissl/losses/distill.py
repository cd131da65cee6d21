"""Distances of a student's features from a frozen teacher's, and tokens of one grid at the places of another.

"mixed" is AM-RADIO's for tokens: nine parts cosine, one part smooth L1 (Ranzinger et al. 2024, arXiv 2312.06709).
Shapes: R rows, N tokens, D width.  Collectives: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.precision import at_least_fp32

Metric = Literal["cosine", "smooth_l1", "mse", "mixed"]


def feature_errors(pred: Tensor, target: Tensor, metric: Metric) -> Tensor:
    """Return the distance of features pred [..., D] from target [..., D]: [...], in fp32 at least.

    cosine: 1 - cos; smooth_l1 (beta 1) and mse: means over channels; mixed: 0.9 of the first and 0.1 of the second.
    """
    with torch.autocast(pred.device.type, enabled=False):
        pred, target = at_least_fp32(pred), at_least_fp32(target)
        if metric == "mse":
            return F.mse_loss(pred, target, reduction="none").mean(-1)
        away = 1 - F.cosine_similarity(pred, target, dim=-1) if metric != "smooth_l1" else None
        near = F.smooth_l1_loss(pred, target, reduction="none").mean(-1) if metric != "cosine" else None
        if away is None or near is None:
            return away if away is not None else near  # type: ignore[return-value]
        return 0.9 * away + 0.1 * near


def resample(tokens: Tensor, grid: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return tokens [R, N, D] of a grid at the places of a grid of another size: [R, N', D], by linear interpolation.

    Of pictures with antialiasing, so that a smaller grid holds averages. Grids have one, two or three axes.
    """
    if tuple(grid) == tuple(size):
        return tokens
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(grid)]
    maps = at_least_fp32(tokens).mT.unflatten(2, tuple(grid))  # [R, D, *grid]
    return F.interpolate(maps, tuple(size), mode=mode, antialias=len(grid) == 2).flatten(2).mT


def grid_of(count: int, grid: Sequence[int]) -> tuple[int, ...]:
    """Return the grid of `count` tokens with the aspect of another grid. Raises a ValueError where there is none."""
    total = 1
    for side in grid:
        total *= side
    factor = (count / max(1, total)) ** (1 / max(1, len(grid)))
    sides = tuple(max(1, round(side * factor)) for side in grid)
    found = 1
    for side in sides:
        found *= side
    if not grid or found != count:
        raise ValueError(f"{count} tokens lie on no grid of the shape {tuple(grid)}")
    return sides
