"""Is the encoder as good for every group? k-NN accuracy of each group of samples, the worst, and the gap.

DINOv2's section 8 (arXiv 2304.07193) reports such accuracies by income and region of Dollar Street, and a relative
drop; there is no published code, and what is measured here is our own definition: the groups are those of the data
(a column `group`, such as a speaker or a region), each figure has the n and the interval of its group, and no groups
are merged. The gap between the best and the worst of many small groups is large by chance alone: groups of fewer
than `least` samples have no part in it, and are said.
Shapes: S samples in the bank, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from multissl.contract.estimate import Estimate, estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.evaluators.classified import labeled_task
from multissl.evaluators.knn import knn_accuracy
from multissl.evaluators.neighbors import check_temperature
from multissl.inference import Featurize, Pooled, measured_baselines


class GroupGaps(Evaluator):
    """k-NN accuracy by group, the worst and the gap, in percent."""

    fits = True
    reads = "pooled"
    titles: ClassVar[dict[str, str]] = {
        "worst": "k-NN accuracy of the worst group, %",
        "gap": "k-NN accuracy, best group minus worst, points",
        "groups": "groups that are compared",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of the accuracies by group."""

        k: int = 20
        """Neighbors that vote."""
        temperature: float = 0.07
        """Temperature of the votes: a neighbour counts exp((s - 1) / temperature) at cosine s."""
        least: int = 20
        """Queries that a group has at least to be compared."""
        split: str = "val"
        """Where the queries come from; the bank is the train split."""
        bank: int = 20_000
        """Samples of the bank, drawn from the train split with a fixed seed; 0: all."""
        queries: int = 5_000
        """Queries, drawn from the split with a fixed seed; 0: all."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if self.k < 1 or self.least < 2:
                raise ValueError(f"k={self.k}, least={self.least}: want 1 or more, and 2 or more")
            check_temperature(self.temperature)
            self.check_counts("bank", "queries")

    cfg: Config

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`worst`, `gap`, the number of `groups`, and the accuracy of each, `group/7` of number 7."""
        return self._measured(Pooled(encoders), modality, encoders.device)

    def baselines(self, modality: Modality) -> dict[str, float]:
        """The gap of the modality's classical features."""
        return {name: each["gap"] for name, each in measured_baselines(modality, self._measured)}

    def _measured(
        self, featurize: Featurize, modality: Modality, device: torch.device | str
    ) -> dict[str, float]:
        cfg = self.cfg
        if not self.labeled(modality, cfg.split, "train"):
            return {}
        task = labeled_task(
            self, featurize, modality, split=cfg.split, train=cfg.bank, queries=cfg.queries, device=device
        )
        if task is None:
            return {}
        accuracy = knn_accuracy(task.x, task.y, task.queries, task.truth, (cfg.k,), cfg.temperature, device)[
            cfg.k
        ]
        if not isinstance(accuracy, Estimate) or accuracy.scores is None:
            return dict.fromkeys(self.metric_names(), torch.nan)
        return self._by_group(accuracy.scores, task.groups)

    def _by_group(self, scores: np.ndarray, groups: np.ndarray) -> dict[str, float]:
        """Return the figures of scores [Q] in groups [Q]."""
        numbers, counts = np.unique(groups[groups >= 0], return_counts=True)
        compared = numbers[counts >= self.cfg.least]
        if len(compared) < 2:
            self.warn_nothing_to_measure(
                f"{len(compared)} groups of the {self.cfg.split} split have least={self.cfg.least} samples or more, of "
                f"{len(numbers)}; want 2"
            )
            return {}
        if len(compared) < len(numbers):
            self.warn(
                f"{len(numbers) - len(compared)} of {len(numbers)} groups have fewer than least={self.cfg.least} "
                "samples and no part in the gap"
            )
        each = {f"group/{int(g)}": estimate(scores[groups == g]) for g in compared}
        worst = min(each.values())
        return {"worst": worst, "gap": max(each.values()) - worst, "groups": float(len(each)), **each}
