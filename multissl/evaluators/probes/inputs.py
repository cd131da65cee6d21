"""What DINOv2's linear evaluation reads and the grids it searches (`dinov2/eval/linear.py`, `log_regression.py`).

Oquab et al. 2024, arXiv 2304.07193, appendix B.3. Its 52 classifiers see the class tokens of the last block or the last
four, with and without the mean patch of the last one.
Shapes: R rows, N patches, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
"""For a batch of 256."""
INVERSE_PENALTIES = tuple((10 ** torch.linspace(-6, 5, 45)).tolist())
"""Strengths of its logistic regression, scikit-learn's C: the sum of losses times C plus half the squared weights."""


def scale_rate(rate: float, batch: int) -> float:
    """Return a learning rate for a batch over all ranks."""
    return rate * batch / 256


def linear_input(blocks: Sequence[tuple[Tensor, Tensor]], last: int, average: bool) -> Tensor:
    """Return features [R, last * D], or one D more, of (patches [R, N, D], class token [R, D]) by block, first to last.

    The class tokens of the last blocks, the oldest first, and with `average` the mean patch of the last block.
    """
    parts = [token for _, token in blocks[-last:]]
    return torch.cat([*parts, blocks[-1][0].mean(1)] if average else parts, dim=-1)
