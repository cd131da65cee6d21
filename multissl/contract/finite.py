"""Values that are not finite end where they are made: a measurement of them would be a plausible wrong number.

Shapes: R rows, B samples.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class NotFinite(ArithmeticError):
    """Rows whose values are NaN or infinite, and what they are rows of."""

    def __init__(self, rows: Sequence[int], where: str = "") -> None:
        super().__init__(where or f"row {rows[0]}")
        self.rows, self.where = tuple(rows), where

    def named(self, where: str) -> NotFinite:
        """Return the same rows under a name that a reader can look up, such as "sample 3 of the val split"."""
        return NotFinite(self.rows, where)


def check_finite(values: Tensor, present: Tensor | None = None, valid: Tensor | None = None) -> None:
    """Raise `NotFinite` unless values [R, ...] are finite; rows of absent samples (bool [B]) and padding do not count.

    `valid` is bool of the first dimensions of values, False on padding. Absent samples have stand-ins, whose values
    may be anything.
    """
    finite = values.detach().isfinite()
    if valid is not None:
        padding = ~valid.to(finite.device)
        finite = finite | padding.reshape(padding.shape + (1,) * (finite.ndim - padding.ndim))
    rows = finite.flatten(1).all(1) if finite.ndim > 1 else finite
    if present is not None:
        rows = rows | ~present.to(rows.device).repeat(len(rows) // len(present))
    if not bool(rows.all()):
        raise NotFinite((~rows).nonzero().flatten().tolist())
