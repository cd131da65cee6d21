"""Tables of all anchors and all candidates, made a block of anchors at a time.

Shapes: Nq anchors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK = 512
"""Anchors whose scores are held at once."""


def by_anchors(
    table: Callable[..., tuple[Tensor, Tensor]], anchors: Tensor, pos: Tensor, neg: Tensor
) -> tuple[Tensor, Tensor]:
    """The losses [Nq] and the accuracy of anchors [Nq, P] with their positives and negatives, bool [Nq, Nk].

    `table` gives losses and hits, [Nq] each; it is asked for `BLOCK` anchors at a time. A dozen tables of scores live
    until the backward pass. Of many anchors they are made again there, a block at a time, so that memory grows with the
    candidates and not with their square.
    """
    if len(anchors) <= BLOCK:
        losses, hits = table(anchors, pos, neg)
    else:
        blocks = zip(*(x.split(BLOCK) for x in (anchors, pos, neg)), strict=True)
        found = [checkpoint(table, *b, use_reentrant=False, preserve_rng_state=False) for b in blocks]
        losses, hits = (torch.cat(parts) for parts in zip(*found, strict=True))
    return losses, found_share(hits, pos)


def found_share(hits: Tensor, pos: Tensor) -> Tensor:
    """Hits, bool [Nq], over the anchors that have a positive, bool [Nq, Nk]."""
    return hits.sum() / pos.any(1).sum().clamp(min=1)
