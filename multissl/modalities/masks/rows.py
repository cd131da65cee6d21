"""A kind of mask hides tokens row by row; what all kinds have in common is here: groups, ratios, rows that are masked.

The rows of a group of samples share out the range of ratios among them (Oquab et al., TMLR 2024, arXiv 2304.07193).
Shapes: B samples of this rank, V views, R = V*B rows, view-major, N tokens, G samples of a group.  State: none.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from multissl.contract.data import Mask
from multissl.contract.plans import ViewPlan
from multissl.modalities.views import pack_masks
from multissl.random import RowRandom

Kind = Literal["block", "random"]
Grid = tuple[int, int]
Range = tuple[float, float]


class Place(NamedTuple):
    """Which row is drawn."""

    mask: int
    """Number of the mask, where a view has several."""
    view: int
    sample: int
    """Of this rank."""


class Hiding(ABC):
    """A kind of mask: how many tokens a row hides, and which."""

    tokens: int
    """Places of a row among which `row` chooses."""

    @abstractmethod
    def ranges(self, plan: ViewPlan, rows: int) -> list[Range]:
        """Return the range of hidden tokens that each masked row of a group of `rows` asks for."""

    @abstractmethod
    def most(self, high: float) -> int:
        """Return how many tokens a row that asks for up to `high` hides at most."""

    @abstractmethod
    def num_hidden(self, plan: ViewPlan, rows: int) -> int | None:
        """Return the hidden tokens of every row where all rows agree at every step, else None."""

    @abstractmethod
    def row(self, rng: np.random.Generator, place: Place, low: float, high: float) -> np.ndarray:
        """Return which places of a row that asks for low to high of them are hidden, bool [tokens]."""

    def pack(self, hidden: Tensor, size: int) -> Mask:
        """Return the mask of rows [R, tokens], its index padded to `size`."""
        return pack_masks(hidden, size)


def masks_of(plan: ViewPlan, hiding: Hiding, group: int, rng: RowRandom) -> tuple[Mask, ...]:
    """Return `plan.num_masks` masks of one kind for the global views of this rank's samples."""
    views, size = plan.num_global, group_size(group, rng)
    ranges = hiding.ranges(plan, views * size)
    if not ranges and plan.mask_share > 0:
        raise ValueError(
            f"mask_share={plan.mask_share} of the {views * size} views of {size} samples masks none: choose a"
            f" batch_size with a larger divisor up to mask_group={group}, or mask_share=1"
        )
    most = sum(hiding.most(high) for _, high in ranges) * (rng.rows // size)
    same = hiding.num_hidden(plan, views * size)
    masks: list[Mask] = []
    for number in range(plan.num_masks):
        hidden = np.zeros((views, rng.rows, hiding.tokens), bool)
        for lane, generator in enumerate(rng.fork(f"mask {number}").group(size)):
            rows = generator.permutation(views * size)[: len(ranges)]
            for row, (low, high) in zip(rows.tolist(), ranges, strict=True):
                place = Place(number, row // size, lane * size + row % size)
                hidden[place.view, place.sample] = hiding.row(generator, place, low, high)
        flat = torch.from_numpy(hidden.reshape(-1, hiding.tokens))
        masks.append(replace(hiding.pack(flat, most), num_hidden=same))
    return tuple(masks)


def group_size(wanted: int, rng: RowRandom) -> int:
    """Return G, the largest divisor up to `wanted` of the samples that a rank has of a step."""
    rows = math.gcd(rng.rows, rng.first)
    return next(g for g in range(min(wanted, rows), 0, -1) if rows % g == 0)


def requests(plan: ViewPlan, kind: str, tokens: int, rows: int) -> list[Range]:
    """Return the range of hidden tokens that each masked row of a group of `rows` asks for; others hide nothing.

    The ratio range is cut into as many intervals as rows are masked, one for each (stratified). A fixed ratio
    of random masks keeps int(N * (1 - ratio)) tokens, as MAE does. At least one token is hidden and one is
    kept.
    """
    assert plan.mask_ratio is not None
    low, high = plan.mask_ratio
    masked = int(rows * plan.mask_share)
    if low == high:
        exact = tokens - int(tokens * (1 - low)) if kind == "random" else int(tokens * low)
        return [(clamp(exact, tokens), clamp(exact, tokens))] * masked
    edges = np.linspace(low, high, masked + 1) * tokens
    return list(itertools.pairwise(edges.tolist()))


def clamp(count: float, tokens: int) -> int:
    """Return a whole number of hidden tokens, one at least and not all."""
    return min(max(int(count), 1), tokens - 1)
