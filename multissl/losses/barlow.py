"""Barlow Twins' terms: the cross-correlation of the features of two views, and its distance from the identity.

Zbontar et al., ICML 2021, arXiv 2103.03230, equation 1; standardized as in the official code, with biased variance and
1e-5 under the root. lightly standardizes each rank by its own rows (`own_statistics`), which makes the loss depend on
the number of ranks.
Shapes: B samples on this rank, P projector width.  Collectives: sums over ranks, with gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multissl.parallel.collectives import sum_ranks
from multissl.parallel.ranks import world
from multissl.precision import at_least_fp32


def cross_correlation(
    a: Tensor, b: Tensor, present: Tensor | None = None, own_statistics: bool = False
) -> Tensor:
    """The correlations [P, P] of the features of a with those of b, both [B, P], over the rows of all ranks.

    present bool [B] leaves rows out; `own_statistics` standardizes by this rank's rows alone. In fp32 at least: of
    inputs rounded to bf16 the correlations agree to 0.01 with those of the inputs themselves.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = at_least_fp32(a), at_least_fp32(b)
        here = a.new_ones(len(a), 1) if present is None else present.to(a.dtype)[:, None]  # [B, 1]
        count = sum_ranks(here.sum())
        if present is None and len(a) * world() < 2:
            raise ValueError("barlow needs 2 or more samples per step, got 1: raise batch_size")
        count = count.clamp(min=1)
        mine = here.sum().clamp(min=1) if own_statistics else count
        unit = [standardize(x, here, mine, own_statistics) for x in (a, b)]
        return sum_ranks(unit[0].T @ unit[1]) / count


def standardize(x: Tensor, here: Tensor, count: Tensor, own: bool) -> Tensor:
    """Rows x [B, P] with mean 0 and biased variance 1 over the `count` rows that are `here` [B, 1]; the others 0."""
    total = (lambda t: t) if own else sum_ranks
    centered = (x - total((x * here).sum(0)) / count) * here  # [B, P]
    variance = total(centered.pow(2).sum(0)) / count  # [P]
    return centered * (variance + 1e-5).rsqrt()


def barlow_terms(correlation: Tensor) -> dict[str, Tensor]:
    """The unweighted terms of correlations [P, P]: distance of the diagonal from 1, squares off the diagonal."""
    diagonal = correlation.diagonal()
    redundancy = correlation.pow(2).sum() - diagonal.pow(2).sum()
    return {"invariance": (diagonal - 1).pow(2).sum(), "redundancy": redundancy}
