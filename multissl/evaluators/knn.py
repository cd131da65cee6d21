"""Weighted k-NN on frozen features.

Wu et al., CVPR 2018, arXiv 1805.01978, as DINO uses it (Caron et al., arXiv 2104.14294): a query's k most
similar bank samples vote for their class with exp(similarity / T). One function serves learned, untrained and
raw features: centered with the bank's mean (or whitened by the bank, if asked), then l2-normalized. The figure that is
compared is that of the first k at `temperature`; others stand beside it, and none is chosen by its score.
DINO's and DINOv2's own scripts do not center, and report k 10, 20, 100 and 200 at a temperature of 0.07:
`--knn.k 20 10 100 200 --knn.center false`.
Shapes: S samples in the bank, Q queries, F features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Figure, Progress
from multissl.contract.modality import Modality
from multissl.contract.verdict import Verdict
from multissl.evaluators.classified import labeled_task
from multissl.evaluators.neighbors import (
    centered,
    check_temperature,
    nearest,
    neighbor_strip,
    normalized,
    whitened,
)
from multissl.evaluators.verdicts import MAJORITY, learned
from multissl.inference import Featurize, Pooled, measured_baselines
from multissl.statistics import LEVEL


class KNN(Evaluator):
    """Accuracy of a weighted vote of the nearest training samples, in percent."""

    reads = "pooled"
    fits = True
    titles: ClassVar[dict[str, str]] = {"top1": "k-NN accuracy, %"}

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of the k-NN."""

        k: tuple[int, ...] = (20,)
        """Neighbors that vote. The first is reported as top1, others as top1_k10 and so on."""
        temperature: float = 0.07
        """Temperature of the votes: a neighbour counts exp((s - 1) / temperature) at cosine s."""
        temperatures: tuple[float, ...] = ()
        """More temperatures: every k is reported at each as well, as top1_k20_t0.1 and so on."""
        center: bool = True
        """Take the bank's mean off all features, the classical ones too; DINO's and DINOv2's scripts do not."""
        whiten: bool = False
        """Whiten all features by the bank's principal components, the classical ones too."""
        split: str = "val"
        """Where the queries come from; the bank is the train split."""
        bank: int = 20_000
        """Samples of the bank, drawn from the train split with a fixed seed; 0: all."""
        queries: int = 5_000
        """Queries, drawn from the split with a fixed seed; 0: all."""
        student: bool = True
        """Measure the student too, where a teacher is what the run exports."""
        margin: float = 2.0
        """Points above the untrained encoder and the raw input that would matter: with fewer samples than tell them
        from none, a run that shows no gain is not said to have learned nothing."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if not self.k or min(self.k) < 1:
                raise ValueError(f"k={self.k}: want one or more counts of neighbors, each 1 or more")
            check_temperature(self.temperature)
            if not all(t >= 0.01 for t in self.temperatures):
                raise ValueError(f"temperatures={self.temperatures}: want each 0.01 or more, 0.07 is usual")
            if self.whiten and not self.center:
                raise ValueError(
                    "whiten=True and center=False: whitened features are centered; leave center on"
                )
            self.check_counts("bank", "queries")

    cfg: Config

    @property
    def measures_student(self) -> bool:
        """As its option says."""
        return self.cfg.student

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`top1` of the pooled features, in percent; nothing on data without labels."""
        if not self.labeled(modality, self.cfg.split, "train"):
            return {}
        measured = self._measured(Pooled(encoders), modality, encoders.device)
        if measured is None:
            return {}
        first, others = measured.accuracies[0], measured.accuracies[1:]
        return {"top1": first, **dict(zip(self._names(), others, strict=True))}

    def _names(self) -> list[str]:
        """Return what figures beside the first are called, in the order of `measured`."""
        ks = [*dict.fromkeys(self.cfg.k)]
        more = [f"top1_k{k}_t{t:g}" for t in self.cfg.temperatures for k in ks]
        return [*(f"top1_k{k}" for k in ks[1:]), *more]

    def metric_names(self) -> list[str]:
        """Of every k at every temperature."""
        return ["top1", *self._names()]

    def baselines(self, modality: Modality) -> dict[str, float]:
        """The same figure for each of the modality's classical features, and that of the most frequent class."""
        if not self.labeled(modality, self.cfg.split, "train"):
            return {}
        figures: dict[str, float] = {}
        for name, measured in measured_baselines(modality, self._measured):
            figures |= {name: measured.accuracies[0], MAJORITY: measured.majority}
        return figures

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where the last top1 is above the untrained encoder, the raw input and the most frequent class."""
        return learned("k-NN", "top1", history, self.cfg.margin, level)

    def figures(self, encoders: FrozenEncoders, modality: Modality) -> list[Figure]:
        """Some queries, each with its nearest training samples; none where samples are no pictures."""
        strip = neighbor_strip(encoders, modality, self.cfg.split, stream=self.cfg.stream)
        return [] if strip is None else [strip]

    def _measured(
        self, featurize: Featurize, modality: Modality, device: torch.device | str
    ) -> Accuracies | None:
        """Return the accuracies of any features of the modality's samples; None where there is nothing to measure."""
        cfg = self.cfg
        task = labeled_task(
            self, featurize, modality, split=cfg.split, train=cfg.bank, queries=cfg.queries, device=device
        )
        if task is None:
            return None
        prepare = whitened if cfg.whiten else centered if cfg.center else normalized
        accuracies = [
            accuracy
            for T in (cfg.temperature, *cfg.temperatures)
            for accuracy in knn_accuracy(
                task.x, task.y, task.queries, task.truth, cfg.k, T, device, task.groups, prepare
            ).values()
        ]
        return Accuracies(accuracies, task.majority)


class Accuracies(NamedTuple):
    """What the k-NN measures of some features, in percent."""

    accuracies: list[float]
    """Of every k at the first temperature, then at the others."""
    majority: float
    """Of the most frequent class, whatever the query."""


def knn_accuracy(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    truth: Tensor,
    ks: Sequence[int] = (20,),
    T: float = 0.07,
    device: torch.device | str = "cpu",
    groups: np.ndarray | None = None,
    prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = centered,
) -> dict[int, float]:
    """Accuracy in percent by k, of raw features bank [S, F] and queries [Q, F]; labels int64 [S] and [Q].

    Queries of one of the groups [Q] count together in the figure's interval. `prepare` makes unit vectors of both.

    NaN where features are not finite. A vote that is equal for all classes is worth chance.
    """
    if not bool(bank.isfinite().all() & queries.isfinite().all()):
        return dict.fromkeys(ks, math.nan)
    bank, queries = (x.to(device) for x in prepare(bank, queries))
    similarity, index = nearest(bank, queries, max(ks))  # [Q, max k]
    similarity, index = similarity.cpu(), drawn_if_equal(bank, queries, similarity, index).cpu()
    num_classes, known = 1 + int(max(labels.max(), truth.max())), labels.unique()
    found = {}
    for k in ks:
        sums = votes(similarity[:, :k], labels[index[:, :k]], T, num_classes)  # [Q, C]
        right = (sums.argmax(1) == truth).double()
        undecided = sums[:, known].amax(1) == sums[:, known].amin(1)  # as many votes for every class: chance
        chance = torch.isin(truth, known).double() / len(known)
        found[k] = estimate(100 * torch.where(undecided, chance, right).numpy(), groups)
    return found


EQUAL = 1e-6
"""Similarities in float32 this close are one."""


def drawn_if_equal(bank: Tensor, queries: Tensor, similarity: Tensor, index: Tensor) -> Tensor:
    """Return index [Q, k], drawn from the whole bank with a fixed seed where a query is as near to all of it.

    That is so of features that have collapsed; the order of the bank would choose the neighbors otherwise.
    """
    index, draw = index.clone(), torch.Generator().manual_seed(0)
    for query in (similarity[:, 0] - similarity[:, -1] <= EQUAL).nonzero().flatten().tolist():
        every = bank @ queries[query]
        if bool(every.amax() - every.amin() <= EQUAL):
            index[query] = torch.randperm(len(bank), generator=draw)[: index.shape[1]].to(index.device)
    return index


def knn_predict(bank: Tensor, labels: Tensor, queries: Tensor, k: int, T: float, num_classes: int) -> Tensor:
    """Votes [Q, C] of the k nearest of bank [S, F], both sides l2-normalized; the argmax predicts."""
    similarity, index = nearest(bank, queries, k)
    return votes(similarity, labels[index], T, num_classes)


def votes(similarity: Tensor, classes: Tensor, T: float, num_classes: int) -> Tensor:
    """Sums of exp(similarity / T) by class: [Q, C] from similarities and classes [Q, k].

    A query with a neighbor at NaN has NaN for every class, as no class wins.
    """
    weight = (similarity.double() / T).exp()  # [Q, k]; exp(100) is no float32
    sums = weight.new_zeros(len(weight), num_classes).scatter_add_(1, classes, weight)
    return sums.masked_fill(sums.isnan().any(1, keepdim=True), math.nan)
