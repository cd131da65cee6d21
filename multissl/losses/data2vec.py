"""data2vec's targets, the mean of a teacher's normalized layers, and its error.

Baevski et al., ICML 2022, arXiv 2202.03555, sections 3.3 and 3.4; of a whole row (EAT's utterance): Chen et al., IJCAI
2024, arXiv 2401.03497.
Shapes: R rows, N tokens, D width.  Collectives: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.precision import at_least_fp32

LayerNorm = Literal["instance", "layer", "none"]


def average_layers(
    layers: Sequence[Tensor], each: LayerNorm, final: LayerNorm = "none", valid: Tensor | None = None
) -> Tensor:
    """The mean of layers [R, N, D], each normalized, in fp32; then normalized as a whole.

    Statistics over tokens are those of the `valid` ones, bool [R, N]; None: of all.
    """
    return _norm(torch.stack([_norm(at_least_fp32(x), each, valid) for x in layers]).mean(0), final, valid)


def _norm(x: Tensor, kind: LayerNorm, valid: Tensor | None) -> Tensor:
    if kind == "layer":
        return F.layer_norm(x, x.shape[-1:])
    if kind == "none":
        return x
    if valid is None:
        return F.instance_norm(x.mT).mT if x.shape[1] > 1 else torch.zeros_like(x)  # one token has no spread
    real = valid[..., None]  # [R, N, 1]
    count = real.sum(1, keepdim=True).clamp(min=1)  # [R, 1, 1]
    centered = x - x.masked_fill(~real, 0).sum(1, keepdim=True) / count
    variance = centered.masked_fill(~real, 0).square().sum(1, keepdim=True) / count
    return centered * (variance + 1e-5).rsqrt()


def scaled_errors(pred: Tensor, target: Tensor, beta: float = 0.0, scale: float = 0.0) -> Tensor:
    """Errors of each channel, squared (beta 0) or smooth L1, times `scale` or 1/sqrt(D): [..., D].

    In fp32; predictions in bf16 move their mean by less than 1 %.
    """
    pred, factor = at_least_fp32(pred), scale or pred.shape[-1] ** -0.5
    if beta == 0:
        return factor * F.mse_loss(pred, target, reduction="none")
    return factor * F.smooth_l1_loss(pred, target, beta=beta, reduction="none")


def row_errors(pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Squared errors of each channel of rows pred [R, D] against the mean of their tokens' targets [R, N, D]: [R, D].

    Times 1/sqrt(D), as those of tokens. The mean is over the `valid` tokens, bool [R, N]; None: all. In fp32 at least.
    """
    if valid is None:
        mean = target.mean(1)
    else:
        shown = target.masked_fill(~valid[..., None], 0)
        mean = shown.sum(1) / valid.sum(1, keepdim=True).clamp(min=1)  # [R, D]
    return scaled_errors(pred, mean)
