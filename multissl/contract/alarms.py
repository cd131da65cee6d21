"""What goes wrong in training, read from the logged metrics: pure functions of a history, without labels.

A history is what `Objective.alarm` is given: the means of each log window, oldest first. Every function looks at a
trend and never at one value: a metric must have been bad for several windows and `STEPS` steps in a row and must not
be on its way back, as embeddings of an untrained encoder lie close together, a slow teacher (momentum near 1) takes
hundreds of steps to follow, and healthy runs touch most limits for a moment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

History = Sequence[Mapping[str, float]]
WINDOWS, STEPS = 4, 60
"""A metric is bad once it was so for this many log windows and steps."""
PATIENT = 200
"""Steps before a loss at its constant value means anything."""
POINT = 0.2
"""Deviation of unit vectors (`embedding_std`) below which they count as one point; the whole sphere has 1."""


def lately(history: History, name: str) -> list[float]:
    """Return the last values of a metric over `WINDOWS` windows and `STEPS` steps or more, or none."""
    found: list[float] = []
    for entry in reversed(history):
        if name in entry:
            found.append(entry[name])
            if len(found) >= WINDOWS and history[-1]["step"] - entry["step"] >= STEPS:
                return found[::-1]
    return []


def lasting(history: History, name: str, bad: Callable[[float], bool]) -> float | None:
    """Return the last value of a metric whose latest values were all bad, else None."""
    values = lately(history, name)
    return values[-1] if values and all(math.isfinite(v) and bad(v) for v in values) else None


def one_point(history: History, name: str = "stats/std", limit: float = POINT) -> float | None:
    """Return the deviation of embeddings that lie in one point and do not move apart again, else None.

    Below a third of the limit a slow rise is no recovery.
    """
    values, last = lately(history, name), lasting(history, name, lambda v: v < limit)
    if last is None:
        return None
    rising = sum(values[-2:]) > 1.1 * sum(values[:2])
    return None if rising and last > limit / 3 else last


def no_choice(history: History, prototypes: int, prefix: str = "stats/teacher") -> float | None:
    """Return the teacher's entropy over log K where its targets are uniform and teach the student nothing, else None.

    Healthy targets touch .97 log K; only with a vanishing divergence from the student are they empty.
    """
    entropy = lasting(history, f"{prefix}_entropy", lambda h: h > 0.98 * math.log(prototypes))
    flat = lasting(history, f"{prefix}_kl", lambda kl: kl < 0.01)
    return None if entropy is None or flat is None else entropy / math.log(prototypes)


def one_prototype(history: History, name: str = "stats/prototype_use", limit: float = 0.04) -> float | None:
    """Return the share of prototypes in use where a few take every sample, else None.

    Without centering the divergence from the student stays large, so it is no sign.
    """
    values, last = lately(history, name), lasting(history, name, lambda u: u < limit)
    rising = last is not None and last > max(1.5 * values[0], limit / 2)
    return None if rising else last


def stalled(history: History, share: float = 0.002) -> float | None:
    """Return the value of a loss that stays at what a constant output costs (`stats/constant`), else None.

    Early in a run that is no sign: a warm-up begins with no learning rate at all.
    """
    if not history or history[-1]["step"] < PATIENT:
        return None
    gaps = [
        {"step": h["step"], "gap": h["loss"] / h["stats/constant"] - 1}
        for h in history
        if h.get("stats/constant")
    ]
    return history[-1]["loss"] if lasting(gaps, "gap", lambda g: abs(g) <= share) is not None else None


def common_alarm(objective: str, history: History) -> str | None:
    """Return the sentence for embeddings in one point or a loss that never left its constant value, else None."""
    if (
        said := point_alarm(objective, history, "lower optim.lr, or warm up longer (optim.warmup)")
    ) is not None:
        return said
    value = stalled(history)
    return None if value is None else (
        f"{objective}: the loss stays at {value:.4g}, which a constant output has: raise optim.lr, shorten "
        "optim.warmup, or check that the views of a sample show the same thing"
    )  # fmt: skip


def point_alarm(objective: str, history: History, way_out: str, **guards: bool) -> str | None:
    """Return the sentence for embeddings in one point, else None; `guards` are options that prevent it where True."""
    std = one_point(history)
    off = "".join(
        f"objective.{n}=False removes what prevents it, set it to True" for n, on in guards.items() if not on
    )
    return None if std is None else (
        f"{objective}: embeddings have become one point (std {std:.3f} of 1): {off or way_out}"
    )  # fmt: skip
