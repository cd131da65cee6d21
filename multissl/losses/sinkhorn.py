"""Targets from teacher logits, by Sinkhorn-Knopp or EMA centering; both give potentials (`Targets`), never a matrix.

Sinkhorn-Knopp (Caron et al. 2020, arXiv 2006.09882) repeats a_k = LSE_i(S_ik / T - b_i), over the samples of all
ranks, and b_i = LSE_k(S_ik / T - a_k); nothing overflows and sample counts cancel. From the second round on a potential
moves by the log of a sum of probabilities, which needs no maximum and so reads the logits once: as columns and rows
summed to 1 before, the largest term of every sum lies between 1 / (M K) and 1, with M rows on all ranks.
Centering (Caron et al. 2021, arXiv 2104.14294) has a = center / T.
Shapes: M rows on this rank, K prototypes.  Collectives: a gather of potentials, then a sum per round.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from multissl.losses.targets import Targets, inverse, log_sum_columns, sum_columns, sum_rows
from multissl.parallel.collectives import gather, sum_ranks
from multissl.precision import at_least_fp32

Weighting = Literal["count", "equal"]


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, real: Tensor | None = None, rounds: int = 3) -> Targets:
    """Targets of logits [M, K] that use prototypes evenly over the real rows (bool [M]) of all ranks.

    A collective call: every rank makes it, also with no real row.
    """
    sharpness = inverse(temperature, logits)
    b = sharpness.new_zeros(len(logits))  # [M]
    b = b if real is None else b.masked_fill(~real, torch.inf)
    a = gather(log_sum_columns(logits, sharpness, b)[None]).logsumexp(0)  # [K]
    targets = Targets.normalized(logits, temperature, _finite(a), real)
    for _ in range(rounds - 1):
        sums = sum_ranks(sum_columns(logits, sharpness, targets.a, targets.b))  # [K]
        a = _finite(targets.a + sums.log())
        b = targets.b + sum_rows(logits, sharpness, a, targets.b).log()  # [M]
        targets = Targets(logits, temperature, a, b if real is None else b.masked_fill(~real, torch.inf))
    return targets


@torch.no_grad()
def centered(logits: Tensor, temperature: float, center: Tensor, real: Tensor | None = None) -> Targets:
    """Targets softmax((logits - center) / temperature) of logits [M, K] and a center [K]."""
    return Targets.normalized(logits, temperature, at_least_fp32(center) / temperature, real)


def _finite(a: Tensor) -> Tensor:
    """Return potentials [K] that are 0 where there is no real row on any rank."""
    return a.masked_fill(a.isneginf(), 0)
