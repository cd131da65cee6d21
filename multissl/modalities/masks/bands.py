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
from multissl.modalities.masks.cells import hide_cells
from multissl.modalities.masks.rows import Grid, Hiding, Place, Range, clamp, requests
from multissl.modalities.views import pack_masks

Band = Literal["random", "block", "time", "frequency", "time_frequency"]
BANDS = ("time", "frequency", "time_frequency")
"""Kinds that are known in spectrograms only."""


def rates(kind: Band, share: float) -> tuple[float, float]:
    """Return the shares of time columns and of frequency rows that hide a share of all tokens."""
    if kind == "time":
        return share, 0.0
    if kind == "frequency":
        return 0.0, share
    each = 1 - math.sqrt(1 - share)
    return each, each


def kept(size: int, rate: float) -> int:
    """Return the columns or rows that are left of `size`: int(size * (1 - rate)), at least 1; all at rate 0."""
    return max(int(size * (1 - rate)), 1) if rate else size


def count(kind: Band, grid: Grid, plan: ViewPlan, request: float) -> int:
    """Return the hidden tokens of a row that asks for `request`, known without drawing."""
    tokens = grid[0] * grid[1]
    if kind in ("random", "block"):
        return clamp(request, tokens)
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
    """Return the hidden tokens of every row where all `rows` agree, else None."""
    ranges = _ranges(kind, grid, plan, rows)
    fixed = len(ranges) == rows and all(low == high for low, high in ranges)
    return count(kind, grid, plan, ranges[0][0]) if fixed else None


def _ranges(kind: Band, grid: Grid, plan: ViewPlan, rows: int) -> list[tuple[float, float]]:
    return requests(plan, "block" if kind == "block" else "random", grid[0] * grid[1], rows)


def either(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the tokens in a hidden column of time [T] or a hidden row of frequency [F]: bool [T*F]."""
    return (columns[:, None] | rows[None]).reshape(-1)


def _some(rng: np.random.Generator, size: int, wanted: int, real: int) -> np.ndarray:
    """Return `wanted` of `size` places at random, in equal shares of the first `real` and of the others."""
    inside = min(max(round(wanted * real / size), wanted - (size - real)), real)
    hidden = np.zeros(size, bool)
    hidden[rng.permutation(real)[:inside]] = True
    hidden[real + rng.permutation(size - real)[: wanted - inside]] = True
    return hidden


def _mend(rng: np.random.Generator, hidden: np.ndarray, real: int) -> np.ndarray:
    """Return the same number hidden, but neither all nor none of the first `real` tokens if there are two."""
    sound, padding = hidden[:real], hidden[real:]
    for state in (True, False):
        if real > 1 and bool((sound == state).all()) and bool((padding != state).any()):
            sound[rng.integers(real)] = not state
            padding[rng.choice(np.flatnonzero(padding != state))] = state
    return hidden


class Bands(Hiding):
    """Tokens of a spectrogram of time and frequency whose padding loses the same share as its sound.

    real int64 [R]: columns of time that are sound, 1 or more; None: all are.
    """

    def __init__(self, plan: ViewPlan, kind: Band, grid: Grid, real: Tensor | None, rows: int) -> None:
        self.plan, self.grid = plan, grid
        self.kind: Band = kind
        self.tokens = grid[0] * grid[1]
        self.real = torch.full((rows,), grid[0]) if real is None else real
        self.columns = self.real.unflatten(0, (plan.num_global, -1)).tolist()  # [V][B]

    def ranges(self, plan: ViewPlan, rows: int) -> list[Range]:
        """Return the range of hidden places that each masked row of a group asks for."""
        return _ranges(self.kind, self.grid, plan, rows)

    def most(self, high: float) -> int:
        """Return the most tokens that a row hides which asks for up to `high` places."""
        return count(self.kind, self.grid, self.plan, high)

    def num_hidden(self, plan: ViewPlan, rows: int) -> int | None:
        """Return the hidden tokens of every row where all rows agree, else None."""
        return fixed_count(self.kind, self.grid, plan, rows)

    def row(self, rng: np.random.Generator, place: Place, low: float, high: float) -> np.ndarray:
        """Return which places of one row are hidden, bool [tokens]."""
        request = low if low == high else rng.uniform(low, high)
        real = self.columns[place.view][place.sample]
        return _row(rng, self.kind, self.grid, self.plan, request, real, low == high)

    def pack(self, hidden: Tensor, size: int) -> Mask:
        """Return the mask over all tokens."""
        sound = (torch.arange(self.tokens) // self.grid[1])[None] < self.real[:, None]  # [R, N]
        return replace(pack_masks(hidden & sound, size), hidden=hidden)


def _row(
    rng: np.random.Generator, kind: Band, grid: Grid, plan: ViewPlan, request: float, real: int, exact: bool
) -> np.ndarray:
    """Return one row's mask, bool [N]."""
    tokens, wanted = grid[0] * grid[1], count(kind, grid, plan, request)
    if kind == "random":
        hidden = _some(rng, tokens, wanted, real * grid[1])
    elif kind == "block":
        hidden = hide_cells(rng, kind, grid, wanted, exact)
    else:
        time, rows = _kept(kind, grid, plan, request)
        columns = _some(rng, grid[0], grid[0] - time, real)
        hidden = either(columns, _some(rng, grid[1], grid[1] - rows, grid[1]))
    return _mend(rng, hidden, real * grid[1])
