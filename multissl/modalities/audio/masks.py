"""Which tokens of a spectrogram are hidden: random ones, blocks, stretches of time, bands of frequency, or both.

Huang et al., NeurIPS 2022, arXiv 2207.06405 (AudioMAE): `time` and `frequency` hide whole columns or rows of the grid
of tokens, `time_frequency` hides both at equal rates p with 1 - (1-p)^2 the share asked for; int(n * (1-p)) columns or
rows are kept, as in its code.
Padding lies at the end of a row's time. A mask hides the same share of it as of the sound, so that every row hides
equally many tokens; `index` and `weight` list the hidden tokens of the sound alone. At least one of them is hidden and
one is left.
Shapes: B samples of this rank, V views, R = V*B rows, view-major, N = T*F tokens, time first, G samples of a group.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from multissl.contract.data import Mask
from multissl.contract.plans import ViewPlan
from multissl.modalities.base import pack_masks
from multissl.modalities.masks import block_mask, group_size, requests
from multissl.random import RowRandom

Band = Literal["random", "block", "time", "frequency", "time_frequency"]
Grid = tuple[int, int]


def rates(kind: Band, share: float) -> tuple[float, float]:
    """Shares of time columns and of frequency rows that hide a share of all tokens."""
    if kind == "time":
        return share, 0.0
    if kind == "frequency":
        return 0.0, share
    each = 1 - math.sqrt(1 - share)
    return each, each


def kept(size: int, rate: float) -> int:
    """Columns or rows that are left of `size`: int(size * (1 - rate)), 1 at least; all where the rate is 0."""
    return max(int(size * (1 - rate)), 1) if rate else size


def count(kind: Band, grid: Grid, plan: ViewPlan, request: float) -> int:
    """Hidden tokens of a row that asks for `request`, known without drawing."""
    tokens = grid[0] * grid[1]
    if kind in ("random", "block"):
        return min(max(int(request), 1), tokens - 1)
    time, rows = _kept(kind, grid, plan, request)
    return tokens - time * rows


def _kept(kind: Band, grid: Grid, plan: ViewPlan, request: float) -> Grid:
    assert plan.mask_ratio is not None
    low, high = (
        plan.mask_ratio
    )  # a fixed ratio is taken as it is: through a count of tokens it would be rounded
    share = low if low == high else request / (grid[0] * grid[1])
    time, rows = (kept(n, r) for n, r in zip(grid, rates(kind, share), strict=True))
    if time * rows < grid[0] * grid[1]:
        return time, rows
    return (time - 1, rows) if kind != "frequency" else (time, rows - 1)


def fixed_count(kind: Band, grid: Grid, plan: ViewPlan, rows: int) -> int | None:
    """Hidden tokens in every row where all `rows` agree, else None."""
    ranges = _ranges(kind, grid, plan, rows)
    fixed = len(ranges) == rows and all(low == high for low, high in ranges)
    return count(kind, grid, plan, ranges[0][0]) if fixed else None


def _ranges(kind: Band, grid: Grid, plan: ViewPlan, rows: int) -> list[tuple[float, float]]:
    return requests(plan, "block" if kind == "block" else "random", grid[0] * grid[1], rows)


def draw_bands(
    plan: ViewPlan, kind: Band, grid: Grid, wanted_group: int, rng: RowRandom, real: Tensor
) -> list[Mask]:
    """`plan.num_masks` masks for the global views; real int64 [V, B]: columns of time that are sound, 1 or more."""
    tokens, views, size = grid[0] * grid[1], plan.num_global, group_size(wanted_group, rng)
    ranges = _ranges(kind, grid, plan, views * size)
    if not ranges and plan.mask_share > 0:
        raise ValueError(
            f"mask_share={plan.mask_share} of the {views * size} views of {size} samples masks none: choose a"
            f" batch_size with a larger divisor up to mask_group={wanted_group}, or mask_share=1"
        )
    upper = sum(count(kind, grid, plan, high) for _, high in ranges) * (rng.rows // size)
    columns = real.unflatten(1, (-1, size)).tolist()  # [V, groups, G]
    sound = (torch.arange(tokens) // grid[1])[None] < real.flatten()[:, None]  # [R, N]
    masks = []
    for number in range(plan.num_masks):
        hidden = np.zeros((views, rng.rows // size, size, tokens), bool)
        for group, generator in enumerate(rng.fork(f"mask {number}").group(size)):
            rows = generator.permutation(views * size)[: len(ranges)]
            for row, (low, high) in zip(rows.tolist(), ranges, strict=True):
                view, sample = divmod(row, size)
                request = low if low == high else generator.uniform(low, high)
                hidden[view, group, sample] = _row(
                    generator, kind, grid, plan, request, columns[view][group][sample], low == high
                )
        flat = torch.from_numpy(hidden.reshape(-1, tokens))
        masks.append(
            replace(
                pack_masks(flat & sound, upper),
                hidden=flat,
                num_hidden=fixed_count(kind, grid, plan, views * size),
            )
        )
    return masks


def _row(
    rng: np.random.Generator, kind: Band, grid: Grid, plan: ViewPlan, request: float, real: int, exact: bool
) -> np.ndarray:
    """One row's mask, bool [N]."""
    tokens, wanted = grid[0] * grid[1], count(kind, grid, plan, request)
    if kind == "random":
        hidden = _some(rng, tokens, wanted, real * grid[1])
    elif kind == "block":
        hidden = block_mask(rng, grid, wanted)
        if exact:
            free = np.flatnonzero(~hidden)
            hidden[rng.permutation(free)[: wanted - (tokens - len(free))]] = True
    else:
        time, rows = _kept(kind, grid, plan, request)
        columns = _some(rng, grid[0], grid[0] - time, real)
        hidden = either(columns, _some(rng, grid[1], grid[1] - rows, grid[1]))
    return _mend(rng, hidden, real * grid[1])


def either(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Tokens in a hidden column of time [T] or a hidden row of frequency [F]: bool [T*F]."""
    return (columns[:, None] | rows[None]).reshape(-1)


def _some(rng: np.random.Generator, size: int, wanted: int, real: int) -> np.ndarray:
    """`wanted` of `size` places at random, in equal shares of the first `real` and of the others."""
    inside = min(max(round(wanted * real / size), wanted - (size - real)), real)
    hidden = np.zeros(size, bool)
    hidden[rng.permutation(real)[:inside]] = True
    hidden[real + rng.permutation(size - real)[: wanted - inside]] = True
    return hidden


def _mend(rng: np.random.Generator, hidden: np.ndarray, real: int) -> np.ndarray:
    """The same number hidden, but neither all nor none of the first `real` tokens, where there are two of them."""
    sound, padding = hidden[:real], hidden[real:]
    for state in (True, False):
        if real > 1 and bool((sound == state).all()) and bool((padding != state).any()):
            sound[rng.integers(real)] = not state
            padding[rng.choice(np.flatnonzero(padding != state))] = state
    return hidden
