"""Several targets and one context or more, without a common token: the masks of I-JEPA.

Assran et al., CVPR 2023, arXiv 2301.08243, section 3: targets are blocks of one size per step, placed for each sample;
a context is a larger square block without the targets' tokens. Where tokens form no grid, targets and context are
random tokens instead of blocks. Counts are the same in every row and on every rank: targets are whole, and a context
is trimmed at random to the constant number of tokens that independent targets of the largest share leave of the
smallest context, (1 - share)^T; rows with fewer are drawn again.
`reference` draws as the public code does: one uniform number for a block's size and aspect, blocks that never touch the
last row or column and never span the grid, and contexts cut to the shortest of the batch, the last tokens first. Those
counts depend on the rows of a rank and change from step to step.
Shapes: B samples of this rank, V views, R = V*B rows, view-major, N tokens, C contexts of K, T targets of Q tokens.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Mask
from multissl.contract.plans import ViewPlan
from multissl.modalities.masks.rows import Grid, Kind
from multissl.random import RowRandom

TRIES = 20
FEWEST = 10
"""Tokens that a context of the reference keeps at least, where the grid has so many."""
Size = tuple[int, int]


def context_masks(
    plan: ViewPlan, kind: Kind, grid: Grid, slots: int, rng: RowRandom, reference: bool = False
) -> tuple[Mask, ...]:
    """Return the masks that hide all but a context, then those of the targets, drawn on a grid for all its slots."""
    cells, largest = grid[0] * grid[1], largest_target(plan, kind, grid)
    places = draw_multiblock(plan, kind, grid, rng, reference)
    contexts, targets = (in_all_slots(p, slots, cells) for p in places)
    return as_masks(contexts, targets, slots * cells, largest * slots)


def in_all_slots(places: Tensor, slots: int, cells: int) -> Tensor:
    """Return places in one slot [..., Q] as those of all slots [..., slots*Q]."""
    later = torch.arange(slots)[:, None] * cells
    return (places[..., None, :] + later).flatten(-2)


def draw_multiblock(
    plan: ViewPlan, kind: Kind, grid: Grid, rng: RowRandom, reference: bool = False, fewest: int = FEWEST
) -> tuple[Tensor, Tensor]:
    """Return the places of the contexts, int64 [C, R, K], and of the targets, int64 [T, R, Q], in ascending order.

    `fewest`: tokens that a context of the reference keeps at least.
    """
    assert plan.mask_ratio is not None
    assert plan.context_ratio is not None
    step = rng.fork("sizes").common()
    lanes = rng.fork("places").group(1)
    target, around = sizes(plan, kind, grid, step, reference)
    tokens = grid[0] * grid[1]
    keep = min(fewest, tokens // 2) if reference else context_size(plan, kind, grid)
    rows = [
        _row(lane, kind, grid, target, around, plan, keep, reference)
        for _ in range(plan.num_global)
        for lane in lanes
    ]
    if reference:
        keep = min(len(free) for each, _ in rows for free in each)
        contexts = [[free[:keep] for free in each] for each, _ in rows]
    else:
        contexts = [
            [_some(lanes[i % len(lanes)], free, keep) for free in each] for i, (each, _) in enumerate(rows)
        ]
    targets = np.stack([blocks for _, blocks in rows], 1)  # [T, R, Q]
    return torch.from_numpy(np.stack(contexts, 1)), torch.from_numpy(targets)


def sizes(
    plan: ViewPlan, kind: Kind, grid: Grid, rng: np.random.Generator, reference: bool = False
) -> tuple[Size, Size]:
    """Return height and width of a step's targets and of its context block; 1 and a count for random tokens."""
    assert plan.mask_ratio is not None
    assert plan.context_ratio is not None
    share, aspect, context = rng.random(3)
    aspect = share if reference else aspect
    found = []
    parts = (plan.mask_ratio, share, plan.target_aspect), (plan.context_ratio, context, (1.0, 1.0))
    for (low, high), at, ratios in parts:
        area = max(int(grid[0] * grid[1] * (low + (high - low) * at)), 1)
        if kind == "random":
            found.append((1, area))
            continue
        ratio = ratios[0] + (ratios[1] - ratios[0]) * aspect
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if not reference:  # where the grid cuts one side, the other takes what is left of the area
            h, w = (grid[0], round(area / grid[0])) if h > grid[0] else (h, w)
            h, w = (round(area / grid[1]), grid[1]) if w > grid[1] else (h, w)
        edge = 1 if reference else 0
        found.append((min(max(h, 1), max(grid[0] - edge, 1)), min(max(w, 1), max(grid[1] - edge, 1))))
    (h, w), around = found
    while h * w >= grid[0] * grid[1]:  # something has to be left for the context
        h, w = (h - 1, w) if h > w else (h, w - 1)
    return (h, w), around


def largest_target(plan: ViewPlan, kind: Kind, grid: Grid) -> int:
    """Return a number of tokens that no target exceeds."""
    assert plan.mask_ratio is not None
    tokens = grid[0] * grid[1]
    area = max(int(tokens * plan.mask_ratio[1]), 1)
    if kind == "random":
        return min(area, tokens - 1)
    sides = [
        (math.sqrt(area * a) + 0.5) * (math.sqrt(area / a) + 0.5) for a in plan.target_aspect
    ]  # sides are rounded; the product is largest at the ends
    return max(min(int(max(sides)), tokens - 1), 1)


def context_size(plan: ViewPlan, kind: Kind, grid: Grid) -> int:
    """Return K, the tokens that every context shows."""
    assert plan.mask_ratio is not None
    assert plan.context_ratio is not None
    tokens = grid[0] * grid[1]
    left = int(tokens * plan.context_ratio[0] * (1 - plan.mask_ratio[1]) ** plan.num_masks)
    return min(max(left, 1), tokens - largest_target(plan, kind, grid))


def _row(
    rng: np.random.Generator, kind: Kind, grid: Grid, target: Size, around: Size, plan: ViewPlan, keep: int,
    reference: bool,
) -> tuple[list[np.ndarray], np.ndarray]:  # fmt: skip
    """Return one row's free tokens of each context, `keep` or more, and its targets [T, Q]."""
    tokens = grid[0] * grid[1]
    blocks = np.empty((0, 0), np.int64)
    for _ in range(TRIES):
        blocks = np.stack([_place(rng, kind, grid, target, reference) for _ in range(plan.num_masks)])
        contexts = []
        for _ in range(plan.num_contexts):
            free = np.zeros(tokens, bool)
            free[_place(rng, kind, grid, around, reference)] = True
            free[blocks.reshape(-1)] = False
            contexts.append(np.flatnonzero(free))
        if min(map(len, contexts)) >= keep:
            return contexts, blocks
    # All targets in one place, and everything else is context: it always fits.
    blocks = blocks[:1].repeat(plan.num_masks, 0)
    free = np.ones(tokens, bool)
    free[blocks[0]] = False
    return [np.flatnonzero(free)] * plan.num_contexts, blocks


def _place(rng: np.random.Generator, kind: Kind, grid: Grid, size: Size, reference: bool) -> np.ndarray:
    """Return the tokens of one block, or of as many random ones, in ascending order."""
    if kind == "random":
        return _some(rng, np.arange(grid[0] * grid[1]), size[0] * size[1])
    (height, width), (h, w), end = grid, size, 0 if reference else 1
    top, left = (int(rng.integers(max(n + end, 1))) for n in (height - h, width - w))
    return ((top + np.arange(h))[:, None] * width + left + np.arange(w)).reshape(-1)


def _some(rng: np.random.Generator, of: np.ndarray, count: int) -> np.ndarray:
    return np.sort(rng.permutation(of)[:count])


def as_masks(contexts: Tensor, targets: Tensor, tokens: int, largest: int) -> tuple[Mask, ...]:
    """Return the masks of contexts [C, R, K], which hide all else, then those of targets [T, R, Q].

    Counts come from the shapes alone. Targets' indices are padded to R * largest, the same every step; those of
    contexts are not padded.
    """
    rows, left = contexts.shape[1], tokens - contexts.shape[2]
    nothing = torch.zeros(rows, tokens, dtype=torch.bool, device=contexts.device)
    parts = []
    for context in contexts:
        shown = nothing.scatter(1, context, True)
        order = shown.to(torch.uint8).argsort(dim=1, stable=True)[:, :left]  # [R, N-K]
        parts.append((~shown, order, rows * left))
    for target in targets:
        hidden = nothing.scatter(1, target, True)
        parts.append((hidden, target, max(rows * largest, target.numel())))
    first = torch.arange(rows, device=contexts.device)[:, None] * tokens  # [R, 1]
    masks = []
    for hidden, at, size in parts:
        index = (first + at).flatten()
        weight = torch.full_like(index, 1.0 / max(at.shape[1], 1), dtype=torch.float32)
        room = (0, size - len(index))
        padded = {"index": F.pad(index, room), "weight": F.pad(weight, room)}
        masks.append(Mask(hidden=hidden, num_hidden=at.shape[1], **padded))
    return tuple(masks)
