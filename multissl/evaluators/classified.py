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


def labeled_task(
    evaluator: Evaluator, featurize: Featurize, modality: Modality, *, split: str, train: int, queries: int,
    device: torch.device | str, least: int = 1,
) -> Task | None:  # fmt: skip
    """Return the labeled samples of training, `least` or more, and of a split; None, with a warning, where none are."""
    task = _read(evaluator, featurize, modality, split, train, queries, device)
    if len(task.y) < least or not len(task.truth):
        evaluator.warn_nothing_to_measure("training or the split has no labeled sample among those drawn")
        return None
    warn_unseen(evaluator, task, split)
    return task


def task_of(
    evaluator: Evaluator, featurize: Featurize, modality: Modality, *, split: str, train: int, queries: int,
    device: torch.device | str,
) -> Task | None:  # fmt: skip
    """Return the labeled samples of training and of a split; None, with a warning, where nothing can be learned."""
    task = _read(evaluator, featurize, modality, split, train, queries, device)
    return task if measurable(evaluator, task, split) else None


def measurable(evaluator: Evaluator, task: Task, split: str) -> bool:
    """Return whether there is something to learn and to score; warns of what is missing."""
    classes = len(task.y.unique())
    if classes < 2 or not len(task.truth):
        evaluator.warn_nothing_to_measure(
            f"{len(task.y)} labeled training samples of {classes} classes and {len(task.truth)} of the split"
        )
        return False
    warn_unseen(evaluator, task, split)
    return True


def _read(
    evaluator: Evaluator, featurize: Featurize, modality: Modality, split: str, train: int, queries: int,
    device: torch.device | str,
) -> Task:  # fmt: skip
    stream = evaluator.cfg.stream
    x, y = labeled_split(featurize, modality, "train", train, device=device, stream=stream)
    return Task(x, y, *scored_split(featurize, modality, split, queries, device, stream))


def warn_unseen(evaluator: Evaluator, task: Task, split: str) -> None:
    """Warn of classes of the split that training lacks."""
    if line := unseen_classes(task.y, task.truth, split):
        evaluator.warn(line)


def validation_mask(count: int) -> Tensor:
    """Return which of so many training samples choose hyperparameters: True for a tenth, the same ones every time."""
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[drawn(count, max(1, count // 10))] = True
    return chosen
