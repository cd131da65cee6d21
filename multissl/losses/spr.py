"""SPR's distance of predicted latents from those that were seen.

Schwarzer et al., ICLR 2021, arXiv 2007.05929, equation 4.
Shapes: K steps, B samples on this rank, P projector width.  Collectives: a sum of counts where samples are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.losses.common import mean_of
from multissl.precision import at_least_fp32


def spr_loss(p: Tensor, target: Tensor, keep: Tensor | None = None) -> Tensor:
    """The mean of 2 - 2 cos between predictions and targets, each [K, B, P], in fp32; over kept ones (bool [K, B])."""
    with torch.autocast(p.device.type, enabled=False):
        a, b = (F.normalize(at_least_fp32(x), dim=-1, eps=1e-12) for x in (p, target))
        return mean_of(2 - 2 * (a * b).sum(-1), keep)
