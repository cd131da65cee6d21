"""The best step of a run by one of its figures: its checkpoint is kept, and a run that gets no better may end.

Everything follows from the figures in the record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multissl.config import Config
from multissl.contract.decision import GO_ON, Decision
from multissl.contract.evaluator import Evaluator
from multissl.registry import suggest


@dataclass(kw_only=True, slots=True)
class Best(Config):
    """By which figure steps are compared."""

    figure: str = ""
    """An evaluator that measures while the run goes on (knn), or one of its figures (knn/top1); the checkpoint of the
    step with the best value is kept and called RUN@best. Empty: none."""
    lower: bool = False
    """Whether lower values are better."""
    patience: int = 0
    """Measurements without a better value after which the run ends; 0: it takes all its steps."""

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise ValueError(
                f"best.patience={self.patience}: want 0 (take all steps) or a number of measurements"
            )
        if self.patience and not self.figure:
            raise ValueError(
                f"best.patience={self.patience}: say by which figure steps are compared, as --best.figure knn"
            )

    def named(self, evaluators: Mapping[str, Evaluator]) -> str:
        """Return the whole name of the figure, "" for none; raise a ValueError where no evaluator measures it."""
        if not self.figure:
            return ""
        name, _, metric = self.figure.partition("/")
        regular = [n for n, e in evaluators.items() if e.cfg.every]
        if name not in regular:
            why = (
                f"{name} measures at the start and the end only; --evals.{name}.every N measures every N steps"
                if name in evaluators
                else f"no evaluator that measures while the run goes on is called {name}{suggest(name, regular)}"
            )
            raise ValueError(f"best.figure={self.figure}: {why}")
        return f"{name}/{metric or evaluators[name].metric_names()[0]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class BestStep:
    """The best of the steps that were measured, and what it had."""

    step: int
    value: float
    since: int
    """Measurements after it."""


def best_step(lines: Sequence[Mapping[str, Any]], figure: str, lower: bool = False) -> BestStep | None:
    """Return the best step after the first by a figure, the earlier one of equals; None where none has it.

    A value that is not finite is never the best.
    """
    measured = [(line["step"], line[figure]) for line in lines if line["step"] and figure in line]
    finite = [(step, value) for step, value in measured if math.isfinite(value)]
    if not finite:
        return None
    step, value = (min if lower else max)(finite, key=lambda pair: pair[1])
    return BestStep(step=step, value=value, since=sum(s > step for s, _ in measured))


def patience_over(best: BestStep | None, cfg: Best, figure: str) -> Decision:
    """Return that the run ends where it got no better for too long."""
    if best is None or not cfg.patience or best.since < cfg.patience:
        return GO_ON
    text = (
        f"{figure} was best at step {best.step:,} ({best.value:g}) and not better in {best.since} measurements since "
        f"(best.patience={cfg.patience}): the run ends"
    )
    return Decision(stop=True, text=text)
