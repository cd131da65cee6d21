"""The cost of predicting symbols without looking, beside which a language model's loss is read.

Shapes: M predicted symbols.  Collectives: none.
"""

from __future__ import annotations

import torch
from torch import Tensor


def constant(asked: Tensor, real: Tensor, symbols: int) -> Tensor:
    """The loss of the best constant prediction on this rank: the entropy of the symbols asked for."""
    counts = torch.zeros(symbols, device=asked.device).index_add_(0, asked, real.float())
    share = counts / real.sum().clamp(min=1)
    return torch.special.entr(share).sum()
