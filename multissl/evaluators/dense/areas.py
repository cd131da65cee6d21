"""Mean intersection over union of masks: areas are summed over all pictures first, and divided after.

The mean over pictures of each picture's score is another number. As DINOv3's `eval/segmentation/metrics.py` and
mmsegmentation do it.
Shapes: C classes, any number of pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = 255
"""The label of pixels that count nowhere."""


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

    def iou(self) -> Tensor:
        """Return intersection over union by class, float64 [C]; NaN of classes that are nowhere."""
        return self.both.double() / (self.predicted + self.labeled - self.both)

    def mean_iou(self) -> Tensor:
        """Return its mean over classes that are somewhere."""
        return self.iou().nanmean()

    def accuracy(self) -> Tensor:
        """Return the share of pixels that are right."""
        return self.both.sum().double() / self.labeled.sum()
