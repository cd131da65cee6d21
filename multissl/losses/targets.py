"""Targets over many prototypes: stored as potentials, compared with a student, described; never whole in fp32.

A target is p = exp(S / T - a - b) with the teacher's logits S, a prototype potential a and a sample potential b that
makes it sum to 1 (a softmax has a = 0). All functions here widen a chunk of logits at a time, as K runs to 131,072.
Shapes: M target rows, R student rows, K prototypes, c rows of a chunk.  State: none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from multissl.parallel.collectives import sum_ranks
from multissl.parallel.ranks import world
from multissl.precision import at_least_fp32

CHUNK = 2**23
"""Logits widened to fp32 at a time: 32 MiB."""


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

    @staticmethod
    def normalized(logits: Tensor, temperature: float, a: Tensor, real: Tensor | None = None) -> Targets:
        """The targets with prototype potentials a [K] whose real rows (bool [M]) sum to 1."""
        parts = [(at_least_fp32(logits[c]) / temperature - a).logsumexp(1) for c in chunks(*logits.shape)]
        b = torch.cat([a[:0], *parts])  # [M]
        return Targets(logits, temperature, a, b if real is None else b.masked_fill(~real, torch.inf))

    def part(self, rows: slice) -> Targets:
        """Return the targets of some rows, without a copy."""
        return self._replace(logits=self.logits[rows], b=self.b[rows])

    def probabilities(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Those of some rows, fp32 [*rows, K]; `rows` is a slice or an index of any shape."""
        return (
            at_least_fp32(self.logits[rows]) / self.temperature - self.a - self.b[rows].unsqueeze(-1)
        ).exp()


class _CrossEntropy(torch.autograd.Function):
    """Widens a chunk of logits at a time, forward and backward, and saves nothing of their size."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, targets: Targets, rows: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(student, rows)
        ctx.targets, ctx.temperature = targets, temperature
        losses = torch.empty(len(student), dtype=at_least_fp32(student[:0]).dtype, device=student.device)
        for some in chunks(len(student), student.shape[1] * rows.shape[1]):
            p = targets.probabilities(rows[some]).sum(1)  # [c, K]
            losses[some] = -(p * (at_least_fp32(student[some]) / temperature).log_softmax(1)).sum(1)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        student, rows = ctx.saved_tensors
        grad = torch.empty_like(student)
        for some in chunks(len(student), student.shape[1] * rows.shape[1]):
            p = ctx.targets.probabilities(rows[some]).sum(1)
            q = (at_least_fp32(student[some]) / ctx.temperature).softmax(1) * p.sum(1, keepdim=True)
            grad[some] = ((q - p) * (grads[0][some, None] / ctx.temperature)).to(grad.dtype)
        return grad, None, None, None


def cross_entropy(student: Tensor, targets: Targets, rows: Tensor, temperature: float) -> Tensor:
    """Cross entropy of each student row with its teacher rows, summed over these: [R] in fp32.

    student logits [R, K]; rows int64 [R, t] says which rows of `targets` belong to each.
    """
    return cast(Tensor, _CrossEntropy.apply(student, targets, rows, temperature))


@torch.no_grad()
def describe(targets: Targets, ce: Tensor) -> dict[str, Tensor]:
    """Teacher entropy and KL(teacher || student) a row, and the share of prototypes that lead some teacher row.

    The share is of those that could: K, or the rows of all ranks where these are fewer.
    """
    rows, prototypes = targets.logits.shape
    entropy, hits = targets.a.new_zeros(()), torch.zeros_like(targets.a)  # [], [K]
    for some in chunks(rows, prototypes):
        p = targets.probabilities(some)
        entropy += torch.special.entr(p).sum()
        hits.index_add_(0, p.argmax(1), p.amax(1).sign())  # padding rows lead nothing
    real = targets.b.isfinite().sum().clamp(min=1)
    used = (sum_ranks(hits) > 0).sum() / max(1, min(prototypes, rows * world()))
    return {
        "teacher_entropy": entropy / real,
        "teacher_kl": (ce.sum() - entropy) / real,
        "prototype_use": used,
    }
