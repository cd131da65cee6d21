"""Ranking by trapezoids: landmark retrieval with junk, and copy detection.

The revisited Oxford and Paris protocol (Radenovic et al. 2018, arXiv 1803.11285) and Copydays as DINO's code evaluates
them (`utils.py`, `eval_copy_detection.py`). Their average precision is the mean of the precision before and after each
positive, and differs from the step rule of `retrieval.rank` and scikit-learn. No modality supplies easy, hard and junk
pictures yet: roles are handed in.
Shapes: Q queries, S of the gallery, F features, R positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def trapezoid_precision(ranks: Tensor, positives: int) -> float:
    """Return the area under the curve of precision over recall, by trapezoids; ranks int64 [r] from 0, in order."""
    seen = torch.arange(len(ranks), dtype=torch.float64)
    before = torch.where(ranks == 0, 1.0, seen / ranks.clamp(min=1))
    after = (seen + 1) / (ranks + 1)
    return float((before + after).sum() / (2 * max(positives, 1)))


class Ranked(NamedTuple):
    """Scores of queries that have a positive; NaN of others."""

    precision: Tensor
    """float64 [Q], average precision by trapezoids."""
    early: Tensor
    """float64 [Q, k], the share of positives among the first ones, or up to the last positive if that comes first."""


def rank_without_junk(
    similarity: Tensor, positive: Tensor, junk: Tensor, first: Sequence[int] = (1, 5, 10)
) -> Ranked:
    """Return how positives rank by similarity [Q, S], where junk (both bool [Q, S]) is taken out of the ranking."""
    order = similarity.argsort(1, descending=True)
    precision, early = [], []
    for row, good, bad in zip(order, positive, junk, strict=True):
        ranks = good[row[~bad[row]]].nonzero().flatten()
        if not len(ranks):
            precision.append(torch.nan)
            early.append([torch.nan] * len(first))
            continue
        precision.append(trapezoid_precision(ranks, int(good.sum())))
        ends = [min(int(ranks.max()) + 1, k) for k in first]
        early.append([float((ranks < end).sum()) / end for end in ends])
    return Ranked(torch.tensor(precision, dtype=torch.float64), torch.tensor(early, dtype=torch.float64))


EASY, HARD, JUNK = 1, 2, 3
"""Roles of a gallery's pictures for a query; 0 is a negative."""


def revisited(similarity: Tensor, roles: Tensor, level: str) -> Ranked:
    """Return the scores of level "medium" (easy and hard count) or "hard" (easy ones are junk); roles [Q, S]."""
    easy, hard, junk = roles == EASY, roles == HARD, roles == JUNK
    if level == "medium":
        return rank_without_junk(similarity, easy | hard, junk)
    return rank_without_junk(similarity, hard, junk | easy)


def copy_descriptor(class_token: Tensor, patches: Tensor, power: float = 4.0, least: float = 1e-6) -> Tensor:
    """Return the class token [R, D] and the generalized mean of patches [R, N, D], side by side: [R, 2 D]."""
    pooled = patches.clamp(min=least).pow(power).mean(1).pow(1 / power)
    return torch.cat([class_token, pooled], 1)


def whitening(x: Tensor, power: float = 0.5, least: float = 1e-5) -> Tensor:
    """Return the projection [F, F] that whitens x [S, F], which DINO's code does not center; largest first.

    Eigenvalues below `least` of the largest are raised to that. The signs of rows are arbitrary.
    """
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    values = values.clamp(min=float(values.max()) * least)
    return (vectors / values**power).T.flip(0)


def whitened(x: Tensor, projection: Tensor, mean: Tensor) -> Tensor:
    """Return unit features [R, F] of x [R, F] without a mean, projected."""
    return F.normalize((x - mean) @ projection.T, dim=1)
