"""Targets from teacher logits: Sinkhorn-Knopp and EMA centring, both as two vectors and never as a matrix.

Either way a target is softmax-like, p = exp(S / T - a - b), with a prototype potential a and a sample potential b.
Sinkhorn-Knopp (Cuturi 2013; Caron et al. 2020, arXiv 2006.09882) alternates a_k = LSE_i(S_ik / T - b_i) over the
samples of all ranks and b_i = LSE_k(S_ik / T - a_k); it needs no overflow guard, and sample counts cancel. Centring
(Caron et al. 2021, arXiv 2104.14294) has a = centre / T.
Shapes: M rows on this rank, K prototypes, W ranks.  State: the centre and the batch mean that waits to enter it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from multissl.distributed import gather, sum_ranks
from multissl.layers.heads import wide

CHUNK = 2**23
"""Logits widened to fp32 at a time: 32 MiB, so that no fp32 copy of all logits ever exists."""

Weighting = Literal["count", "equal"]


def chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices that cut `rows` rows of `width` logits into pieces of at most `CHUNK` logits (one row at least)."""
    size = max(1, CHUNK // width)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


class Targets(NamedTuple):
    """Teacher probabilities [M, K] of which only the potentials are stored."""

    logits: Tensor
    """[M, K] the teacher's, in any precision"""
    temperature: float
    a: Tensor
    """[K]"""
    b: Tensor
    """[M], inf on padding rows, whose probabilities are 0"""

    def probabilities(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Those of some rows, fp32 [*rows, K]; `rows` is a slice or an index of any shape."""
        return (wide(self.logits[rows]) / self.temperature - self.a - self.b[rows].unsqueeze(-1)).exp()


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, real: Tensor | None = None, rounds: int = 3) -> Targets:
    """Targets of logits [M, K] whose prototypes are used evenly over the real rows (bool [M]) of all ranks.

    Every rank has to call it, also with no real row, and equally often.
    """
    blank = torch.zeros(len(logits), dtype=torch.bool, device=logits.device) if real is None else ~real  # [M]
    kind = wide(logits[:0]).dtype
    b = torch.zeros(len(logits), dtype=kind, device=logits.device).masked_fill(blank, torch.inf)  # [M]
    a = b.new_zeros(logits.shape[1])  # [K]
    for _ in range(rounds):
        a = b.new_full((1, logits.shape[1]), -torch.inf)
        for rows in chunks(*logits.shape):
            scores = wide(logits[rows]) / temperature - b[rows, None]
            a = torch.logaddexp(a, scores.logsumexp(0, keepdim=True))
        a = gather(a).logsumexp(0)  # [K]
        a = a.masked_fill(a.isneginf(), 0)  # no real row anywhere
        for rows in chunks(*logits.shape):
            b[rows] = (wide(logits[rows]) / temperature - a).logsumexp(1)
        b = b.masked_fill(blank, torch.inf)
    return Targets(logits, temperature, a, b)


@torch.no_grad()
def centred(logits: Tensor, temperature: float, centre: Tensor, real: Tensor | None = None) -> Targets:
    """Targets softmax((logits - centre) / temperature) of logits [M, K] and a centre [K]."""
    a = wide(centre) / temperature  # [K]
    parts = [(wide(logits[rows]) / temperature - a).logsumexp(1) for rows in chunks(*logits.shape)]
    b = torch.cat(parts) if parts else a.new_zeros(0)  # [M]
    return Targets(logits, temperature, a, b if real is None else b.masked_fill(~real, torch.inf))


@torch.no_grad()
def mean_logits(
    logits: Tensor, real: Tensor | None = None, weighting: Weighting = "count"
) -> tuple[Tensor, Tensor]:
    """Mean [K] of the real rows of all ranks, and whether there is any; `equal` averages the means of the ranks."""
    kind = wide(logits[:0]).dtype
    weight = (
        torch.ones(len(logits), dtype=kind, device=logits.device) if real is None else real.to(kind)
    )  # [M]
    total, count = weight.new_zeros(logits.shape[1]), weight.sum()  # [K], []
    for rows in chunks(*logits.shape):
        total += weight[rows] @ wide(logits[rows])
    if weighting == "equal":
        total, count = total / count.clamp(min=1), (count > 0).to(total.dtype)
    total, count = sum_ranks(total), sum_ranks(count.reshape(1))
    return total / count.clamp(min=1), count[0] > 0


class Centre(nn.Module):
    """A moving average of the teacher's logits; a step's mean enters it after the step, or lazily at the next one."""

    centre: Tensor
    waiting: Tensor
    fresh: Tensor

    def __init__(self, prototypes: int, momentum: float, weighting: Weighting, lazy: bool) -> None:
        super().__init__()
        self.momentum, self.lazy = momentum, lazy
        self.weighting: Weighting = weighting
        self.register_buffer("centre", torch.zeros(prototypes))
        self.register_buffer("waiting", torch.zeros(prototypes))
        self.register_buffer("fresh", torch.zeros((), dtype=torch.bool))

    def targets(self, logits: Tensor, temperature: float, real: Tensor | None = None) -> Targets:
        """Targets of logits [M, K] by the centre of the steps before."""
        if self.lazy:
            self.apply_waiting()
        return centred(logits, temperature, self.centre, real)

    def observe(self, logits: Tensor, real: Tensor | None = None) -> None:
        """Keep the mean of this step's logits [M, K]; ranks with no real row join in."""
        mean, any_rows = mean_logits(logits, real, self.weighting)
        self.waiting.copy_(mean)
        self.fresh.copy_(any_rows)

    def apply_waiting(self) -> None:
        """Move the centre by the mean that waits, if one does."""
        moved = self.centre.lerp(self.waiting, 1 - self.momentum)
        self.centre.copy_(torch.where(self.fresh, moved, self.centre))
        self.fresh.zero_()

    def after_step(self) -> None:
        """Called once after every step."""
        if not self.lazy:
            self.apply_waiting()
