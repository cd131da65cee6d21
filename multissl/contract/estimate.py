"""A figure that knows how far it can be trusted: its n, its 95 % interval, and the scores it is the mean of.

Shapes: n samples.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from multissl.statistics import mean_interval, share_interval


class Estimate(float):
    """A number like any other, with the samples behind it."""

    n: int
    """Samples, or draws of them."""
    low: float
    """Ends of the 95 % interval."""
    high: float
    scores: np.ndarray | None
    """float32 [n], in the order of the samples, whose mean the figure is; None where it is no mean."""
    groups: np.ndarray | None
    """int64 [n], of samples that are not independent; None where all are."""

    def __new__(
        cls,
        value: float,
        n: int,
        interval: tuple[float, float],
        scores: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> Self:
        """Return the figure with what is known of it."""
        made = super().__new__(cls, value)
        made.n, (made.low, made.high) = n, interval
        made.scores, made.groups = scores, groups
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return float(self), self.n, (self.low, self.high), self.scores, self.groups

    def to_json(self, with_scores: bool) -> dict[str, Any]:
        """Return what is known of the figure, without the figure itself, as JSON values."""
        ends = [end if math.isfinite(end) else None for end in (self.low, self.high)]
        values: dict[str, Any] = {"n": self.n, "low": ends[0], "high": ends[1]}
        if with_scores and self.scores is not None:
            values["scores"] = _packed(self.scores)
            if self.groups is not None:
                values["groups"] = _text(self.groups.astype("<i4"))
        return values


def estimate(
    scores: np.ndarray, groups: np.ndarray | None = None, *, percent: bool = True, value: float | None = None
) -> Estimate | float:
    """Return the mean of scores [n] as a figure; of percent, each lies in 0..100. NaN where a score is not finite.

    `value` is the figure where it is the mean only up to rounding.
    """
    scores = np.asarray(scores, np.float64)
    if not len(scores) or not np.isfinite(scores).all():
        return math.nan
    if groups is not None and bool((groups < 0).all()):
        groups = None
    if percent:
        low, high = (100 * end for end in share_interval(scores / 100, groups))
    else:
        low, high = mean_interval(scores, groups)
    mean = float(scores.mean()) if value is None else value
    return Estimate(mean, len(scores), (low, high), scores.astype(np.float32), groups)


def restored(value: float, known: Mapping[str, Any]) -> Estimate:
    """Return a figure with what `Estimate.to_json` wrote of it."""
    scores, groups = known.get("scores"), known.get("groups")
    low, high = (math.nan if known[end] is None else known[end] for end in ("low", "high"))
    return Estimate(
        value, known["n"], (low, high),
        None if scores is None else _unpacked(scores, known["n"]),
        None if groups is None else np.frombuffer(base64.b64decode(groups), "<i4").astype(np.int64),
    )  # fmt: skip


def described(value: float, digits: int = 4) -> str:
    """Return a figure with its interval and n, where they are known."""
    if not isinstance(value, Estimate):
        return f"{value:.{digits}g}"
    ends = f"{value.low:.3g} to {value.high:.3g}, " if math.isfinite(value.low) else ""
    return f"{value:.{digits}g} ({ends}n={value.n})"


def _packed(scores: np.ndarray) -> str:
    """Return scores as text: a bit each where all are 0 or 100, else as float32."""
    if bool(np.isin(scores, (0, 100)).all()):
        return "bits:" + _text(np.packbits(scores > 0))
    return "float32:" + _text(scores.astype("<f4"))


def _unpacked(text: str, count: int) -> np.ndarray:
    kind, _, content = text.partition(":")
    data = base64.b64decode(content)
    if kind == "bits":
        return np.unpackbits(np.frombuffer(data, np.uint8))[:count].astype(np.float32) * 100
    return np.frombuffer(data, "<f4")


def _text(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()
