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

from multissl.contract.plans import ViewPlan
from multissl.modalities.masks.rows import Hiding, Place, Range, clamp, requests
from multissl.modalities.text.spans import GEOMETRIC, Kind, budget, hide, replace_hidden


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


def most_hidden(plan: ViewPlan, kind: Kind, length: int) -> int:
    """Return a number of hidden tokens that no row exceeds."""
    return 0 if plan.mask_ratio is None else budget(kind, length, plan.mask_ratio[1])


class Words(Hiding):
    """Tokens of texts, hidden by words or spans of them: rows [V, B, L] of ids, which may be hidden where `able`.

    `full` rows hold no padding. Where a replacement is given, `changed` are the ids with what the first mask hides
    replaced, as rows are drawn.
    """

    def __init__(
        self, spans: Spans, ids: np.ndarray, able: np.ndarray, starts: np.ndarray, full: bool,
        replacement: Replacement | None = None,
    ) -> None:  # fmt: skip
        self.spans, self.ids, self.able, self.starts, self.full = spans, ids, able, starts, full
        self.replacement, self.changed = replacement, ids.copy()
        self.tokens = ids.shape[-1]

    def ranges(self, plan: ViewPlan, rows: int) -> list[Range]:
        """Return the range of hidden places that each masked row of a group asks for."""
        assert plan.mask_ratio is not None
        low, high = plan.mask_ratio
        if low < high:
            return requests(plan, "random", self.tokens, rows)
        exact = budget(self.spans.kind, self.tokens, low)
        return [(exact, exact)] * int(rows * plan.mask_share)

    def most(self, high: float) -> int:
        """Return the most tokens that a row hides which asks for up to `high` places."""
        return clamp(high, self.tokens)

    def num_hidden(self, plan: ViewPlan, rows: int) -> int | None:
        """Return the hidden tokens of every row where all rows agree, else None."""
        assert plan.mask_ratio is not None
        fixed = self.full and plan.mask_share == 1 and plan.mask_ratio[0] == plan.mask_ratio[1]
        return budget(self.spans.kind, self.tokens, plan.mask_ratio[0]) if fixed else None

    def row(self, rng: np.random.Generator, place: Place, low: float, high: float) -> np.ndarray:
        """Return which places of one row are hidden, bool [tokens]."""
        at = place.view, place.sample
        request = clamp(rng.uniform(low, high), self.tokens)
        wanted = _fitting(request, int(self.able[at].sum()), self.tokens, self.full)
        if not wanted:
            return np.zeros(self.tokens, bool)
        kind, p, constant = self.spans
        hidden = hide(rng, kind, self.able[at], self.starts[at], wanted, p, constant)
        if self.replacement is not None and place.mask == 0:
            shares, mask, content = self.replacement
            self.changed[at] = replace_hidden(
                rng, self.ids[at], hidden, mask, content, shares, kind == "span"
            )
        return hidden


def _fitting(request: int, have: int, length: int, full: bool) -> int:
    """Return how many of `have` tokens a row hides: the request in a full row, else the same share of them."""
    wanted = request if full else max(math.ceil(request * have / length), 1)
    return max(min(wanted, have - 1), 0)
