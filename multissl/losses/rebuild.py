"""Errors of rebuilding what was hidden, for any target a stream can have.

values   a token's floats: squared, absolute or smooth absolute error. Targets may be normalized token by token, as in
         MAE (arXiv 2111.06377; all values of the patch, unbiased variance plus 1e-6 under the root), or token and
         channel (VideoMAE, arXiv 2203.12602; 1e-6 added to the deviation). Predicting 0 then costs (T-1)/T.
cells    a number or a level of a table's column: the mean over the hidden cells of a column, then over the columns, so
         that a column counts once whatever its kind.
Shapes: R rows, C columns, T floats of a token.  Collectives: a sum of the columns' counts for cells.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from multissl.parallel.collectives import sum_ranks
from multissl.parallel.ranks import world
from multissl.precision import at_least_fp32

Metric = Literal["mse", "l1", "smooth_l1"]
Norm = Literal["token", "channel", "none"]


def normalize(target: Tensor, norm: Norm, channels: int = 1) -> Tensor:
    """Targets [..., T] with mean 0 and deviation 1 in every token, or in every channel of it (the fastest index)."""
    target = at_least_fp32(target)
    if norm == "token":
        return (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    if norm == "channel":
        cut = target.unflatten(-1, (-1, channels))  # [..., T/C, C]
        return ((cut - cut.mean(-2, keepdim=True)) / (cut.std(-2, keepdim=True) + 1e-6)).flatten(-2)
    return target


def masked_mean(errors: Tensor, hidden: Tensor | None = None) -> Tensor:
    """One mean of errors [..., T] over all hidden tokens; `hidden` [...] or [..., T] weighs them, None: all equal."""
    if hidden is None:
        return errors.mean()
    weight = (hidden if hidden.dim() == errors.dim() else hidden[..., None]).to(errors.dtype)
    return (errors * weight).sum() / weight.expand_as(errors).sum()


def values_loss(pred: Tensor, target: Tensor, metric: Metric, hidden: Tensor | None = None) -> Tensor:
    """The error of predictions [..., T], in fp32; predictions in bf16 move it by less than 1 % of its value."""
    measure = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[metric]
    return masked_mean(measure(at_least_fp32(pred), at_least_fp32(target), reduction="none"), hidden)


def mean_of_columns(errors: Tensor, hidden: Tensor) -> Tensor:
    """Errors [R, C] averaged over the hidden cells of each column, on all ranks, then over the columns that have any.

    This rank's share of it: the mean of the ranks' values, and of their gradients, is the global one.
    """
    sums = (errors * hidden).sum(0)  # [C]
    counts = sum_ranks(hidden.sum(0).to(sums.dtype))  # [C]
    return world() * (sums / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)
