"""Which tokens of a view are hidden: blocks (DINOv2, iBOT, BEiT) and uniformly random ones (MAE).

Oquab et al., TMLR 2024, arXiv 2304.07193 (blocks, stratified ratios); Bao et al., ICLR 2022, arXiv 2106.08254
(the block algorithm); He et al., CVPR 2022, arXiv 2111.06377 (random masks of a constant count); Xie et al., CVPR
2022, arXiv 2111.09886 (random squares of several tokens).
Masks are drawn inside fixed groups of samples from generators that depend on the group alone, so any number
of ranks draws the same ones, and the padded number of hidden tokens M is the same every step.
Shapes: B samples of this rank, V views, R = V*B rows, view-major, N = H*W tokens, G samples of a group.
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Literal

import numpy as np
import torch

from multissl.contract.data import Mask
from multissl.contract.plans import ViewPlan
from multissl.modalities.base import pack_masks
from multissl.random import RowRandom

Kind = Literal["block", "random"]
Drawn = Kind | Literal["tube"]
"""tube: random cells of a slot of time, repeated over all slots, counted as VideoMAE does."""
Grid = tuple[int, int]

TRIES = 10
ASPECT = (0.3, 1 / 0.3)
"""Height over width of a block."""
SMALLEST = 4.0
"""Area at which the range of a block's area starts, in tokens."""


def block_mask(
    rng: np.random.Generator,
    grid: Grid,
    request: float,
    largest: float | None = None,
    smallest: float = SMALLEST,
) -> np.ndarray:
    """Blocks that hide up to `request` tokens: bool [N]. Never more; fewer where ten tries in a row fail.

    A block's area is uniform between `smallest` and what is left of the request (at most `largest`, default
    half of the tokens), its aspect log-uniform; blocks as high or as wide as the grid are not drawn.
    """
    cap = grid[0] * grid[1] // 2 if largest is None else largest
    hidden = count = 0  # a set of tokens is the bits of one integer: tests and unions are single operations
    while count < request:
        new = place_block(rng, grid, hidden, min(request - count, cap), smallest)
        if not new:
            break
        hidden, count = hidden | new, count + (new & ~hidden).bit_count()
    return _bits(hidden, grid[0] * grid[1])


def place_block(rng: np.random.Generator, grid: Grid, hidden: int, room: float, smallest: float) -> int:
    """The bits of one block that hides 1 to `room` tokens not yet in `hidden`, or 0 after ten tries."""
    height, width = grid
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    for area_draw, aspect_draw, row_draw, column_draw in rng.random((TRIES, 4)).tolist():
        area = smallest + (room - smallest) * area_draw
        aspect = math.exp(low + (high - low) * aspect_draw)
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h >= height or w >= width:
            continue
        row, column = int(row_draw * (height - h + 1)), int(column_draw * (width - w + 1))
        block = _block(h, w, width) << (row * width + column)
        if 0 < (block & ~hidden).bit_count() <= room:
            return block
    return 0


@cache
def _block(h: int, w: int, width: int) -> int:
    """The bits of a block of h x w tokens at the first token of a grid `width` wide."""
    row = (1 << w) - 1
    return sum(row << (i * width) for i in range(h))


def _bits(hidden: int, tokens: int) -> np.ndarray:
    packed = np.frombuffer(hidden.to_bytes(-(-tokens // 8), "little"), np.uint8)
    return np.unpackbits(packed, count=tokens, bitorder="little").astype(bool)


def random_mask(rng: np.random.Generator, tokens: int, request: int) -> np.ndarray:
    """Exactly `request` tokens hidden, uniformly at random: bool [N]."""
    hidden = np.zeros(tokens, bool)
    hidden[rng.permutation(tokens)[:request]] = True
    return hidden


def group_size(wanted: int, rng: RowRandom) -> int:
    """G: the largest divisor of the global batch that is not above `wanted`; every rank owns whole groups."""
    size = next(g for g in range(min(wanted, rng.total), 0, -1) if rng.total % g == 0)
    if rng.first % size or rng.rows % size:
        fits = math.gcd(size, math.gcd(rng.first, rng.rows))
        raise ValueError(
            f"mask_group={wanted}: masks are drawn for groups of {size} of the {rng.total} samples of a step,"
            f" and a rank with {rng.rows} of them cuts a group in two; set mask_group={fits}, or a batch_size"
            " that gives each rank whole groups"
        )
    return size


def requests(plan: ViewPlan, kind: Drawn, tokens: int, rows: int) -> list[tuple[float, float]]:
    """The range of hidden tokens that each masked row of a group of `rows` asks for; other rows hide nothing.

    The ratio range is cut into as many intervals as rows are masked, one for each (stratified). A fixed ratio
    of random masks keeps int(N * (1 - ratio)) tokens, as MAE does. At least one token is hidden and one is
    kept.
    """
    assert plan.mask_ratio is not None
    low, high = plan.mask_ratio
    masked = int(rows * plan.mask_share)
    if low == high:
        exact = tokens - int(tokens * (1 - low)) if kind == "random" else int(tokens * low)
        return [(_clamp(exact, tokens), _clamp(exact, tokens))] * masked
    edges = np.linspace(low, high, masked + 1) * tokens
    return list(itertools.pairwise(edges.tolist()))


def _clamp(count: float, tokens: int) -> int:
    return min(max(int(count), 1), tokens - 1)


def num_hidden(plan: ViewPlan, kind: Drawn, tokens: int, rows: int, square: int = 1) -> int | None:
    """Hidden tokens in every row where all rows agree, else None. Known without looking at a mask."""
    ranges = requests(plan, kind, tokens // square**2, rows)
    fixed = len(ranges) == rows and len(set(ranges)) == 1 and ranges[0][0] == ranges[0][1]
    return int(ranges[0][0]) * square**2 if fixed else None


def draw_masks(
    plan: ViewPlan, kind: Drawn, grid: Grid, wanted_group: int, rng: RowRandom, square: int = 1
) -> list[Mask]:
    """`plan.num_masks` masks for the global views of this rank's samples, each over R = num_global * B rows.

    Masks are drawn on a grid of squares of `square` x `square` tokens, which are hidden or kept together (SimMIM).

    Where the ratio is fixed every masked row hides the same number of tokens: blocks that fall short are
    topped up with random tokens, because an encoder that leaves hidden tokens out needs rows of one length.
    """
    grid = (grid[0] // square, grid[1] // square)
    tokens, views = grid[0] * grid[1], plan.num_global
    size = group_size(wanted_group, rng)
    ranges = requests(plan, kind, tokens, views * size)
    if not ranges and plan.mask_share > 0:
        raise ValueError(
            f"mask_share={plan.mask_share} of the {views * size} views of {size} samples masks none: choose a"
            f" batch_size with a larger divisor up to mask_group={wanted_group}, or mask_share=1"
        )
    upper = sum(_clamp(high, tokens) for _, high in ranges) * (rng.rows // size)
    masks = []
    for number in range(plan.num_masks):
        hidden = np.zeros((views, rng.rows // size, size, tokens), bool)
        for group, generator in enumerate(rng.fork(f"mask {number}").group(size)):
            rows = generator.permutation(views * size)[: len(ranges)]
            for row, (low, high) in zip(rows.tolist(), ranges, strict=True):
                request = _clamp(generator.uniform(low, high), tokens)
                hidden[row // size, group, row % size] = _one(generator, kind, grid, request, low == high)
        fine = hidden.reshape(-1, *grid).repeat(square, 1).repeat(square, 2)  # [R, H, W]
        masks.append(pack_masks(torch.from_numpy(fine.reshape(len(fine), -1)), upper * square**2))
    return masks


def _one(rng: np.random.Generator, kind: Drawn, grid: Grid, request: int, exact: bool) -> np.ndarray:
    """One row's mask, bool [N]."""
    if kind != "block":
        return random_mask(rng, grid[0] * grid[1], request)
    hidden = block_mask(rng, grid, request)
    if exact:
        kept = np.flatnonzero(~hidden)
        hidden[rng.permutation(kept)[: request - (len(hidden) - len(kept))]] = True
    return hidden
