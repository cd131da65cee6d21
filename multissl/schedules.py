"""Schedules: one value per step. Constant, linear, cosine and in steps, with a linear warm-up.

The conventions are DINOv2's: the warm-up includes both its ends, so the base value appears at its last step and
again at the first step of the cosine; the final value is returned from `total` on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A value that depends on the step alone.

    From `start` to `base` in `warmup` steps (both ends included), after `freeze` steps at 0; then from `base` towards
    `final`, which is reached at `total`.
    """

    base: float
    final: float
    warmup: int = 0
    start: float = 0.0
    freeze: int = 0
    shape: Literal["cosine", "linear", "constant", "steps"] = "cosine"
    drops: tuple[int, ...] = ()
    """Of shape steps: from each of these steps on the value is `factor` times what it was; `final` is not read."""
    factor: float = 0.1
    cooldown: int = 0
    """Of shape constant: so many steps before `total` it begins to fall, on a line, to `final` at `total`."""
    cut: float = 0.0
    """Of shape cosine: lay it out for so many more of its steps, cut it off and stretch what is left so that its last
    step has `final` (DINOv3's trunc_extra)."""

    def at(self, step: int, total: int) -> float:
        """The value at `step` of a run of `total` steps."""
        if self.shape == "steps" and step >= self.warmup:
            return self.base * self.factor ** sum(step >= drop for drop in self.drops)
        if step >= total:
            return self.final
        if step < self.freeze:
            return 0.0
        step, total = step - self.freeze, total - self.freeze
        if step < self.warmup:
            return self.start + (self.base - self.start) * (
                step / (self.warmup - 1) if self.warmup > 1 else 0.0
            )
        share = (step - self.warmup) / (total - self.warmup)
        match self.shape:
            case "cosine" if self.cut:
                return self._cut(step - self.warmup, total - self.warmup)
            case "cosine":
                return self.final + (self.base - self.final) * (1 + math.cos(math.pi * share)) / 2
            case "linear":
                return self.base + (self.final - self.base) * share
            case _ if step > total - self.cooldown:
                return self.final + (self.base - self.final) * (total - step) / self.cooldown
            case _:
                return self.base

    def _cut(self, step: int, steps: int) -> float:
        """The value at a step of a cosine that is cut off after so many."""
        if steps < 2:
            return self.final
        last = int((1 + self.cut) * steps) - 1
        low = math.cos(math.pi * (steps - 1) / last)
        height = (math.cos(math.pi * step / last) - low) / (1 - low)
        return self.final + (self.base - self.final) * height


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldCosine:
    """DINOv3's other schedule: a line from `start` to `base`, then a cosine to `final`, which is held.

    The line does not include its end, the cosine includes both of its ends; `base` and `final` may be one value.
    """

    base: float
    final: float
    warmup: int = 0
    start: float = 0.0
    cosine: int = 0
    """Steps of the cosine; 0: all that the warm-up leaves."""

    def at(self, step: int, total: int) -> float:
        """The value at `step` of a run of `total` steps."""
        if step < self.warmup:
            return self.start + (self.base - self.start) * step / self.warmup
        last = (self.cosine or total - self.warmup) - 1
        share = min((step - self.warmup) / last, 1.0) if last > 0 else float(step > self.warmup)
        return self.final + (self.base - self.final) * (1 + math.cos(math.pi * share)) / 2


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return Schedule(base=value, final=value)


def ramp(start: float, end: float, steps: int) -> Schedule:
    """Linear from `start` to `end` over the first `steps` steps, `end` afterwards (teacher temperature)."""
    return Schedule(base=end, final=end, start=start, warmup=steps, shape="constant")
