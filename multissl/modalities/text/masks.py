"""Masks for a batch of rows of tokens, and the replacement of what they hide.

Shares are spread evenly inside fixed groups of samples, as for grids (see masks). Full rows hide equally many tokens
where the share is fixed; a row with padding hides its share of the tokens it has, one of two tokens at least, and a row
of one token none.
Shapes: B samples of this rank, V views, R = V*B rows, view-major, L tokens, G samples of a group.  State: none.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from multissl.contract.data import Mask
from multissl.contract.plans import ViewPlan
from multissl.modalities.base import pack_masks
from multissl.modalities.masks import group_size, requests
from multissl.modalities.text.spans import GEOMETRIC, Kind, budget, hide, replace_hidden
from multissl.random import RowRandom


class Spans(NamedTuple):
    """How hidden tokens are chosen."""

    kind: Kind
    p: float = GEOMETRIC
    constant: int = 0
    """Words of a span, 0: drawn."""


class Replacement(NamedTuple):
    """What stands for hidden tokens: shares of the mask id and of random tokens; the rest stays."""

    shares: tuple[float, float]
    mask: int
    content: np.ndarray


def ranges(plan: ViewPlan, kind: Kind, length: int, rows: int) -> list[tuple[float, float]]:
    """The range of hidden tokens that each masked row of a group of `rows` full rows asks for."""
    assert plan.mask_ratio is not None
    low, high = plan.mask_ratio
    if low < high:
        return requests(plan, "random", length, rows)
    exact = budget(kind, length, low)
    return [(exact, exact)] * int(rows * plan.mask_share)


def most_hidden(plan: ViewPlan, kind: Kind, length: int) -> int:
    """No row hides more tokens than this."""
    return 0 if plan.mask_ratio is None else budget(kind, length, plan.mask_ratio[1])


def num_hidden(plan: ViewPlan, kind: Kind, length: int, full: bool) -> int | None:
    """Hidden tokens in every row where all rows agree, whatever is drawn, else None."""
    assert plan.mask_ratio is not None
    fixed = full and plan.mask_share == 1 and plan.mask_ratio[0] == plan.mask_ratio[1]
    return budget(kind, length, plan.mask_ratio[0]) if fixed else None


def draw_text_masks(
    plan: ViewPlan, spans: Spans, ids: np.ndarray, able: np.ndarray, starts: np.ndarray, group: int,
    full: bool, rng: RowRandom, replacement: Replacement | None = None,
) -> tuple[list[Mask], np.ndarray]:  # fmt: skip
    """`plan.num_masks` masks over rows [V, B, L] of ids, which may be hidden where they are `able`.

    Also the ids with what the first mask hides replaced, where a replacement is given. `full` rows hold no padding.
    """
    views, count, length = able.shape
    size = group_size(group, rng)
    asked = ranges(plan, spans.kind, length, views * size)
    if not asked and plan.mask_share > 0:
        raise ValueError(
            f"mask_share={plan.mask_share} of the {views * size} views of {size} samples masks none: choose a"
            f" batch_size with a larger divisor up to mask_group={group}, or mask_share=1"
        )
    upper = sum(_clamp(high, length) for _, high in asked) * (rng.rows // size)
    masks, changed = [], ids.copy()
    for number in range(plan.num_masks):
        hidden = np.zeros((views, count, length), bool)
        for lane, generator in enumerate(rng.fork(f"mask {number}").group(size)):
            rows = generator.permutation(views * size)[: len(asked)]
            for row, (low, high) in zip(rows.tolist(), asked, strict=True):
                at = row // size, lane * size + row % size
                request = _clamp(generator.uniform(low, high), length)
                wanted = _fitting(request, int(able[at].sum()), length, full)
                if not wanted:
                    continue
                hidden[at] = hide(
                    generator, spans.kind, able[at], starts[at], wanted, spans.p, spans.constant
                )
                if replacement is not None and number == 0:
                    changed[at] = replace_hidden(
                        generator, ids[at], hidden[at], replacement.mask, replacement.content,
                        replacement.shares, spans.kind == "span",
                    )  # fmt: skip
        flat: Tensor = torch.from_numpy(hidden.reshape(-1, length))
        masks.append(pack_masks(flat, upper))
    return masks, changed


def _clamp(count: float, tokens: int) -> int:
    return min(max(int(count), 1), tokens - 1)


def _fitting(request: int, have: int, length: int, full: bool) -> int:
    """What a row with `have` tokens to hide hides: the request in a full one, else the same share of its tokens."""
    wanted = request if full else max(math.ceil(request * have / length), 1)
    return max(min(wanted, have - 1), 0)
