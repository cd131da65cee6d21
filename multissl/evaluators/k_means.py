"""k-means: do features fall into clusters that are the classes, without a label used to find them?

As many clusters as the split has classes, on l2-normalized features, several times from other starts (scikit-learn).
Accuracy matches clusters to classes one to one so that most samples are right (Kuhn 1955); NMI with the arithmetic mean
and ARI are scikit-learn's. Papers differ in the details: this definition is our own. The clusters are those of the
scored split itself, as usual; its labels name them and are used for nothing else.
Shapes: S samples, F features, K clusters, T starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl import registry
from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.verdict import Verdict
from multissl.evaluators.verdicts import learned
from multissl.inference import Featurize, Pooled, measured_baselines, scored_split
from multissl.statistics import LEVEL


class KMeans(Evaluator):
    """Accuracy, NMI and ARI of clusters beside classes, in percent, means over starts."""

    reads = "pooled"
    titles: ClassVar[dict[str, str]] = {
        "accuracy": "k-means accuracy (clusters matched to classes), %",
        "nmi": "k-means NMI, %",
        "ari": "k-means ARI, %",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of k-means."""

        split: str = "val"
        """Split whose features are clustered."""
        samples: int = 2_000
        """Samples of the split, drawn with a fixed seed; 0: all."""
        starts: int = 5
        """Times that clusters are looked for, each from another start."""
        tries: int = 3
        """Starts of each of these, of which the tightest clusters count."""
        margin: float = 2.0
        """Points of accuracy above the untrained encoder and the raw input that would matter, as for the k-NN."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            self.check_counts("samples")
            if self.starts < 1 or self.tries < 1:
                raise ValueError(f"starts={self.starts}, tries={self.tries}: want 1 or more of both")

    cfg: Config

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`accuracy`, `nmi` and `ari`; nothing without labels of two classes."""
        return self._measured(Pooled(encoders), modality, encoders.device)

    def baselines(self, modality: Modality) -> dict[str, float]:
        """The accuracy of clusters of the modality's classical features."""
        return {name: each["accuracy"] for name, each in measured_baselines(modality, self._measured)}

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where the last accuracy is above the untrained encoder's and the raw input's."""
        return learned("k-means accuracy", "accuracy", history, self.cfg.margin, level)

    def _measured(
        self, featurize: Featurize, modality: Modality, device: torch.device | str
    ) -> dict[str, float]:
        cfg = self.cfg
        if not self.labeled(modality, cfg.split):
            return {}
        x, labels, groups = scored_split(featurize, modality, cfg.split, cfg.samples, device, cfg.stream)
        classes = len(labels.unique())
        if classes < 2:
            self.warn_nothing_to_measure(f"{len(labels)} labeled samples of {classes} classes")
            return {}
        clusters = find_clusters(x, classes, cfg.starts, cfg.tries)
        return cluster_scores(clusters, labels.numpy(), groups)


def find_clusters(x: Tensor, count: int, starts: int, tries: int) -> np.ndarray:
    """Return clusters int [T, S] of features [S, F], from so many starts."""
    k_means = registry.require("sklearn.cluster").KMeans
    unit = F.normalize(x.double(), dim=1).numpy()
    count = min(count, len(np.unique(unit, axis=0)))  # features that have collapsed have fewer points
    return np.stack(
        [k_means(count, n_init=tries, random_state=seed).fit_predict(unit) for seed in range(starts)]
    )


def cluster_scores(
    clusters: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None
) -> dict[str, float]:
    """Return the scores in percent of clusters [T, S] beside labels [S], means over T."""
    metrics = registry.require("sklearn.metrics")
    hits = np.stack([matched(each, labels) for each in clusters])  # [T, S]
    scores = {
        "nmi": [metrics.normalized_mutual_info_score(labels, each) for each in clusters],
        "ari": [metrics.adjusted_rand_score(labels, each) for each in clusters],
    }
    means = {name: 100 * float(np.mean(values)) for name, values in scores.items()}
    return {"accuracy": estimate(100 * hits.mean(0), groups), **means}


def matched(clusters: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return whether samples are of the class that their cluster is matched with, one class for each: bool [S]."""
    _, cluster = np.unique(clusters, return_inverse=True)
    _, label = np.unique(labels, return_inverse=True)
    table = np.zeros((cluster.max() + 1, label.max() + 1), np.int64)
    np.add.at(table, (cluster, label), 1)
    rows, columns = registry.require("scipy.optimize").linear_sum_assignment(table, maximize=True)
    class_of = np.full(len(table), -1)
    class_of[rows] = columns
    return class_of[cluster] == label
