"""The classical feature of texts that learning has to beat: counts of tokens, weighted by how rare they are.

TF-IDF as scikit-learn's with sublinear counts and smoothed document frequencies, over tokens in place of words.
Shapes: R rows, L tokens of a row, F features.  State: none.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from multissl.contract.data import Views

WIDTH = 4096
"""F; larger ids are folded in."""


def rarity(documents: Iterable[np.ndarray]) -> Tensor:
    """log((1 + documents) / (1 + those with the token)) + 1 for every token: [F]."""
    counts, total = torch.zeros(WIDTH), 0
    for ids in documents:
        counts[torch.from_numpy(np.unique(ids % WIDTH)).long()] += 1
        total += 1
    return ((1 + total) / (1 + counts)).log() + 1


def tfidf(views: Views, rarity: Tensor) -> Tensor:
    """(1 + log count) times rarity by token: [R, F]."""
    real = torch.ones_like(views.x) if views.valid is None else views.valid
    found = torch.zeros(len(views.x), WIDTH, device=views.x.device)
    found.scatter_add_(1, views.x % WIDTH, real.float())
    return torch.where(found > 0, 1 + found.clamp(min=1).log(), 0) * rarity.to(found.device)
