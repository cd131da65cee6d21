"""Samples of several classes each: what their labels are, and mean average precision.

Average precision is that by steps, as scikit-learn's `average_precision_score`: the sum over thresholds of the gain in
recall times the precision, samples of equal score together. mAP is the mean over classes (macro); a class that no
scored sample has is left out and counted, as its recall is not defined.
Shapes: S training samples, Q queries, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.estimate import estimate
from multissl.contract.modality import Modality
from multissl.inference import Featurized

PREVALENCE = "prevalence"
"""The baseline of mAP: what scores that say nothing get, the mean share of samples that have a class."""


def have_several(modality: Modality, *splits: str) -> bool:
    """Return whether samples of the splits have several classes each.

    Raises a ValueError where the splits list unlike classes.
    """
    sets = {split: modality.dataset(split).label_sets() for split in splits}
    if all(each is None for each in sets.values()):
        return False
    names = {None if each is None else each.names for each in sets.values()}
    if len(names) > 1:
        raise ValueError(
            f"the splits {', '.join(splits)} do not list the same classes: give all of them lists of the same ones"
        )
    return True


class LabeledRows(NamedTuple):
    """Which of some samples have labels, and these."""

    known: Tensor
    """bool [n]"""
    labels: Tensor
    """int64 [S] of the known ones, or bool [S, C] where they have several classes."""


def labels_of(modality: Modality, split: str, made: Featurized) -> LabeledRows:
    """Return the labels of the samples of a split that were featurized."""
    sets = modality.dataset(split).label_sets()
    if sets is None:
        known = made.labels >= 0
        return LabeledRows(known, made.labels[known])
    known = sets.known[made.places]
    return LabeledRows(known, sets.has[made.places][known])


def scored_by(history: Sequence[Mapping[str, float]]) -> Literal["map", "top1"]:
    """Return the figure that measurements have: `map` of samples of several classes, else `top1`."""
    return "map" if any("map" in entry for entry in history) else "top1"


def binary_loss(scores: Tensor, truth: Tensor) -> Tensor:
    """Return the cost of scores [B, C] for classes that samples have or not, bool [B, C]: a sum over classes."""
    return F.binary_cross_entropy_with_logits(scores, truth.to(scores.dtype), reduction="none").sum(1).mean()


def average_precisions(scores: Tensor, truth: Tensor) -> Tensor:
    """Return the average precision of each class from scores and truth (bool), both [Q, C]: float64 [C].

    NaN for classes that no sample has, and for all where scores are not finite.
    """
    count = truth.shape[1]
    if not len(scores) or not bool(scores.isfinite().all()):
        return torch.full((count,), math.nan, dtype=torch.float64)
    return torch.stack([_average_precision(scores[:, c], truth[:, c]) for c in range(count)])


def _average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    order = scores.argsort(descending=True, stable=True)
    scores, found = scores[order], truth[order].double().cumsum(0)
    last = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    last[:-1] = scores[1:] != scores[:-1]  # thresholds: the last of equal scores
    hits = found[last]
    precision = hits / (1 + last.nonzero().flatten())
    return (precision * hits.diff(prepend=hits.new_zeros(1))).sum() / hits[-1]


def mean_precision(scores: Tensor, truth: Tensor) -> float:
    """Return the mean average precision, 0 to 1, over the classes that a sample has; NaN where there is none."""
    precisions = average_precisions(scores, truth)
    return float(precisions[precisions.isfinite()].mean())


def figures_of(precisions: Tensor, truth: Tensor) -> dict[str, float]:
    """Return `map` in percent, over classes with their interval, and how many were `left_out` as no sample has them."""
    present = truth.any(0).cpu()
    return {
        "map": estimate(100.0 * precisions.cpu()[present].numpy()),
        "left_out": float((~present).sum()),
    }


def prevalence(truth: Tensor) -> float:
    """Return the mean share of samples that have a class, in percent, over the classes that a sample has."""
    shares = truth.double().mean(0)
    return 100 * float(shares[shares > 0].mean())
