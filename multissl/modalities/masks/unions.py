"""One target that is the union of several blocks; the context is everything else: the masks of V-JEPA.

Bardes et al. 2024, arXiv 2404.08471: blocks are drawn in space and last as long as the clip. With `Lasting` they may
last a share of it, and the context may show its first slots alone, or a share of the tokens, as in the public code.
Shapes: S slots of time, H, W cells of a slot, R rows, view-major, K places of the context, Q of the target.
State: none.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from multissl.contract.data import Mask
from multissl.contract.plans import ViewPlan
from multissl.modalities.masks.multiblock import as_masks, sizes
from multissl.modalities.masks.rows import Grid, group_size
from multissl.random import RowRandom


class Lasting(NamedTuple):
    """How a union of blocks and its context lie in time."""

    blocks: tuple[float, float] = (1.0, 1.0)
    """Range of the share of the slots that blocks last."""
    context: float = 1.0
    """Share of the slots, from the first one on, in which a context shows tokens."""
    keep: float = 1.0
    """Largest share of all tokens that a context shows."""

    def first_slots(self, slots: int) -> int:
        """Return in how many slots a context shows tokens."""
        return max(1, int(slots * self.context))


def union_context(
    plan: ViewPlan, grid: Grid, slots: int, blocks: int, rng: RowRandom, lasting: Lasting | None = None
) -> tuple[Mask, ...]:
    """Return the mask that hides all but the context, and the target's, drawn on a grid for all its slots."""
    contexts, targets = draw_union(plan, grid, slots, blocks, rng, lasting or Lasting())
    largest = targets.shape[-1]  # constant by construction
    return as_masks(contexts, targets, slots * grid[0] * grid[1], largest)


def draw_union(
    plan: ViewPlan, grid: Grid, slots: int, blocks: int, rng: RowRandom, lasting: Lasting
) -> tuple[Tensor, Tensor]:
    """Return one target that is the union of `blocks` blocks, and a context that is the rest.

    Places in the clip, contexts [1, R, K] and targets [1, R, Q]. Unions differ in size: they are trimmed or topped up
    with random cells to the share that independent blocks cover, so that K and Q are the same in every row, rank and
    step. The public code cuts all lists of a batch to the shortest, the last tokens first.
    """
    if plan.num_masks != 1 or plan.num_contexts != 1:
        raise ValueError(
            f"modality.union={blocks} makes one target of several blocks, the objective asks for {plan.num_masks}"
            f" targets and {plan.num_contexts} contexts: set objective.targets=1 and objective.contexts=1, or"
            " modality.union=0"
        )
    unions = union_masks(plan, grid, blocks, rng, slots, lasting, exact=True).reshape(
        -1, slots, grid[0] * grid[1]
    )
    free = ~unions
    free[:, lasting.first_slots(slots) :] = False
    contexts, targets = (
        np.stack([np.flatnonzero(row) for row in part.reshape(len(part), -1)]) for part in (free, unions)
    )
    keep = max(int(unions[0].size * lasting.keep), 1)
    if contexts.shape[1] > keep:
        lanes = rng.fork("kept").group(1)
        contexts = np.stack(
            [np.sort(lanes[i % len(lanes)].permutation(c)[:keep]) for i, c in enumerate(contexts)]
        )
    return torch.from_numpy(contexts)[None], torch.from_numpy(targets)[None]


def union_masks(
    plan: ViewPlan,
    grid: Grid,
    blocks: int,
    rng: RowRandom,
    slots: int = 1,
    lasting: Lasting | None = None,
    *,
    wanted_group: int = 1,
    exact: bool = False,
) -> np.ndarray:
    """Return unions of blocks of one size per step, bool [R, S*H*W]; `exact`: of equally many cells in each.

    Blocks that last as long as the clip make unions that are the same in all slots.
    """
    lasting = lasting or Lasting()
    size = group_size(wanted_group, rng)
    (h, w), _ = sizes(plan, "block", grid, rng.fork("sizes").common())
    cells, whole = grid[0] * grid[1], lasting.blocks == (1.0, 1.0)
    depth, length = (1, 1) if whole else (slots, length_of(lasting.blocks, slots, rng))
    unions = np.zeros((plan.num_global, rng.rows, depth * cells), bool)
    for group, lane in enumerate(rng.fork("places").group(size)):
        for view in range(plan.num_global):
            for row in range(group * size, (group + 1) * size):
                mask = unions[view, row].reshape(depth, *grid)
                for _ in range(blocks):
                    top, left = int(lane.integers(grid[0] - h + 1)), int(lane.integers(grid[1] - w + 1))
                    start = 0 if whole else int(lane.integers(depth - length + 1))
                    mask[start : start + length, top : top + h, left : left + w] = True
                if exact:  # what a context may see, and the rest of the clip, each on its own
                    first = lasting.first_slots(depth)
                    for part in (mask[:first].reshape(-1), mask[first:].reshape(-1)):
                        _settle(lane, part, union_size(plan, part.size, blocks, lasting.blocks[1]))
    rows = unions.reshape(-1, depth, cells)
    return rows.repeat(slots // depth, 1).reshape(len(rows), -1)


def length_of(shares: tuple[float, float], slots: int, rng: RowRandom) -> int:
    """Return how many slots the blocks of a step last."""
    low, high = shares
    share = low + (high - low) * rng.fork("lengths").common().random()
    return min(max(int(slots * share), 1), slots)


def union_size(plan: ViewPlan, cells: int, blocks: int, lasting: float = 1.0) -> int:
    """Return how many cells a union covers: those of independent blocks of the largest share, one at least, not all.

    `lasting`: the share of the clip that a block lasts. None of no cells.
    """
    assert plan.mask_ratio is not None
    covered = round(cells * (1 - (1 - plan.mask_ratio[1] * lasting) ** blocks))
    return min(max(covered, 1), cells - 1) if cells else 0


def _settle(rng: np.random.Generator, mask: np.ndarray, wanted: int) -> None:
    """Hide or show random cells of a mask [cells] until `wanted` are hidden; writes into it."""
    more = wanted - int(mask.sum())
    pool = np.flatnonzero(mask if more < 0 else ~mask)
    mask[rng.permutation(pool)[: abs(more)]] = more > 0
