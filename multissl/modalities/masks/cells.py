"""Masks of the cells of a grid: blocks (DINOv2, iBOT, BEiT) and uniformly random ones (MAE).

Oquab et al., TMLR 2024, arXiv 2304.07193 (blocks); Bao et al., ICLR 2022, arXiv 2106.08254 (the block algorithm); He et
al., CVPR 2022, arXiv 2111.06377 (random masks of a constant count); Xie et al., CVPR 2022, arXiv 2111.09886 (random
squares of several tokens); Tong et al., NeurIPS 2022, arXiv 2203.12602 (VideoMAE's tubes: the same random cells are
hidden in every slot of time, else a hidden token is copied from its neighbour in time).
A grid of three axes has slots of time: a mask is drawn in space and repeated over them, except random, which hides
tokens one by one.
Shapes: R rows, S slots, H, W cells of a slot, N = S*H*W tokens in the order time, row, column.  State: none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from torch import Tensor

from multissl.contract.data import Mask
from multissl.contract.plans import ViewPlan
from multissl.modalities.masks.rows import Grid, Hiding, Place, Range, clamp, requests
from multissl.modalities.views import pack_masks

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
    """Return blocks that hide up to `request` tokens, bool [N]; never more, fewer where ten tries in a row fail.

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
    """Return the bits of one block that hides 1 to `room` tokens not yet in `hidden`, or 0 after ten tries."""
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
    """Return the bits of a block of h x w tokens at the first token of a grid with rows of `width`."""
    row = (1 << w) - 1
    return sum(row << (i * width) for i in range(h))


def _bits(hidden: int, tokens: int) -> np.ndarray:
    packed = np.frombuffer(hidden.to_bytes(-(-tokens // 8), "little"), np.uint8)
    return np.unpackbits(packed, count=tokens, bitorder="little").astype(bool)


def random_mask(rng: np.random.Generator, tokens: int, request: int) -> np.ndarray:
    """Return exactly `request` hidden tokens, uniformly at random, bool [N]."""
    hidden = np.zeros(tokens, bool)
    hidden[rng.permutation(tokens)[:request]] = True
    return hidden


class Cells(Hiding):
    """Cells of a grid of two or three axes, in squares of `square` x `square` that go together.

    Where the ratio is fixed every masked row hides the same number of tokens: blocks that fall short are
    topped up with random tokens, because an encoder that leaves hidden tokens out needs rows of one length.
    """

    def __init__(self, kind: str, grid: Sequence[int], square: int = 1, smallest: float = SMALLEST) -> None:
        self.kind, self.square, self.smallest = kind, square, smallest
        self.slots, (height, width) = plane_of(kind, grid)
        self.grid = (height // square, width // square)
        self.tokens = self.grid[0] * self.grid[1]
        self.each = square**2 * self.slots
        """Tokens of a place."""

    def ranges(self, plan: ViewPlan, rows: int) -> list[Range]:
        """Return the range of hidden places that each masked row of a group asks for."""
        return requests(plan, self.kind, self.tokens, rows)

    def most(self, high: float) -> int:
        """Return the most tokens that a row hides which asks for up to `high` places."""
        return clamp(high, self.tokens) * self.each

    def num_hidden(self, plan: ViewPlan, rows: int) -> int | None:
        """Return the hidden tokens of every row where all rows agree, else None."""
        places = num_hidden(plan, self.kind, self.tokens, rows)
        return None if places is None else places * self.each

    def row(self, rng: np.random.Generator, place: Place, low: float, high: float) -> np.ndarray:
        """Return which places of one row are hidden, bool [tokens]."""
        request = clamp(rng.uniform(low, high), self.tokens)
        return hide_cells(rng, self.kind, self.grid, request, low == high, self.smallest)

    def pack(self, hidden: Tensor, size: int) -> Mask:
        """Return the mask over all tokens."""
        squares = hidden.unflatten(1, self.grid).repeat_interleave(self.square, 1)
        return pack_masks(squares.repeat_interleave(self.square, 2).flatten(1).repeat(1, self.slots), size)


def plane_of(kind: str, grid: Sequence[int]) -> tuple[int, Grid]:
    """Return over how many slots a mask is repeated, and the grid [H, W] that it is drawn on."""
    if len(grid) == 2:
        return 1, (grid[0], grid[1])
    slots, height, width = grid
    return (1, (slots * height, width)) if kind == "random" else (slots, (height, width))


def num_hidden(plan: ViewPlan, kind: str, tokens: int, rows: int, square: int = 1) -> int | None:
    """Return the hidden tokens of every row where all rows agree, else None; known without looking at a mask."""
    ranges = requests(plan, kind, tokens // square**2, rows)
    fixed = len(ranges) == rows and len(set(ranges)) == 1 and ranges[0][0] == ranges[0][1]
    return int(ranges[0][0]) * square**2 if fixed else None


def hidden_each(plan: ViewPlan, kind: str, grid: Sequence[int], rows: int) -> int | None:
    """Return the hidden tokens of every row of a grid where all rows agree, else None."""
    return Cells(kind, grid).num_hidden(plan, rows)


def hide_cells(
    rng: np.random.Generator, kind: str, grid: Grid, request: int, exact: bool, smallest: float = SMALLEST
) -> np.ndarray:
    """Return one row's mask, bool [H*W]; `exact`: blocks that fall short are topped up with random cells."""
    if kind != "block":
        return random_mask(rng, grid[0] * grid[1], request)
    hidden = block_mask(rng, grid, request, smallest=smallest)
    if exact:
        kept = np.flatnonzero(~hidden)
        hidden[rng.permutation(kept)[: request - (len(hidden) - len(kept))]] = True
    return hidden
