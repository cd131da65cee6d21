"""I-JEPA's and V-JEPA's targets and errors in the space of features.

Assran et al., CVPR 2023, arXiv 2301.08243; Bardes et al. 2024, arXiv 2404.08471.
Shapes: D width.  Collectives: a sum of counts where some tokens are left out.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from multissl.losses.common import mean_of
from multissl.precision import at_least_fp32

Metric = Literal["smooth_l1", "power"]


def latent_targets(tokens: Tensor) -> Tensor:
    """Tokens [..., D] layer-normed without scale and shift, in fp32 (eps 1e-5)."""
    return F.layer_norm(at_least_fp32(tokens), tokens.shape[-1:])


def latent_loss(
    pred: Tensor,
    target: Tensor,
    metric: Metric = "smooth_l1",
    power: float = 1.0,
    keep: Tensor | None = None,
) -> Tensor:
    """Predictions [..., D] against targets: smooth L1 with beta 1, or mean |.|^p / p, of the kept ones (bool [...]).

    In fp32; predictions in bf16 move it by less than 1 % of its value.
    """
    if metric == "smooth_l1":
        return mean_of(F.smooth_l1_loss(at_least_fp32(pred), target, reduction="none"), keep)
    return mean_of((at_least_fp32(pred) - target).abs().pow(power), keep) / power
