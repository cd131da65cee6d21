"""Which patches hold most of a head's attention, and how well they cover an object.

Caron et al. 2021, arXiv 2104.14294, section 4.2.2 and figure 4; the threshold is that of DINO's
`visualize_attention.py`, the score (the best head of each picture) is what the paper describes and no published code.
Shapes: H heads, N patches.
"""

from __future__ import annotations

import torch
from torch import Tensor


def keep_mass(attention: Tensor, share: float) -> Tensor:
    """Return the fewest largest patches of attention [..., N] that hold `share` of its mass: bool [..., N].

    The patch that crosses the border is kept.
    """
    ranked, order = attention.sort(-1)
    mass = (ranked / ranked.sum(-1, keepdim=True)).cumsum(-1)
    return torch.zeros_like(mass, dtype=torch.bool).scatter(-1, order, mass > 1 - share)


def jaccard(masks: Tensor, truth: Tensor) -> Tensor:
    """Return intersection over union of masks and truth, both bool [..., N]: float64 [...]; 0 where both are empty."""
    union = (masks | truth).sum(-1).double()
    return (masks & truth).sum(-1) / union.clamp(min=1)
