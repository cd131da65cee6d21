"""k-NN with few labeled samples of each class, drawn as DINOv2 and DINOv3 draw them.

Oquab et al. 2024, arXiv 2304.07193, and Simeoni et al. 2025, arXiv 2508.10104: `eval/knn.py` and `eval/data.py` of
their code. The draws depend on labels and the number of the try alone, so all models see the same ones.
Shapes: S samples, Q queries, F features, C classes, k neighbors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.evaluators.classified import labeled_task
from multissl.evaluators.neighbors import check_temperature, nearest, normalized
from multissl.inference import Featurize, Pooled, measured_baselines


def draw_per_class(labels: Tensor, count: int | float, draw: int) -> Tensor:
    """Return positions int64 [n] of `count` samples of each class, or of a share of each where it is below 1.

    Classes in order of their label; a share keeps at least one. Raises `ValueError` where a class has too few.
    """
    generator = torch.Generator().manual_seed(draw)
    chosen = []
    for label in labels.unique().tolist():
        places = (labels == label).nonzero().flatten()
        size = max(int(len(places) * count), 1) if isinstance(count, float) else count
        if size > len(places):
            raise ValueError(f"class {label} has {len(places)} samples, fewer than the {size} of a draw")
        chosen.append(places[torch.randperm(len(places), generator=generator)[:size]])
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


class FewShot(Evaluator):
    """k-NN accuracy with few labeled samples of each class, in percent, means over draws."""

    fits = True
    reads = "pooled"
    titles: ClassVar[dict[str, str]] = {"n1": "k-NN accuracy with 1 label per class, %"}

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of the k-NN with few labels."""

        per_class: tuple[int, ...] = (1, 5, 10)
        """Labeled samples of each class. With 5 the figures are n5, of 5 neighbors, and n5_k1 for other numbers of
        neighbors that a class can fill."""
        k: tuple[int, ...] = (1,)
        """Neighbors that vote, beside as many as a class has labeled samples."""
        tries: int = 5
        """Times that samples are drawn, the same ones for all models."""
        temperature: float = 0.07
        """Temperature of the votes, which are softmax shares."""
        train: int = 20_000
        """Training samples that are drawn from, themselves drawn with a fixed seed; 0: all."""
        queries: int = 5_000
        """Samples of the split, drawn with a fixed seed; 0: all."""
        split: str = "val"
        """Where the queries come from."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if not self.per_class or min(self.per_class) < 1 or (self.k and min(self.k) < 1):
                raise ValueError(
                    f"per_class={self.per_class}, k={self.k}: want numbers that are 1 or more each"
                )
            if self.tries < 2:
                raise ValueError(f"tries={self.tries}: want 2 or more, or there is no interval")
            check_temperature(self.temperature)
            self.check_counts("train", "queries")

    cfg: Config

    def metric_names(self) -> list[str]:
        """One for each number of samples and neighbors."""
        return [figure_name(n, k) for n in self.cfg.per_class for k in neighbor_counts(self.cfg.k, n)]

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`n1`, `n5` and so on in percent, means over draws with their intervals."""
        return self._measured(Pooled(encoders), modality, encoders.device)

    def baselines(self, modality: Modality) -> dict[str, float]:
        """The figure of the most samples and neighbors, of the modality's classical features."""
        figures: dict[str, float] = {}
        for name, measured in measured_baselines(modality, self._measured):
            most = [n for n in sorted(self.cfg.per_class) if figure_name(n, n) in measured]
            if most:
                figures[name] = measured[figure_name(most[-1], most[-1])]
        return figures

    def _measured(
        self, featurize: Featurize, modality: Modality, device: torch.device | str
    ) -> dict[str, float]:
        cfg = self.cfg
        if not self.labeled(modality, cfg.split, "train"):
            return {}
        task = labeled_task(
            self, featurize, modality, split=cfg.split, train=cfg.train, queries=cfg.queries, device=device
        )
        if task is None:
            return {}
        labels, truth = task.y, task.truth
        smallest = int(labels.unique(return_counts=True)[1].min())
        bank, queries = normalized(task.x, task.queries)
        classes = 1 + int(max(labels.max(), truth.max()))
        figures: dict[str, float] = {}
        for count in sorted({*cfg.per_class}):
            if count > smallest:
                self.warn(f"per_class={count} is left out: a class has {smallest} training samples")
                continue
            ks = neighbor_counts(cfg.k, count)
            scores: dict[int, list[float]] = {k: [] for k in ks}
            for draw in range(cfg.tries):
                rows = draw_per_class(labels, count, draw)
                votes = shares(bank[rows], labels[rows], queries, ks, cfg.temperature, classes)
                for k in ks:
                    scores[k].append(100 * float((votes[k].argmax(1) == truth).double().mean()))
            figures |= {figure_name(count, k): estimate(np.array(scores[k]), percent=False) for k in ks}
        return figures


def figure_name(count: int, k: int) -> str:
    """Return what the figure of so many samples of a class and neighbors is called."""
    return f"n{count}" if k == count else f"n{count}_k{k}"
