"""From tokens to predictions of a stream's target, and what they cost (losses/rebuild).

Values and classes take one mean over all hidden tokens of the batch (MAE, SimMIM); classes cost the cross entropy of a
token's class (BERT, BEiT). Every row hides equally many, so this is also the mean of the rows' means, and the mean over
ranks of theirs. Cells are counted over all ranks. Padding counts nowhere.
Shapes: R rows, Q hidden tokens of a row, C columns, T floats or classes, d width.  Collectives: two sums of the
columns' counts for cells, one of the real tokens' for padded views, none otherwise.  State: the linear maps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.plans import StreamSpec
from multissl.layers.init import init_linear
from multissl.losses.rebuild import Metric, Norm, mean_of_columns, normalize, values_loss
from multissl.parallel.collectives import sum_ranks
from multissl.parallel.ranks import world
from multissl.precision import at_least_fp32


class Readout(nn.Module):
    """From tokens to predictions of a stream's target: one linear, or one a column."""

    order: Tensor
    """int64 [C], the columns of cells: numbers, then categories."""

    def __init__(self, width: int, spec: StreamSpec, init_std: float = 0.0) -> None:
        super().__init__()
        self.kind = spec.target_kind
        self.channels = spec.shape[0] if spec.kind == "grid" else 1
        if not spec.target_dim:
            raise ValueError("this stream has no target to rebuild: take an objective that needs none")
        if spec.target_tokens:
            raise ValueError(
                f"a target of {spec.target_tokens} tokens for views of {spec.num_tokens} cannot be rebuilt in place"
            )
        if spec.target_kind == "cells":
            levels = spec.cardinalities or (0,) * spec.shape[-1]
            numbers, categories = ([i for i, n in enumerate(levels) if bool(n) == c] for c in (False, True))
            self.numbers, self.levels = len(numbers), [levels[i] for i in categories]
            # Columns are handled numbers first: their mean does not mind, and slices need no index on the device.
            self.register_buffer("order", torch.tensor(numbers + categories), persistent=False)
            out = self.numbers + sum(self.levels)
        else:
            out = spec.target_dim
        self.linear = nn.Linear(width, out)
        init_linear(self.linear, init_std)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predictions of values or classes [..., d] to [..., T]."""
        return at_least_fp32(self.linear(tokens.to(self.linear.weight.dtype)))

    def loss(
        self,
        tokens: Tensor,
        at: Tensor,
        target: Tensor,
        metric: Metric = "mse",
        norm: Norm = "none",
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss of decoded tokens [R, Q, d] at hidden places [R, Q], and that of the best constant prediction.

        target [R, N, T], [R, N] or [R, C], of all tokens; the constant is this rank's, for comparison only. Where
        `valid` bool [R, N] is given, other tokens do not count, and the mean is over the valid ones of all ranks.
        """
        if self.kind == "cells":
            hidden = torch.zeros(target.shape[:2], dtype=torch.bool, device=at.device).scatter(1, at, True)
            return self._cells(tokens, at, target.flatten(1), hidden if valid is None else hidden & valid)
        rows = torch.arange(len(at), device=at.device)[:, None]  # [R, 1]
        asked, pred = target[rows, at], self(tokens)  # [R, Q(, T)], [R, Q, T]
        if valid is not None:
            return self._real(pred, asked, valid[rows, at].to(pred.dtype), metric, norm)
        if self.kind == "classes":
            share = torch.bincount(asked.flatten(), minlength=pred.shape[-1]) / asked.numel()  # [T]
            constant = torch.special.entr(share).sum()
            return F.cross_entropy(pred.flatten(0, 1), asked.flatten()), constant
        asked = normalize(asked, norm, self.channels)
        constant = values_loss(asked.mean((0, 1)).expand_as(asked), asked, metric)
        return values_loss(pred, asked, metric), constant

    def _real(
        self, pred: Tensor, asked: Tensor, real: Tensor, metric: Metric, norm: Norm
    ) -> tuple[Tensor, Tensor]:
        """The same where only some of the hidden tokens count, real [R, Q] 0 or 1."""
        if self.kind == "classes":
            errors = F.cross_entropy(pred.flatten(0, 1), asked.flatten(), reduction="none").view_as(real)
            share = (F.one_hot(asked, pred.shape[-1]) * real[..., None]).sum((0, 1)) / real.sum().clamp(min=1)
            constant = torch.special.entr(share).sum()
        else:
            measure = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[metric]
            asked = normalize(asked, norm, self.channels)
            mean = (asked * real[..., None]).sum((0, 1)) / real.sum().clamp(min=1)  # [T]
            constant = values_loss(mean.expand_as(asked), asked, metric, real)
            errors = measure(pred, asked, reduction="none").mean(-1)  # [R, Q]
        total = sum_ranks(real.sum()).clamp(min=1)
        return world() * (errors * real).sum() / total, constant

    def _cells(self, tokens: Tensor, at: Tensor, target: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The same for cells; target and hidden [R, C]."""
        index = at[:, :, None].expand_as(tokens)
        dense = at_least_fp32(
            tokens.new_zeros(*target.shape, tokens.shape[-1]).scatter(1, index, tokens)
        )  # [R, C, d]
        dense, target, hidden = (
            x.index_select(1, self.order) for x in (dense, at_least_fp32(target), hidden)
        )
        weight, bias, n = at_least_fp32(self.linear.weight), at_least_fp32(self.linear.bias), self.numbers
        count = hidden.sum(0).clamp(min=1)  # [C]
        pred = torch.einsum("rcd,cd->rc", dense[:, :n], weight[:n]) + bias[:n]  # [R, numbers]
        mean = (target[:, :n] * hidden[:, :n]).sum(0) / count[:n]
        errors, constants = [(at_least_fp32(pred) - target[:, :n]).pow(2)], [(mean - target[:, :n]).pow(2)]
        start = n
        for column, levels in enumerate(self.levels, start=n):
            truth, part = target[:, column].long(), slice(start, start + levels)
            logits = at_least_fp32(F.linear(dense[:, column], weight[part], bias[part]))  # [R, levels]
            ones = truth[:, None] == torch.arange(
                levels, device=truth.device
            )  # F.one_hot reads truth on a CPU
            share = (ones * hidden[:, column, None]).sum(0) / count[column]  # [levels]
            errors.append(F.cross_entropy(logits, truth, reduction="none")[:, None])
            constants.append(-at_least_fp32(share).clamp(min=1e-12).log()[truth][:, None])
            start += levels
        return mean_of_columns(torch.cat(errors, 1), hidden), mean_of_columns(torch.cat(constants, 1), hidden)
