"""Mean intersection over union of masks: areas are summed over all pictures first, and divided after.

The mean over pictures of each picture's score is another number. As DINOv3's `eval/segmentation/metrics.py` and
mmsegmentation do it.
Shapes: C classes, n pictures, any number of pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from multissl.contract.abilities import IGNORED
from multissl.contract.estimate import Estimate

DRAWS = 1_000
"""Times that pictures are drawn for an interval."""


def without_zero(labels: Tensor) -> Tensor:
    """Return labels of which 0 is ignored and the others are one less (ADE20K)."""
    return torch.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1)


class Areas(NamedTuple):
    """Pixels by class, of any number of pictures; they add up."""

    both: Tensor
    """int64 [C], of a class in prediction and label."""
    predicted: Tensor
    """int64 [C]"""
    labeled: Tensor
    """int64 [C]"""

    @staticmethod
    def of(predicted: Tensor, labels: Tensor, classes: int, ignored: int = IGNORED) -> Areas:
        """Return the areas of predictions and labels of one shape, without ignored pixels."""
        known = labels != ignored
        predicted, labels = predicted[known], labels[known]
        return Areas(
            *(
                torch.bincount(part, minlength=classes)[:classes]
                for part in (predicted[predicted == labels], predicted, labels)
            )
        )

    @staticmethod
    def of_pictures(predicted: Tensor, labels: Tensor, classes: int) -> Areas:
        """Return the areas [n, C] of every picture, of predictions and labels [n, H, W]."""
        each = [Areas.of(p.long(), t.long(), classes) for p, t in zip(predicted, labels, strict=True)]
        return Areas(*(torch.stack(parts) for parts in zip(*each, strict=True)))

    def sum(self) -> Areas:
        """Return the areas of all pictures together."""
        return Areas(*(part.sum(0) for part in self))

    def iou(self) -> Tensor:
        """Return intersection over union by class, float64 [..., C]; NaN of classes that are nowhere."""
        return self.both.double() / (self.predicted + self.labeled - self.both)

    def mean_iou(self) -> Tensor:
        """Return its mean over classes that are somewhere."""
        return self.iou().nanmean(-1)

    def accuracy(self) -> Tensor:
        """Return the share of pixels that are right."""
        return self.both.sum().double() / self.labeled.sum()


def mean_iou_of(pictures: Areas, groups: np.ndarray | None = None) -> Estimate:
    """Return mIoU in percent of pictures [n, C], with the interval of 1,000 draws of as many pictures, or of groups.

    The scores of pictures are the figure's first-order parts: their mean is the figure, and their differences between
    two encoders say whether one is better on the same pictures.
    """
    total = pictures.sum()
    union = (total.predicted + total.labeled - total.both).double()  # [C]
    there = union > 0
    unions = (pictures.predicted + pictures.labeled - pictures.both).double()
    parts = (pictures.both.double() - total.iou() * unions)[:, there] / union[there]  # [n, C that are there]
    value = float(total.mean_iou())
    scores = 100 * (value + len(parts) * parts.mean(1))
    return Estimate(
        100 * value, len(parts), _drawn_interval(pictures, groups),
        scores.float().numpy(), groups if groups is not None and bool((groups >= 0).any()) else None,
    )  # fmt: skip


def _drawn_interval(pictures: Areas, groups: np.ndarray | None) -> tuple[float, float]:
    """Return the 2.5th and the 97.5th percentile of mIoU over draws; NaN of a single picture or group."""
    count = len(pictures.both)
    own = np.arange(count) if groups is None else np.where(groups < 0, count + np.arange(count), groups)
    units, place = np.unique(own, return_inverse=True)
    if len(units) < 2:
        return math.nan, math.nan
    places = torch.from_numpy(place)
    sums = Areas(*(p.new_zeros(len(units), p.shape[1]).index_add_(0, places, p) for p in pictures))
    draw = np.random.default_rng(0).multinomial(len(units), np.full(len(units), 1 / len(units)), DRAWS)
    weights = torch.from_numpy(draw).double()  # [draws, units]
    figures = Areas(*(weights @ part.double() for part in sums)).mean_iou()
    low, high = np.nanpercentile(figures.numpy(), [2.5, 97.5])
    return 100 * float(low), 100 * float(high)
