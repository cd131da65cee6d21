"""How well VIME's mask head tells replaced cells from others.

Shapes: R rows, C columns.  Collectives: none.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def auc(logits: Tensor, truth: Tensor, seen: Tensor) -> Tensor:
    """The chance that a changed cell scores above an unchanged one, over the seen cells of [R, C]; 0.5 without both.

    By ranks (Mann-Whitney); ties count by their order, which is arbitrary.
    """
    ranks = torch.where(seen > 0, logits, torch.inf).flatten().argsort().argsort().to(torch.float64) + 1
    ones = (truth * seen).flatten().to(torch.float64)  # unseen cells rank last and are in neither class
    positive, total = ones.sum(), seen.sum().to(torch.float64)
    negative = total - positive
    found = ((ranks * ones).sum() - positive * (positive + 1) / 2) / (positive * negative).clamp(min=1)
    return torch.where((positive > 0) & (negative > 0), found, 0.5).float()
