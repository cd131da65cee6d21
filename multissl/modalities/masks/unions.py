"""One target that is the union of several blocks; the context is everything else: the masks of V-JEPA.

Bardes et al. 2024, arXiv 2404.08471: blocks are drawn in space and last as long as the clip.
Shapes: S slots of time, H, W cells of a slot, R rows, view-major, K places of the context, Q of the target.
State: none.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from multissl.contract.data import Mask
from multissl.contract.plans import ViewPlan
from multissl.modalities.masks.multiblock import as_masks, in_all_slots, sizes
from multissl.modalities.masks.rows import Grid, group_size
from multissl.random import RowRandom


def union_context(plan: ViewPlan, grid: Grid, slots: int, blocks: int, rng: RowRandom) -> tuple[Mask, ...]:
    """Return the mask that hides all but the context, and the target's, drawn on a grid for all its slots."""
    cells = grid[0] * grid[1]
    context, targets = (in_all_slots(p, slots, cells) for p in draw_union(plan, grid, blocks, rng))
    return as_masks(context, targets, slots * cells, targets.shape[-1])  # constant by construction


def draw_union(plan: ViewPlan, grid: Grid, blocks: int, rng: RowRandom) -> tuple[Tensor, Tensor]:
    """Return one target that is the union of `blocks` blocks, and a context that is the rest of the slot.

    Places in a slot, context [R, K] and targets [1, R, Q]. Unions differ in size: they are trimmed or topped up with
    random cells to the share that independent blocks cover, so that Q is the same in every row, rank and step. The
    public code cuts all lists of a batch to the shortest, the last tokens first.
    """
    if plan.num_masks != 1:
        raise ValueError(
            f"modality.union={blocks} makes one target of several blocks, the objective asks for {plan.num_masks}"
            " targets: set objective.targets=1, or modality.union=0"
        )
    unions = union_masks(plan, grid, blocks, rng, exact=True)
    context, target = (np.stack([np.flatnonzero(r) for r in part]) for part in (~unions, unions))
    return torch.from_numpy(context), torch.from_numpy(target)[None]


def union_masks(
    plan: ViewPlan,
    grid: Grid,
    blocks: int,
    rng: RowRandom,
    wanted_group: int = 1,
    exact: bool = False,
) -> np.ndarray:
    """Return unions of blocks of one size per step, bool [R, H*W]; `exact`: of `union_size` cells each."""
    size = group_size(wanted_group, rng)
    step = rng.fork("sizes").common()
    (h, w), _ = sizes(plan, "block", grid, step)
    cells = grid[0] * grid[1]
    wanted = union_size(plan, cells, blocks)
    unions = np.zeros((plan.num_global, rng.rows, cells), bool)
    for group, lane in enumerate(rng.fork("places").group(size)):
        for view in range(plan.num_global):
            for row in range(group * size, (group + 1) * size):
                mask = unions[view, row].reshape(grid)
                for _ in range(blocks):
                    top, left = int(lane.integers(grid[0] - h + 1)), int(lane.integers(grid[1] - w + 1))
                    mask[top : top + h, left : left + w] = True
                if exact:
                    _settle(lane, unions[view, row], wanted)
    return unions.reshape(-1, cells)


def union_size(plan: ViewPlan, cells: int, blocks: int) -> int:
    """Return how many cells a union covers: those of independent blocks of the largest share, one at least, not all."""
    assert plan.mask_ratio is not None
    return min(max(round(cells * (1 - (1 - plan.mask_ratio[1]) ** blocks)), 1), cells - 1)


def _settle(rng: np.random.Generator, mask: np.ndarray, wanted: int) -> None:
    """Hide or show random cells of a mask [cells] until `wanted` are hidden; writes into it."""
    more = wanted - int(mask.sum())
    pool = np.flatnonzero(mask if more < 0 else ~mask)
    mask[rng.permutation(pool)[: abs(more)]] = more > 0
