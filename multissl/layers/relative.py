"""Relative positions of a 2-D grid: which row of a learned table stands for two tokens.

BEiT (Bao et al. 2021, arXiv 2106.08254) in the form of its code: rows for every step between two patches, then three
for class to patch, patch to class, and class to class.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def count_steps(grid: Sequence[int]) -> int:
    """Return the rows of the table of a grid (h, w)."""
    high, wide = grid
    return (2 * high - 1) * (2 * wide - 1) + 3


def index_steps(grid: Sequence[int], prefix: int) -> Tensor:
    """Return the rows for all pairs of tokens of a grid (h, w), int64 [prefix+N, prefix+N]; prefix is 0 or 1."""
    high, wide = grid
    places = torch.stack(torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")).flatten(1)
    down, right = (places[:, :, None] - places[:, None]).unbind()  # each [N, N]
    steps = (down + high - 1) * (2 * wide - 1) + right + wide - 1
    if not prefix:
        return steps
    rows, size = count_steps(grid), len(steps) + 1
    index = steps.new_full((size, size), rows - 3)
    index[:, 0] = rows - 2
    index[0, 0] = rows - 1
    index[1:, 1:] = steps
    return index
