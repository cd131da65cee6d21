"""Drop path that computes only the rows it keeps, the same for a batch in one piece, in chunks and on ranks.

Every residual branch leaves out a share of its rows (Huang et al., ECCV 2016, arXiv 1603.09382); as in DINOv2
(arXiv 2304.07193, section 4) rows that are left out are not computed. DINOv2 draws a subset of the rows at hand, so
the share depends on how many there are: of 2 rows, 10 % leaves out one. Here the rows of a view are drawn
systematically over the batch of all ranks: with a share q to keep and one number u in [0, 1) for a branch and view,
the row at place i is kept where floor((i + 1) q + u) exceeds floor(i q + u). Each row is kept with probability q, a run
of n places holds floor(n q) or ceil(n q) kept rows, and which samples stand where is random already. So any piece of
the batch knows its rows' part of the draw and keeps a number of rows that is fixed but for one, which is computed and
weighs 0 where it is not kept: shapes stay the same at every step.
Shapes: group i has V_i views of B_i samples, R_i = V_i * B_i rows of N_i tokens; S tokens of a subset.
State: none; numbers come from torch's generator of the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from multissl.layers.kernels.base import Kernel, Layout, layout

UNIT = 1 << 20
"""Shares and draws are whole numbers of 1 / UNIT, so that every piece of a batch computes the same flags exactly."""


class Subset(NamedTuple):
    """The rows of every group that one residual branch is computed on."""

    layout: Layout
    tokens: Tensor
    """int64 [S], where their tokens lie among the packed ones."""
    kept: Tensor
    """float32 [S], 1, or 0 on the tokens of a row that only fills the shape."""
    scale: float
    """1 / the share that is kept."""


class GroupRows(NamedTuple):
    """Where a group's samples stand, and what was drawn for its views."""

    place: Tensor
    """int64 [B_i]"""
    draw: Tensor
    """int64 [branches, V_i], 0 to UNIT - 1"""


def rows_of_groups(
    sizes: Sequence[tuple[int, int]], places: Sequence[Tensor | None], branches: int, device: torch.device
) -> list[GroupRows]:
    """Draw a number for every branch and view of groups (R_i, N_i); without places a group is a batch of its own."""
    groups: list[GroupRows] = []
    for (rows, _), place in zip(sizes, tuple(places) or (None,) * len(sizes), strict=True):
        place = torch.arange(rows, device=device) if place is None else place
        if rows % len(place):
            raise ValueError(f"{rows} rows are no whole number of views of {len(place)} samples")
        groups.append(GroupRows(place, torch.randint(UNIT, (branches, rows // len(place)), device=device)))
    return groups


def draw_subsets(
    groups: Sequence[GroupRows], branches: slice, rate: float, packing: Layout, kernel: Kernel
) -> list[Subset]:
    """Return the subsets of some branches that leave out a share `rate` of the rows of groups that `packing` packs."""
    share = int((1 - rate) * UNIT)
    rows: list[Tensor] = []  # by group, int64 [branches, r]
    kept: list[Tensor] = []  # by group, bool [branches, r]
    tokens: list[Tensor] = []  # by group, int64 [branches, r * N]
    offset = 0
    for group, (r, n) in zip(groups, packing.sizes, strict=True):
        chosen, flags = _rows(group.place, group.draw[branches], share)
        rows.append(chosen)
        kept.append(flags)
        places = torch.arange(offset, offset + n, device=chosen.device)
        tokens.append((chosen[:, :, None] * n + places).flatten(1))
        offset += r * n
    sizes = [(chosen.shape[1], n) for chosen, (_, n) in zip(rows, packing.sizes, strict=True)]
    base = layout(sizes, rows[0].device, kernel, packing.causal)
    weights = torch.cat([f.repeat_interleave(n, 1) for f, (_, n) in zip(kept, sizes, strict=True)], 1).float()
    index = torch.cat(tokens, 1)
    subsets: list[Subset] = []
    for i in range(len(index)):
        masks = tuple(None if m is None else m[each[i]] for m, each in zip(packing.masks, rows, strict=True))
        rotation = packing.rotation and packing.rotation.select(index[i])
        part = base._replace(masks=masks, rotation=rotation, steps=packing.steps)
        subsets.append(Subset(part, index[i], weights[i], UNIT / share))
    return subsets


def _rows(place: Tensor, draw: Tensor, share: int) -> tuple[Tensor, Tensor]:
    """Return rows [branches, r], kept ones first in every view, and whether each is kept; share of UNIT is kept."""
    samples = len(place)
    most = -(-samples * share // UNIT)  # ceil: no run of so many places holds more
    reach = place * share + draw[:, :, None]  # [branches, V, B]
    flags = (reach + share) // UNIT > reach // UNIT
    order = flags.int().argsort(dim=2, descending=True, stable=True)[:, :, :most]
    view = torch.arange(draw.shape[1], device=place.device)[:, None] * samples
    return (view + order).flatten(1), flags.gather(2, order).flatten(1)


# No token is in a subset twice, so what torch would add up with atomic operations is written once.


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.rows = len(x)
        return x.index_select(0, tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (tokens,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.rows, grads[0].shape[1]).index_copy_(0, tokens, grads[0]), None


class _AddTo(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, part: Tensor, out: Tensor, tokens: Tensor, kept: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(tokens, kept)
        ctx.scale = scale
        weighted = out * kept[:, None].to(
            out.dtype
        )  # by 1 or 0; the scale would be rounded to half precision
        return x.index_copy(0, tokens, torch.add(part, weighted, alpha=scale))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, None, None, None]:
        tokens, kept = ctx.saved_tensors
        mine = grads[0].index_select(0, tokens) * kept[:, None].to(grads[0].dtype)
        return grads[0], None, mine * ctx.scale, None, None, None


def select(x: Tensor, tokens: Tensor) -> Tensor:
    """Return the tokens [S, D] of a subset, int64 [S] without repeats, of packed tokens [T, D]."""
    return cast(Tensor, _Select.apply(x, tokens))


def add_to(x: Tensor, part: Tensor, out: Tensor, subset: Subset) -> Tensor:
    """Return packed tokens x [T, D] with a branch's output [S, D] added to those of a subset, scaled.

    `part` is what `select` gave of x, so that sums are written where they belong without reading x again.
    """
    return cast(Tensor, _AddTo.apply(x, part.detach(), out, subset.tokens, subset.kept, subset.scale))
