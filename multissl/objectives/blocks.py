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


def by_anchors(table: Callable[..., tuple[Tensor, Tensor]], *anchors: Tensor) -> tuple[Tensor, Tensor]:
    """`table` of anchors [Nq, ...], which gives their losses and hits, [Nq] each, `BLOCK` anchors at a time.

    A dozen tables of scores live until the backward pass. Of many anchors they are made again there, a block at a time,
    so that memory grows with the candidates and not with their square.
    """
    if len(anchors[0]) <= BLOCK:
        return table(*anchors)
    blocks = zip(*(a.split(BLOCK) for a in anchors), strict=True)
    found = [checkpoint(table, *b, use_reentrant=False, preserve_rng_state=False) for b in blocks]
    losses, right = zip(*found, strict=True)
    return torch.cat(losses), torch.cat(right)
