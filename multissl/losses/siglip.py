"""SigLIP's sigmoid loss of all pairs.

Zhai et al., ICCV 2023, arXiv 2303.15343, algorithm 1.
Shapes: B samples on this rank, W ranks, P width.  Collectives: gathers of embeddings, with gradient.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from multissl.losses.blocks import by_anchors
from multissl.losses.nce import Relations, hits, mean_of, scores
from multissl.parallel.collectives import gather


def pair_sigmoid(
    a: Tensor,
    b: Tensor,
    scale: float | Tensor,
    bias: float | Tensor,
    relation: Relations,
    present: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of this rank's a [B, P] against b [B, P] of all ranks.

    Samples are left out that `present` (bool [2, B]: has a, has b) denies. bf16 inputs give the fp32 loss within
    0.02 * scale.
    """
    (pos, neg), keep = relation, None if present is None else present.all(0)
    if keep is not None:
        both = gather(keep.long()).bool() & keep[:, None]  # [B, W*B]
        pos, neg = pos & both, neg & both
    everyone = gather(b)  # [W*B, P]

    def table(a: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
        s = scores(a, everyone) * scale + bias
        each = (F.softplus(-s).masked_fill(~pos, 0) + F.softplus(s).masked_fill(~neg, 0)).sum(1)  # [B]
        return each, hits(s, pos, neg)

    each, found = by_anchors(table, a, pos, neg)
    return mean_of(each, keep), found
