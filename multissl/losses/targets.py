"""Targets over many prototypes: stored as potentials, compared with a student, described; never whole in fp32.

A target is p = exp(S / T - a - b) with the teacher's logits S, a prototype potential a and a sample potential b that
makes it sum to 1 (a softmax has a = 0). K runs to 131,072, so bytes of logits are what these functions cost. Each is
one function of tensors: compiled, it reads the logits where they lie and writes nothing else of their size; as written
it would hold several fp32 copies, so it takes a chunk of rows at a time.
Shapes: M target rows, R student rows, t target rows of a student row, K prototypes, c rows of a chunk.  State: none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from multissl.parallel.collectives import sum_ranks
from multissl.parallel.compiling import Whole, compiles
from multissl.parallel.ranks import world
from multissl.precision import at_least_fp32, wide_dtype

CHUNK = 2**23
"""Logits widened to fp32 at a time where nothing is compiled: 32 MiB."""


def chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices that cut `rows` rows of `width` logits into pieces of at most `CHUNK` logits (one row at least)."""
    size = max(1, CHUNK // width)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def inverse(temperature: float, like: Tensor) -> Tensor:
    """Return 1 / T as a tensor [], in fp32 at least: a temperature that changes between steps compiles nothing anew."""
    return torch.full((), 1 / temperature, dtype=wide_dtype(like), device=like.device)


def _log_sum_rows(logits: Tensor, sharpness: Tensor, a: Tensor) -> Tensor:
    return (at_least_fp32(logits) * sharpness - a).logsumexp(1)


def _log_sum_columns(logits: Tensor, sharpness: Tensor, b: Tensor) -> Tensor:
    return (at_least_fp32(logits) * sharpness - b[:, None]).logsumexp(0)


def _sum_rows(logits: Tensor, sharpness: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return (at_least_fp32(logits) * sharpness - (a + b[:, None])).exp().sum(1)


def _sum_columns(logits: Tensor, sharpness: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return (at_least_fp32(logits) * sharpness - (a + b[:, None])).exp().sum(0)


def _weighted(weights: Tensor, logits: Tensor) -> Tensor:
    return (weights[:, None] * at_least_fp32(logits)).sum(0)


_whole_log_sum_rows, _whole_log_sum_columns = Whole(_log_sum_rows), Whole(_log_sum_columns)
_whole_sum_rows, _whole_sum_columns, _whole_weighted = Whole(_sum_rows), Whole(_sum_columns), Whole(_weighted)


def log_sum_rows(logits: Tensor, sharpness: Tensor, a: Tensor) -> Tensor:
    """Return LSE_k(S_ik / T - a_k) of logits [M, K], sharpness 1 / T [] and potentials a [K]: [M]."""
    if compiles(logits.device) and len(logits):
        return _whole_log_sum_rows(logits, sharpness, a)
    return torch.cat([a[:0], *(_log_sum_rows(logits[c], sharpness, a) for c in chunks(*logits.shape))])


def log_sum_columns(logits: Tensor, sharpness: Tensor, b: Tensor) -> Tensor:
    """Return LSE_i(S_ik / T - b_i) of logits [M, K], sharpness 1 / T [] and potentials b [M]: [K]; -inf of no row."""
    if compiles(logits.device) and len(logits):
        return _whole_log_sum_columns(logits, sharpness, b)
    parts = [_log_sum_columns(logits[c], sharpness, b[c]) for c in chunks(*logits.shape)]
    return torch.stack([b.new_full(logits.shape[1:], -torch.inf), *parts]).logsumexp(0)


def sum_rows(logits: Tensor, sharpness: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return sum_k exp(S_ik / T - a_k - b_i) of logits [M, K]: [M]; one pass, where nothing can overflow."""
    if compiles(logits.device) and len(logits):
        return _whole_sum_rows(logits, sharpness, a, b)
    return torch.cat([a[:0], *(_sum_rows(logits[c], sharpness, a, b[c]) for c in chunks(*logits.shape))])


def sum_columns(logits: Tensor, sharpness: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return sum_i exp(S_ik / T - a_k - b_i) of logits [M, K]: [K]; one pass, where nothing can overflow."""
    if compiles(logits.device) and len(logits):
        return _whole_sum_columns(logits, sharpness, a, b)
    total = torch.zeros_like(a)
    for c in chunks(*logits.shape):
        total += _sum_columns(logits[c], sharpness, a, b[c])
    return total


def weighted_sum(weights: Tensor, logits: Tensor) -> Tensor:
    """Return the sum over the rows of logits [M, K], each times its weight [M]: [K] in fp32 at least."""
    if compiles(logits.device) and len(logits):
        return _whole_weighted(weights, logits)
    total = weights.new_zeros(logits.shape[1])
    for c in chunks(*logits.shape):
        total += weights[c] @ at_least_fp32(logits[c])
    return total


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
        b = log_sum_rows(logits, inverse(temperature, logits), a)  # [M]
        return Targets(logits, temperature, a, b if real is None else b.masked_fill(~real, torch.inf))

    def part(self, rows: slice) -> Targets:
        """Return the targets of some rows, without a copy."""
        return self._replace(logits=self.logits[rows], b=self.b[rows])

    def probabilities(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Those of some rows, fp32 [*rows, K]; `rows` is a slice or an index of any shape."""
        sharpness = inverse(self.temperature, self.logits)
        return _probabilities(self.logits, sharpness, self.a, self.b, rows)


def _probabilities(logits: Tensor, sharpness: Tensor, a: Tensor, b: Tensor, rows: Tensor | slice) -> Tensor:
    return (at_least_fp32(logits[rows]) * sharpness - a - b[rows].unsqueeze(-1)).exp()


def _losses_and_gradient(
    student: Tensor, student_sharpness: Tensor,
    logits: Tensor, sharpness: Tensor, a: Tensor, b: Tensor, rows: Tensor, differentiated: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return the cross entropies [R], and their derivatives by the student's logits [R, K] where they are wanted."""
    p = _probabilities(logits, sharpness, a, b, rows).sum(1)  # [R, K]
    log_q = (at_least_fp32(student) * student_sharpness).log_softmax(1)
    losses = -(p * log_q).sum(1)
    if not differentiated:
        return losses, None
    gradient = (log_q.exp() * p.sum(1, keepdim=True) - p) * student_sharpness
    return losses, gradient.to(student.dtype)


_whole_losses_and_gradient = Whole(_losses_and_gradient)


class _CrossEntropy(torch.autograd.Function):
    """Has its gradient by the end of the forward pass: logits are read once, and only the student's shape is kept."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, targets: Targets, rows: Tensor, temperature: float) -> Tensor:
        differentiated = ctx.needs_input_grad[0]
        mine, theirs = inverse(temperature, student), inverse(targets.temperature, targets.logits)
        teacher = targets.logits, theirs, targets.a, targets.b
        if compiles(student.device) and len(student):
            losses, gradient = _whole_losses_and_gradient(student, mine, *teacher, rows, differentiated)
        else:
            losses = mine.new_empty(len(student))
            gradient = torch.empty_like(student) if differentiated else None
            for c in chunks(len(student), student.shape[1] * rows.shape[1]):
                losses[c], part = _losses_and_gradient(student[c], mine, *teacher, rows[c], differentiated)
                if gradient is not None and part is not None:
                    gradient[c] = part
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        scaled = torch.empty_like(gradient)  # half precision is multiplied in fp32 without a wide copy
        return torch.mul(gradient, grads[0][:, None], out=scaled), None, None, None


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
