"""Targets from teacher logits, by Sinkhorn-Knopp or EMA centering; both give potentials (`Targets`), never a matrix.

Sinkhorn-Knopp (Caron et al. 2020, arXiv 2006.09882) repeats a_k = LSE_i(S_ik / T - b_i), over the samples of all
ranks, and b_i = LSE_k(S_ik / T - a_k); nothing overflows and sample counts cancel. Centering (Caron et al. 2021, arXiv
2104.14294) has a = center / T.
Shapes: M rows on this rank, K prototypes, c rows of a chunk.  Collectives: a gather of potentials per round.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from multissl.losses.targets import Targets, chunks
from multissl.parallel.collectives import gather
from multissl.precision import at_least_fp32

Weighting = Literal["count", "equal"]


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, real: Tensor | None = None, rounds: int = 3) -> Targets:
    """Targets of logits [M, K] that use prototypes evenly over the real rows (bool [M]) of all ranks.

    A collective call: every rank makes it, also with no real row.
    """
    nothing = at_least_fp32(logits.new_full(logits.shape[1:], -torch.inf))  # [K]
    b = at_least_fp32(logits.new_zeros(len(logits)))  # [M]
    found = Targets(logits, temperature, nothing, b if real is None else b.masked_fill(~real, torch.inf))
    for _ in range(rounds):
        parts = [
            (at_least_fp32(logits[c]) / temperature - found.b[c, None]).logsumexp(0)
            for c in chunks(*logits.shape)
        ]
        a = gather(torch.stack([nothing, *parts]).logsumexp(0, keepdim=True)).logsumexp(0)  # [K]
        found = Targets.normalized(
            logits, temperature, a.masked_fill(a.isneginf(), 0), real
        )  # -inf: no row anywhere
    return found


@torch.no_grad()
def centered(logits: Tensor, temperature: float, center: Tensor, real: Tensor | None = None) -> Targets:
    """Targets softmax((logits - center) / temperature) of logits [M, K] and a center [K]."""
    return Targets.normalized(logits, temperature, at_least_fp32(center) / temperature, real)
