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
    """The mean of values [N, ...]; of the kept ones of all ranks, so that the ranks' average is their mean.

    keep is bool, of the first dimensions of values. Every rank calls it, also one that keeps nothing.
    """
    if keep is None:
        return values.mean()
    keep = keep.reshape(*keep.shape, *[1] * (values.dim() - keep.dim())).expand_as(values)
    return values.masked_fill(~keep, 0).sum() / kept(keep, values.dtype)


def kept(keep: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """How many of some flags (bool, any shape) are set, on average over ranks; never 0, to divide by."""
    return sum_ranks(keep.sum().to(dtype)).clamp(min=1) / world()


@torch.no_grad()
def deviation(x: Tensor, keep: Tensor | None = None, correction: int = 1) -> Tensor:
    """The deviation of each channel over the rows of x [..., N, D], or the kept ones (bool [..., N]): [..., D]."""
    if keep is None:
        return x.std(-2, correction=correction)
    here = keep.to(x.dtype)[..., None]  # [..., N, 1]
    count = here.sum(-2)  # [..., 1]
    mean = (x * here).sum(-2) / count.clamp(min=1)
    squares = ((x - mean.unsqueeze(-2)) * here).square().sum(-2)
    return (squares / (count - correction).clamp(min=1)).sqrt()


@torch.no_grad()
def deviation_of_tokens(x: Tensor, keep: Tensor | None = None) -> Tensor:
    """The mean deviation of a channel over all tokens x [R, N, D], or the kept ones (bool [R, N])."""
    return deviation(at_least_fp32(x).flatten(0, 1), None if keep is None else keep.flatten()).mean()


@torch.no_grad()
def embedding_std(z: Tensor, keep: Tensor | None = None) -> Tensor:
    """How spread out embeddings z [..., B, P] are: the deviation of each dimension of the unit vectors, its mean over
    dimensions (and views), times sqrt(P). 1 on the whole sphere, 0 where all are one point; needs no labels.

    Of the kept ones alone where `keep` is given, bool [..., B].
    """
    unit = F.normalize(at_least_fp32(z), dim=-1)
    return deviation(unit, keep, correction=0).mean() * z.shape[-1] ** 0.5
