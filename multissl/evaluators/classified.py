"""Labeled features of a training and of a scored split, as classifiers on frozen features want them.

Shapes: S training samples, Q queries, F features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from multissl.contract.evaluator import Evaluator
from multissl.contract.modality import Modality
from multissl.evaluators.unseen import unseen_classes
from multissl.evaluators.verdicts import majority_accuracy
from multissl.inference import Featurize, drawn, labeled_split, scored_split


class Task(NamedTuple):
    """What a classifier learns from, and what it is scored on."""

    x: Tensor
    """[S, F]"""
    y: Tensor
    """int64 [S]"""
    queries: Tensor
    """[Q, F]"""
    truth: Tensor
    """int64 [Q]"""
    groups: np.ndarray
    """int64 [Q], -1 without one; queries of one group count together in an interval."""

    @property
    def classes(self) -> int:
        """Return the number of classes that training has; one that it lacks is never guessed."""
        return 1 + int(self.y.max())

    @property
    def majority(self) -> float:
        """Return the accuracy in percent of the most frequent class of training."""
        return majority_accuracy(self.y, self.truth, self.groups)


def task_of(
    evaluator: Evaluator, featurize: Featurize, modality: Modality, *, split: str, train: int, queries: int,
    device: torch.device | str,
) -> Task | None:  # fmt: skip
    """Return the labeled samples of training and of a split; None, with a warning, where nothing can be learned."""
    stream = evaluator.cfg.stream
    x, y = labeled_split(featurize, modality, "train", train, device=device, stream=stream)
    asked, truth, groups = scored_split(featurize, modality, split, queries, device, stream)
    if len(y.unique()) < 2 or not len(truth):
        evaluator.warn_nothing_to_measure(
            f"{len(y)} labeled training samples of {len(y.unique())} classes and {len(truth)} of the split"
        )
        return None
    if said := unseen_classes(y, truth, split):
        evaluator.warn(said)
    return Task(x, y, asked, truth, groups)


def validation_mask(count: int) -> Tensor:
    """Return which of so many training samples choose hyperparameters: True for a tenth, the same ones every time."""
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[drawn(count, max(1, count // 10))] = True
    return chosen
