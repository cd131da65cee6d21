"""Targets from teacher logits, by Sinkhorn-Knopp or EMA centring; both give potentials (`Targets`), never a matrix.

Sinkhorn-Knopp (Caron et al. 2020, arXiv 2006.09882) repeats a_k = LSE_i(S_ik / T - b_i), over the samples of all
ranks, and b_i = LSE_k(S_ik / T - a_k); nothing overflows and sample counts cancel. Centring (Caron et al. 2021, arXiv
2104.14294) has a = centre / T.
Shapes: M rows on this rank, K prototypes, c rows of a chunk.  State: the centre, and the mean that waits to enter it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from multissl.distributed import gather, sum_ranks
from multissl.layers.heads import wide
from multissl.objectives.targets import Targets, chunks

Weighting = Literal["count", "equal"]


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, real: Tensor | None = None, rounds: int = 3) -> Targets:
    """Targets of logits [M, K] that use prototypes evenly over the real rows (bool [M]) of all ranks.

    A collective call: every rank makes it, also with no real row.
    """
    nothing = wide(logits.new_full(logits.shape[1:], -torch.inf))  # [K]
    b = wide(logits.new_zeros(len(logits)))  # [M]
    found = Targets(logits, temperature, nothing, b if real is None else b.masked_fill(~real, torch.inf))
    for _ in range(rounds):
        parts = [
            (wide(logits[c]) / temperature - found.b[c, None]).logsumexp(0) for c in chunks(*logits.shape)
        ]
        a = gather(torch.stack([nothing, *parts]).logsumexp(0, keepdim=True)).logsumexp(0)  # [K]
        found = Targets.normalised(
            logits, temperature, a.masked_fill(a.isneginf(), 0), real
        )  # -inf: no row anywhere
    return found


@torch.no_grad()
def centred(logits: Tensor, temperature: float, centre: Tensor, real: Tensor | None = None) -> Targets:
    """Targets softmax((logits - centre) / temperature) of logits [M, K] and a centre [K]."""
    return Targets.normalised(logits, temperature, wide(centre) / temperature, real)


class Centre(nn.Module):
    """A moving average of the teacher's logits; a step's mean enters it after the step, or lazily at the next one."""

    centre: Tensor
    waiting: Tensor
    """NaN where no mean waits"""

    def __init__(
        self, prototypes: int, momentum: float = 0.9, weighting: Weighting = "count", lazy: bool = False
    ) -> None:
        super().__init__()
        self.momentum, self.lazy = momentum, lazy
        self.weighting: Weighting = weighting
        self.register_buffer("centre", torch.zeros(prototypes))
        self.register_buffer("waiting", torch.full((prototypes,), torch.nan))

    def targets(self, logits: Tensor, temperature: float, real: Tensor | None = None) -> Targets:
        """Targets of logits [M, K] by the centre of the steps before."""
        if self.lazy:
            self.move()
        return centred(logits, temperature, self.centre, real)

    @torch.no_grad()
    def observe(self, logits: Tensor, real: Tensor | None = None) -> None:
        """Keep the mean of the real rows of logits [M, K] on all ranks; a rank with none joins in.

        Every row counts the same, or every rank's mean where weighting is equal.
        """
        rows = wide(logits.new_ones(len(logits)) if real is None else real.to(logits.dtype))  # [M]
        total, count = rows.new_zeros(logits.shape[1]), rows.sum(0, keepdim=True)  # [K], [1]
        for c in chunks(*logits.shape):
            total += rows[c] @ wide(logits[c])
        if self.weighting == "equal":
            total, count = total / count.clamp(min=1), count.clamp(max=1)
        self.waiting.copy_(sum_ranks(total) / sum_ranks(count))  # 0 / 0 where there is no row: nothing waits

    @torch.no_grad()
    def move(self) -> None:
        """Move the centre by the mean that waits, if one does."""
        moved = self.centre.lerp(self.waiting, 1 - self.momentum)
        self.centre.copy_(torch.where(self.waiting.isnan(), self.centre, moved))
        self.waiting.fill_(torch.nan)

    def after_step(self) -> None:
        """Called once after every step."""
        if not self.lazy:
            self.move()
