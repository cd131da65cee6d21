"""Segmentation by nearest patches: every pixel takes the class that most of a patch's neighbors have at its place.

CAPI (Darcet et al. 2025, arXiv 2502.08769, `eval_segmentation.py`): features are standardized, the label of a patch is
all of its pixels, training patches whose most frequent label is no class are left out, and a tenth of the training
pictures chooses the number of neighbors and the metric. Nothing is trained, so there is no schedule to get wrong.
Shapes: S pictures, D width, h x w tokens, H, W pixels, P pixels of a patch, M patches of the bank, Q queries, k
neighbors, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.abilities import IGNORED
from multissl.evaluators.dense.reading import Dense, split_training
from multissl.evaluators.dense.segmentation import Predicted, Segmentation, mean_iou
from multissl.evaluators.linear_probe import standardized
from multissl.evaluators.neighbors import nearest
from multissl.inference import drawn

Metric = Literal["cosine", "l2"]
CHUNK = 256
"""Queries that vote at a time."""


class PatchKNN(Segmentation):
    """MIoU of the nearest patches' labels, in percent; areas are summed over pictures."""

    what = "segmentation by nearest patches"
    titles: ClassVar[dict[str, str]] = {
        "miou": "nearest patches, mIoU, %",
        "pixel_accuracy": "nearest patches, accuracy of pixels, %",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Segmentation.Config):
        """Options of the nearest patches."""

        k: tuple[int, ...] = (1, 3, 10, 30)
        """Numbers of neighbors to choose from."""
        metrics: tuple[Metric, ...] = ("cosine", "l2")
        """Metrics to choose from."""
        bank: int = 20_000
        """Training patches, drawn with a fixed seed; 0: all."""

        def __post_init__(self) -> None:
            Segmentation.Config.__post_init__(self)
            self.check_counts("bank")
            if not self.k or min(self.k) < 1 or not self.metrics:
                raise ValueError(
                    f"k={self.k}, metrics={self.metrics}: want one or more of each, neighbors from 1 on"
                )

    cfg: Config

    @property
    def selected_on(self) -> str:
        """A tenth of training, where there is something to choose."""
        return "none" if len(self.cfg.k) * len(self.cfg.metrics) == 1 else "a tenth of training"

    def predict(self, train: Dense, scored: Dense, classes: int, device: torch.device) -> Predicted:
        """Return the classes of the chosen number of neighbors and metric, from all training patches."""
        k, metric = self._choose(train, classes, device)
        made = self._predicted(train, scored, classes, (k,), metric, device)[k]
        return Predicted(made, {"k": float(k), "cosine": float(metric == "cosine")})

    def _choose(self, train: Dense, classes: int, device: torch.device) -> tuple[int, Metric]:
        """Return the number of neighbors and the metric that are best on a tenth of training; the first of equals."""
        if self.selected_on == "none":
            return self.cfg.k[0], self.cfg.metrics[0]
        most, tenth = split_training(train)
        scores: dict[tuple[int, Metric], float] = {}
        for metric in self.cfg.metrics:
            for k, made in self._predicted(most, tenth, classes, self.cfg.k, metric, device).items():
                scores[k, metric] = mean_iou(made, tenth.labels, classes)
        return max(scores, key=lambda each: scores[each])

    def _predicted(
        self,
        train: Dense,
        scored: Dense,
        classes: int,
        ks: tuple[int, ...],
        metric: Metric,
        device: torch.device,
    ) -> dict[int, Tensor]:
        """Return classes uint8 [S, H, W] by number of neighbors."""
        bank, labels = bank_of(train, classes, self.cfg.bank)
        grid = scored.tokens.shape[2:]
        queries = scored.tokens.permute(0, 2, 3, 1).flatten(0, 2)  # [Q, D]
        bank, queries = (x.to(device) for x in PREPARE[metric](*standardized(bank, queries)))
        _, index = nearest(bank, queries, max(ks))  # [Q, k], [M, P]
        size = tuple(scored.labels.shape[1:])
        return {
            k: from_patches(
                voted(labels, index[:, :k].cpu(), classes), (grid[0], grid[1]), (size[0], size[1])
            )
            for k in ks
        }


def bank_of(train: Dense, classes: int, limit: int) -> tuple[Tensor, Tensor]:
    """Return patches [M, D] that are of a class, and their pixels' labels [M, P]; `limit` of them (0: all)."""
    grid = train.tokens.shape[2:]
    labels = to_patches(train.labels, (grid[0], grid[1]))
    counts = torch.stack([(labels == c).sum(1) for c in range(classes)], 1)  # [M, C]
    known = ((labels == IGNORED).sum(1) <= counts.amax(1)).nonzero().flatten()
    if not len(known):
        raise ValueError(
            "no training patch has a class as its most frequent label: nothing can be found near it"
        )
    rows = known[drawn(len(known), limit)]
    return train.tokens.permute(0, 2, 3, 1).flatten(0, 2)[rows], labels[rows]


def to_patches(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the pixels of every patch: [S * h * w, P] of [S, H, W]."""
    (count, height, width), (high, wide) = labels.shape, grid
    cut = labels.reshape(count, high, height // high, wide, width // wide)
    return cut.transpose(2, 3).reshape(count * high * wide, -1)


def from_patches(patches: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return pictures [S, H, W] of the pixels of patches [S * h * w, P]."""
    (high, wide), (height, width) = grid, size
    cut = patches.reshape(-1, high, wide, height // high, width // wide)
    return cut.transpose(2, 3).reshape(-1, height, width)


def by_cosine(bank: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors whose products rank neighbors by cosine."""
    return F.normalize(bank, dim=1), F.normalize(queries, dim=1)


def by_distance(bank: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors whose products rank neighbors by distance: 2 q.b - |b|^2 is |q|^2 less the squared distance."""
    squares = bank.square().sum(1, keepdim=True)
    return torch.cat([bank, -squares], 1), torch.cat([2 * queries, queries.new_ones(len(queries), 1)], 1)


PREPARE: dict[Metric, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "cosine": by_cosine,
    "l2": by_distance,
}


def voted(labels: Tensor, index: Tensor, classes: int) -> Tensor:
    """Return the classes uint8 [Q, P] that most neighbors (index [Q, k] into labels [M, P]) have at each pixel.

    Of equals the smallest class. Pixels of no class do not vote; where all are such, the neighbors' other pixels do.
    """
    made = []
    for some in index.split(CHUNK):
        votes = labels[some].long()  # [q, k, P]
        votes = torch.where(votes == IGNORED, classes, votes)
        counts = votes.new_zeros(len(some), votes.shape[2], classes + 1)
        counts.scatter_add_(2, votes.transpose(1, 2), torch.ones_like(votes).transpose(1, 2))
        here = counts[..., :classes]
        nearby = here.sum(1, keepdim=True).expand_as(here)
        counted = torch.where(here.any(2, keepdim=True), here, nearby)
        made.append(counted.argmax(2).to(torch.uint8))
    return torch.cat(made)
