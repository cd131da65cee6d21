"""Masks of clips: tubes and blocks that last as long as the clip, random tokens, and unions of blocks.

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602): the same random cells are hidden in every slot of time, else a
hidden token is copied from its neighbor in time. V-JEPA (Bardes et al. 2024, arXiv 2404.08471): a target is the union
of several blocks of full duration, the context is everything else.
Every mask is drawn in space and repeated over the slots, except mask=random, which hides tokens one by one.
Shapes: S slots of time, H, W cells of a slot, N = S*H*W tokens in the order time, row, column, R rows, view-major,
K tokens of the context, T targets of Q tokens.  State: none.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from multissl.contract.data import Mask
from multissl.contract.plans import ViewPlan
from multissl.modalities.base import pack_masks
from multissl.modalities.masks import draw_masks, group_size, num_hidden
from multissl.modalities.multiblock import as_masks, draw_multiblock, largest_target, sizes
from multissl.random import RowRandom

Hiding = Literal["tube", "block", "random"]
Grid3 = tuple[int, int, int]


def draw_clip_masks(
    plan: ViewPlan, kind: Hiding, grid: Grid3, wanted_group: int, rng: RowRandom
) -> list[Mask]:
    """`plan.num_masks` masks over R = num_global * B rows; M is the same every step."""
    slots, height, width = grid
    if kind == "random":
        return draw_masks(plan, "random", (slots * height, width), wanted_group, rng)
    flat = draw_masks(plan, kind, (height, width), wanted_group, rng)
    return [pack_masks(m.hidden.repeat(1, slots), len(m.index) * slots) for m in flat]


def hidden_each(plan: ViewPlan, kind: Hiding, grid: Grid3, rows: int) -> int | None:
    """Hidden tokens in every row where all rows agree, else None."""
    slots, height, width = grid
    if kind == "random":
        return num_hidden(plan, "random", slots * height * width, rows)
    found = num_hidden(plan, kind, height * width, rows)
    return None if found is None else found * slots


def draw_places(
    plan: ViewPlan, kind: Hiding, grid: Grid3, union: int, rng: RowRandom, wanted_group: int = 1
) -> tuple[Tensor, Tensor]:
    """Places of the context [R, K] and of the targets [T, R, Q], each in ascending order."""
    slots, height, width = grid
    if union and kind == "block":
        context, targets = draw_union(plan, (height, width), union, rng, wanted_group)
    elif kind == "random":
        return draw_multiblock(plan, "random", (slots * height, width), rng)
    else:
        context, targets = draw_multiblock(
            plan, "block" if kind == "block" else "random", (height, width), rng
        )
    return repeated(context, slots, height * width), repeated(targets, slots, height * width)


def repeated(places: Tensor, slots: int, cells: int) -> Tensor:
    """Places in one slot [..., Q] as those of all slots [..., slots*Q]."""
    later = torch.arange(slots)[:, None] * cells
    return (places[..., None, :] + later).flatten(-2)


def place_masks(
    context: Tensor, targets: Tensor, plan: ViewPlan, kind: Hiding, grid: Grid3, union: int
) -> tuple[Mask, ...]:
    """The masks of `draw_places`, the context's first."""
    slots, height, width = grid
    if kind == "random":
        largest = largest_target(plan, "random", (slots * height, width))
    elif union and kind == "block":
        largest = targets.shape[-1]  # constant by construction
    else:
        largest = largest_target(plan, "block" if kind == "block" else "random", (height, width)) * slots
    return as_masks(context, targets, slots * height * width, largest)


def draw_union(
    plan: ViewPlan, grid: tuple[int, int], blocks: int, rng: RowRandom, wanted_group: int = 1
) -> tuple[Tensor, Tensor]:
    """One target that is the union of `blocks` blocks; the context is the rest of the slot.

    Places in a slot, context [R, K] and targets [1, R, Q]. Unions differ in size: they are trimmed or topped up with
    random cells to the share that independent blocks cover, so that Q is the same in every row, rank and step. The
    public code cuts all lists of a batch to the shortest, the last tokens first.
    """
    if plan.num_masks != 1:
        raise ValueError(
            f"modality.union={blocks} makes one target of several blocks, the objective asks for {plan.num_masks}"
            " targets: set objective.targets=1, or modality.union=0"
        )
    unions = union_masks(plan, grid, blocks, rng, wanted_group, exact=True)
    context, target = (np.stack([np.flatnonzero(r) for r in part]) for part in (~unions, unions))
    return torch.from_numpy(context), torch.from_numpy(target)[None]


def union_masks(
    plan: ViewPlan,
    grid: tuple[int, int],
    blocks: int,
    rng: RowRandom,
    wanted_group: int = 1,
    exact: bool = False,
) -> np.ndarray:
    """Unions of blocks of one size a step, bool [R, H*W]; `exact`: of `union_size` cells each."""
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
    """Cells that a union covers: what independent blocks of the largest share would, at least one, never all."""
    assert plan.mask_ratio is not None
    return min(max(round(cells * (1 - (1 - plan.mask_ratio[1]) ** blocks)), 1), cells - 1)


def _settle(rng: np.random.Generator, mask: np.ndarray, wanted: int) -> None:
    """Hide or show random cells of a mask [cells] until `wanted` are hidden; writes into it."""
    more = wanted - int(mask.sum())
    pool = np.flatnonzero(mask if more < 0 else ~mask)
    mask[rng.permutation(pool)[: abs(more)]] = more > 0
