"""What evaluators that train heads on frozen features share: options, the choice on a tenth of training, the gates.

CAPI's rule (Darcet et al. 2025, arXiv 2502.08769): a tenth of the training samples chooses the head, the scored split
is looked at once.
Shapes: S training samples, Q queries, C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.data import Views
from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.verdict import Verdict
from multissl.evaluators.classified import validation_mask
from multissl.evaluators.linear_probe import FEWEST
from multissl.evaluators.probes.training import (
    Logits,
    Trial,
    choose,
    hits,
    scores_of,
    train_trials,
    trials_of,
)
from multissl.evaluators.several_classes import (
    PREVALENCE,
    average_precisions,
    binary_loss,
    figures_of,
    have_several,
    labels_of,
    prevalence,
    scored_by,
)
from multissl.evaluators.unseen import unseen_classes
from multissl.evaluators.verdicts import MAJORITY, learned, majority_accuracy
from multissl.inference import Featurized, drawn, featurized
from multissl.statistics import LEVEL


class Labeled(NamedTuple):
    """Labeled samples and what a head reads of them."""

    inputs: tuple[Tensor, ...]
    """[S, ...] each."""
    labels: Tensor
    """int64 [S], or bool [S, C] where samples have several classes."""
    groups: np.ndarray
    """int64 [S], -1 without one."""


class TrainedProbe(Evaluator):
    """Base of evaluators that train a grid of heads."""

    what: ClassVar[str]
    """What sentences call it."""

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of a grid of heads."""

        lr: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
        """Learning rates to choose from, for a batch of 256."""
        weight_decay: tuple[float, ...] = (1e-3,)
        """Weight decays to choose from, 0 or more; vectors have none."""
        steps: int = 300
        """Steps of training; CAPI trains 12,500."""
        batch: int = 128
        """Samples of a step."""
        train: int = 2_000
        """Training samples, drawn with a fixed seed, of which a tenth chooses the head; 0: all."""
        queries: int = 1_000
        """Samples of the split, drawn with a fixed seed; 0: all."""
        split: str = "val"
        """Where the accuracy is measured; the heads see the train split alone."""
        seed: int = 0
        """Of the heads' first weights and of the batches."""
        margin: float = 2.0
        """Points above the untrained encoder that would matter, as for the k-NN."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if not self.lr or not min(self.lr) > 0:
                raise ValueError(f"lr={self.lr}: want one or more learning rates, each more than 0")
            if not self.weight_decay or not min(self.weight_decay) >= 0:
                raise ValueError(f"weight_decay={self.weight_decay}: want one or more decays, each 0 or more")
            if self.steps < 1 or self.batch < 2:
                raise ValueError(
                    f"steps={self.steps}, batch={self.batch}: want 1 or more steps, 2 or more samples"
                )
            self.check_counts("train", "queries")

    cfg: Any

    @property
    def selected_on(self) -> str:
        """A tenth of training, where there is something to choose."""
        return "none" if self.choices == 1 else "a tenth of training"

    @property
    def choices(self) -> int:
        """Return how many heads there are to choose from."""
        return len(self.cfg.lr) * len(self.cfg.weight_decay)

    @abstractmethod
    def read(self, encoders: FrozenEncoders, modality: Modality, split: str, limit: int) -> Labeled:
        """Return what heads read of the labeled samples of a split, `limit` of them (0: all)."""

    @abstractmethod
    def builders(self, train: Labeled, classes: int) -> list[Callable[[], nn.Module]]:
        """Return what builds each kind of head for what is read."""

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`top1` of the chosen head, or `map`, in percent, with the chosen `lr` and `weight_decay`."""
        several = have_several(modality, self.cfg.split, "train")
        if not several and not self.labeled(modality, self.cfg.split, "train"):
            return {}
        train = self.read(encoders, modality, "train", self.cfg.train)
        scored = self.read(encoders, modality, self.cfg.split, self.cfg.queries)
        classes = int(train.labels.any(0).sum()) if several else len(train.labels.unique())
        if len(train.labels) < FEWEST or classes < (1 if several else 2) or not len(scored.labels):
            self.warn_nothing_to_measure(
                f"{len(train.labels)} labeled training samples (want {FEWEST} or more) of "
                f"{classes} classes and {len(scored.labels)} of the split"
            )
            return {}
        if not several and (said := unseen_classes(train.labels, scored.labels, self.cfg.split)):
            self.warn(said)
        chosen = self.fitted(train, validation_mask(len(train.labels)), encoders.device)
        found = self.measured(chosen.head, scored, encoders.device)
        if several:
            figures = figures_of(found, scored.labels)
        else:
            figures = {"top1": estimate(100.0 * found.numpy(), scored.groups)}
        return {**figures, "lr": chosen.lr, "weight_decay": chosen.weight_decay, **self.describe(chosen.head)}

    def metric_names(self) -> list[str]:
        """Those of the accuracy and of what was chosen."""
        return ["top1", "lr", "weight_decay"]

    def baselines(self, modality: Modality) -> dict[str, float]:
        """The accuracy of the most frequent class; of several classes each, how frequent they are."""
        cfg = self.cfg
        if have_several(modality, cfg.split, "train"):
            places = drawn(len(modality.dataset(cfg.split)), cfg.queries)
            made = featurized(nothing, modality, cfg.split, places, stream=cfg.stream)
            return {PREVALENCE: prevalence(labels_of(modality, cfg.split, made).labels)}
        if not self.labeled(modality, cfg.split, "train"):
            return {}
        sides = []
        for split, limit in (("train", cfg.train), (cfg.split, cfg.queries)):
            places = drawn(len(modality.dataset(split)), limit)
            sides.append(featurized(nothing, modality, split, places, stream=cfg.stream))
        train, scored = sides
        known = scored.labels >= 0
        if not bool(known.any()) or not bool((train.labels >= 0).any()):
            return {}
        labels = train.labels[train.labels >= 0]
        return {MAJORITY: majority_accuracy(labels, scored.labels[known], scored.groups[known].numpy())}

    def baseline_names(self, modality: Modality) -> list[str]:
        """That of the most frequent class."""
        return [MAJORITY]

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where the last top1, or mAP, is above the untrained encoder and the most frequent class."""
        return learned(self.what, scored_by(history), history, self.cfg.margin, level)

    def describe(self, head: nn.Module) -> dict[str, float]:
        """Return what else the chosen head says; nothing by default."""
        return {}

    def labeled_samples(
        self, modality: Modality, split: str, made: Featurized, inputs: tuple[Tensor, ...]
    ) -> Labeled:
        """Return the labeled ones of featurized samples, with what heads read of them [S, ...]."""
        known, labels = labels_of(modality, split, made)
        return Labeled(tuple(each[known] for each in inputs), labels, made.groups[known].numpy())

    def fitted(self, train: Labeled, choosing: Tensor, device: torch.device) -> Trial:
        """Return the head that some training samples (bool [S]) choose among those that the others train."""
        cfg, several = self.cfg, train.labels.dtype == torch.bool
        classes = train.labels.shape[1] if several else 1 + int(train.labels.max())
        trials = [
            trial
            for build in self.builders(train, classes)
            for trial in trials_of(build, cfg.lr, cfg.weight_decay, cfg.seed)
        ]
        for trial in trials:
            trial.head.to(device)
        labels, read = train.labels.to(device), reader(train.inputs, device)
        rows = (~choosing).nonzero().flatten()
        train_trials(
            trials, read, rows.to(device), labels, steps=cfg.steps, batch=cfg.batch, seed=cfg.seed,
            loss_of=binary_loss if several else F.cross_entropy,
        )  # fmt: skip
        return choose(trials, read, choosing.nonzero().flatten().to(device), labels).trial

    def measured(self, head: nn.Module, scored: Labeled, device: torch.device) -> Tensor:
        """Return which samples a head is right about, bool [Q], or the average precision of each class, [C]."""
        every = torch.arange(len(scored.labels), device=device)
        read, truth = reader(scored.inputs, device), scored.labels.to(device)
        if truth.dtype == torch.bool:
            return average_precisions(scores_of(head, read, every), truth).cpu()
        return hits(head, read, every, truth).cpu()


def reader(inputs: tuple[Tensor, ...], device: torch.device) -> Logits:
    """Return the function that gives a head what is read of some samples."""

    def logits(head: nn.Module, rows: Tensor) -> Tensor:
        return head(*(each[rows.to(each.device)].to(device) for each in inputs))

    return logits


def nothing(views: Views) -> Tensor:
    """Return features [R, 1] that say nothing: for labels alone."""
    return torch.zeros(len(views.x), 1)
