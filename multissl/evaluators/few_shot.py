"""k-NN with few labeled samples of each class, drawn as DINOv2 and DINOv3 draw them.

Oquab et al. 2024, arXiv 2304.07193, and Simeoni et al. 2025, arXiv 2508.10104: `eval/knn.py` and `eval/data.py` of
their code. The draws depend on labels and the number of the try alone, so all models see the same ones.
Shapes: S samples, Q queries, F features, C classes, k neighbors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from multissl.evaluators.neighbors import nearest


def draw_per_class(labels: Tensor, count: int | float, draw: int) -> Tensor:
    """Return positions int64 [n] of `count` samples of each class, or of a share of each where it is below 1.

    Classes in order of their label; a share keeps at least one. Raises `ValueError` where a class has too few.
    """
    generator = torch.Generator().manual_seed(draw)
    chosen = []
    for label in labels.unique().tolist():
        places = (labels == label).nonzero().flatten()
        wanted = max(int(len(places) * count), 1) if isinstance(count, float) else count
        if wanted > len(places):
            raise ValueError(f"class {label} has {len(places)} samples, fewer than the {wanted} of a draw")
        chosen.append(places[torch.randperm(len(places), generator=generator)[:wanted]])
    return torch.cat(chosen)


def neighbor_counts(ks: Sequence[int], per_class: int) -> list[int]:
    """Return those of ks that a class with `per_class` samples can fill, and that number itself, in order."""
    return sorted({k for k in ks if k <= per_class} | {per_class})


def shares(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    ks: Sequence[int],
    temperature: float,
    classes: int,
    skip: int = 0,
) -> Mapping[int, Tensor]:
    """Return by k the votes [Q, C] of the k nearest of bank [S, F], both sides l2-normalized.

    Votes are softmax shares among the max(ks) that are retrieved, so those of fewer do not sum to 1. The first `skip`
    neighbors are left out: 1 where the queries are the bank. More neighbors than there are count as all.
    """
    similarity, index = nearest(bank, queries, max(ks) + skip)
    similarity, index = similarity[:, skip:], index[:, skip:]
    weight = (similarity / temperature).softmax(1)
    return {
        k: weight.new_zeros(len(queries), classes).scatter_add_(1, labels[index[:, :k]], weight[:, :k])
        for k in ks
    }
