"""MoCo's loss of a view against its key and a queue of earlier keys.

He et al., CVPR 2020, arXiv 1911.05722, equation 1.
Shapes: B samples on this rank, K queued keys, P width.  Collectives: a sum of counts where anchors are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.losses.nce import accuracy, mean_of, nce, scores
from multissl.precision import at_least_fp32


def queue_loss(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    temperature: float,
    negative: Tensor | None = None,
    keep: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of anchors q [B, P], each against its key in k [B, P] and a queue [K, P].

    `negative` bool [B, K] leaves queued keys out, `keep` bool [B] anchors. bf16 inputs: within 0.02 / temperature.
    """
    own = (F.normalize(at_least_fp32(q), dim=1) * F.normalize(at_least_fp32(k), dim=1)).sum(
        1, keepdim=True
    ) / temperature
    s = torch.cat([own, scores(q, queue, temperature)], 1)  # [B, 1+K]
    pos = (torch.arange(s.shape[1], device=s.device) == 0).expand(s.shape)
    neg = ~pos if negative is None else torch.cat([~pos[:, :1], negative], 1)
    asks = pos if keep is None else pos & keep[:, None]
    return mean_of(nce(s, pos, neg), keep), accuracy(s, asks, neg)
