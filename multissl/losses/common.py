"""What several losses share: means over what is real on all ranks, and how spread out embeddings are.

Shapes: N values or rows of this rank, B samples on this rank, P projector width.
Collectives: a sum of counts where some rows are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.parallel.collectives import sum_ranks
from multissl.parallel.ranks import world
from multissl.precision import at_least_fp32


def mean_of(values: Tensor, keep: Tensor | None = None) -> Tensor:
    """The mean of values [N]; of the kept ones of all ranks (bool [N]), so that the ranks' average is their mean."""
    if keep is None:
        return values.mean()
    count = sum_ranks(keep.sum().to(values.dtype))
    return values.masked_fill(~keep, 0).sum() * world() / count.clamp(min=1)


@torch.no_grad()
def embedding_std(z: Tensor) -> Tensor:
    """How spread out embeddings z [..., B, P] are: the deviation of each dimension of the unit vectors, its mean over
    dimensions (and views), times sqrt(P). 1 on the whole sphere, 0 where all are one point; needs no labels.
    """
    unit = F.normalize(at_least_fp32(z), dim=-1)
    return unit.std(-2, correction=0).mean() * z.shape[-1] ** 0.5
