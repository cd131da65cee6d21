"""The label column of a table: classes, or numbers that evaluators of classes see as five equal parts.

Shapes: S rows.  State: the classes' names, or the four cuts between the parts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multissl.modalities.tabular.schema import numbers
from multissl.modalities.tabular.tables import texts

MANY = 20
"""Different numbers from which on a label is a quantity."""


@dataclass(slots=True)
class Labels:
    """What was fitted to the label of the training rows."""

    classes: list[str] = field(default_factory=list)
    cuts: list[float] = field(default_factory=list)

    @staticmethod
    def fit(column: np.ndarray | None, train: np.ndarray) -> Labels:
        """Classes in order of their names, or cuts at fifths where there are more than 20 different numbers."""
        if column is None:
            return Labels()
        values, odd = numbers(column[train])
        known = values[~np.isnan(values)]
        if not odd.any() and len(np.unique(known)) > MANY:
            return Labels(cuts=np.quantile(known, [0.2, 0.4, 0.6, 0.8]).tolist())
        return Labels(classes=sorted({str(c) for c in texts(column[train]) if c is not None}))

    def apply(self, column: np.ndarray | None, count: int) -> tuple[np.ndarray, Tensor | None]:
        """Class numbers int64 [S], -1 where unknown, and the numbers themselves, float32 [S], of a quantity."""
        if column is None:
            return np.full(count, -1), None
        if self.cuts:
            values, _ = numbers(column)
            parts = np.where(np.isnan(values), -1, np.searchsorted(self.cuts, values, side="right"))
            return parts.astype(np.int64), torch.from_numpy(values.astype(np.float32))
        place = {name: i for i, name in enumerate(self.classes)}
        return np.array([place.get(str(c), -1) for c in texts(column)], np.int64), None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)
