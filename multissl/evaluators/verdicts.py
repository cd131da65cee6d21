"""Verdicts: whether a run learned, by a paired test of its last figure against each gate.

A gate is what features must be above to have been learned: the untrained encoder, the raw input, the most frequent
class. All of them must be passed, so the chance of passing where nothing was learned is that of one test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor

from multissl.contract.estimate import Estimate, estimate
from multissl.contract.verdict import Verdict
from multissl.statistics import LEVEL, Gain, group_sums, paired_gain

UNTRAINED, MAJORITY = "the untrained encoder's", "majority"
GATES = {"raw": "the raw input's", MAJORITY: "the most frequent class's"}
"""Baselines that are gates, and what sentences call them; others are classical features, which are named if above."""


def learned(
    what: str, figure: str, history: list[dict[str, float]], margin: float, level: float = LEVEL
) -> Verdict | None:
    """Return the verdict of a figure in percent: its last value against its first (the untrained encoder) and gates.

    Baselines are what only the first entry has. None where the figure was measured less than twice.
    """
    if (measured := first_and_last(figure, history)) is None:
        return None
    first, last = measured
    baselines = {k: v for k, v in first.items() if k not in last and "/" not in k}
    gates = {UNTRAINED: first[figure]} | {GATES[k]: baselines.pop(k) for k in GATES if k in baselines}
    return judged(what, last[figure], gates, baselines, margin=margin, level=level, best=100.0)


def judged(
    what: str,
    now: float,
    gates: Mapping[str, float],
    classical: Mapping[str, float],
    *,
    margin: float,
    level: float = LEVEL,
    unit: str = " %",
    best: float | None = None,
    rising: bool = True,
    shuffled_p: float = 0.0,
    digits: int = 1,
) -> Verdict:
    """Return the verdict of a figure against gates; features that are no gate are named where they are above it.

    `margin` is the gain that would matter; `best` the score that no sample can pass; `rising` says that more is better;
    `shuffled_p` is the p of a control with shuffled answers, which has to be passed as well.
    """
    values = {"it": now, **gates}
    if any(math.isnan(value) for value in values.values()):
        return Verdict(outcome="not learned", text=f"not learned: {what} is not a number")
    if (paired := _paired(now, gates, rising)) is None:
        return Verdict(
            outcome="cannot be told",
            text=f"cannot be told: {what} {now:.4g}{unit}, of which no scores of the same samples are recorded",
        )
    assert isinstance(now, Estimate)
    ours, theirs = paired
    scale = Scale(unit, digits)
    shown = {name: f"{name} {scale.figure(value)}" for name, value in gates.items()}
    said = f"{what} {scale.figure(now)} (n={now.n}, {scale.number(now.low)} to {scale.number(now.high)})"
    if now.groups is not None and len(group_sums(ours, now.groups)) < 2:
        text = f"cannot be told: all {now.n} samples are of one group; {said}"
        return Verdict(outcome="cannot be told", text=text)
    if best is not None and (full := _no_room(theirs, best, now, level)):
        why = f"no room above {shown[full]}"
        if gates[full] >= best and full == GATES[MAJORITY]:
            why = f"all {now.n} labels are of one class"
        return Verdict(outcome="cannot be told", text=f"cannot be told: {why}; {said}")
    gains = {name: paired_gain(ours, scores, now.groups) for name, scores in theirs.items()}
    missed = {name: gain for name, gain in gains.items() if not gain.p <= level}
    if not missed and not shuffled_p <= level:
        text = f"not learned: {said} is no better than with shuffled answers (p {shuffled_p:.2g})"
        return Verdict(outcome="not learned", text=text, tested=True)
    if not missed:
        return _passed(said, now, [*shown.values()], classical, scale, rising)
    return _missed(said, missed, shown, now.n, margin, scale)


class Scale(NamedTuple):
    """How a figure and a difference of it are written."""

    unit: str
    digits: int

    def number(self, value: float, sign: str = "") -> str:
        """Return a number in so many digits."""
        return f"{value:{sign}.{self.digits}f}"

    def figure(self, value: float) -> str:
        """Return a number with its unit."""
        return f"{self.number(value)}{self.unit}"

    def gain(self, gain: Gain, unit: str = "") -> str:
        """Return a difference with its interval."""
        mean, low, high = (self.number(value, "+") for value in gain[:3])
        return f"{mean}{unit} ({low} to {high})"


def _paired(
    now: float, gates: Mapping[str, float], rising: bool
) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
    """Return the scores of a figure and of its gates, higher is better; None where they are not of the same samples."""
    if not isinstance(now, Estimate) or now.scores is None:
        return None
    sign, theirs = (1.0 if rising else -1.0), {}
    for name, value in gates.items():
        scores = value.scores if isinstance(value, Estimate) else np.full(now.n, value)
        if scores is None or len(scores) != now.n:
            return None
        theirs[name] = sign * scores.astype(np.float64)
    return sign * now.scores.astype(np.float64), theirs


def _no_room(theirs: Mapping[str, np.ndarray], best: float, now: Estimate, level: float) -> str:
    """Return the highest gate that not even a figure without a miss would pass; empty where there is none."""
    perfect = np.full(now.n, best)
    full = [n for n, scores in theirs.items() if paired_gain(perfect, scores, now.groups).p > level]
    return max(full, key=lambda name: theirs[name].mean(), default="")


def _passed(
    said: str, now: Estimate, shown: list[str], classical: Mapping[str, float], scale: Scale, rising: bool
) -> Verdict:
    """Return the verdict of a figure above all its gates."""
    above = [n for n, value in classical.items() if (value > now if rising else value < now)]
    others = [f"{n} {scale.figure(value)}" for n, value in classical.items() if n not in above]
    text = f"{said} beats {listed(shown)}" + (f" ({', '.join(others)})" if others else "")
    if not above:
        return Verdict(outcome="learned", text=f"learned: {text}", tested=True)
    named = []
    for name in above:
        both = _paired(now, {name: classical[name]}, rising)
        gain = None if both is None else paired_gain(both[0], both[1][name], now.groups)
        by = "" if gain is None else f", {scale.gain(gain)}"
        named.append(f"{name} {scale.figure(classical[name])}{by}")
    return Verdict(
        outcome="learned, but below", text=f"learned, but below {' and '.join(named)}: {text}", tested=True
    )


def _missed(
    said: str, missed: Mapping[str, Gain], shown: Mapping[str, str], n: int, margin: float, scale: Scale
) -> Verdict:
    """Return the verdict of a figure that some gates stop: whether they exclude the gain that would matter."""
    points = " points" if scale.unit == " %" else ""
    excluded = {name: gain for name, gain in missed.items() if gain.high <= margin}
    name = min(excluded or missed, key=lambda name: missed[name].mean)
    gain = missed[name]
    gained = f"{said} gains {scale.gain(gain, points)} on {shown[name]}"
    if excluded:
        return Verdict(outcome="not learned", text=f"not learned: {gained}", tested=True)
    half = scale.number((gain.high - gain.low) / 2)
    text = f"cannot be told: {gained}, and n={n} resolves +-{half}"
    return Verdict(outcome="cannot be told", text=text, tested=True)


def majority_accuracy(labels: Tensor, truth: Tensor, groups: np.ndarray | None = None) -> float:
    """Return the accuracy in percent of the most frequent of labels [S], said of every one of truth [Q]."""
    return estimate(100.0 * (truth == labels.mode().values).cpu().numpy(), groups)


def listed(parts: list[str]) -> str:
    """Return parts joined by commas and an "and"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def first_and_last(
    figure: str, history: list[dict[str, float]]
) -> tuple[dict[str, float], dict[str, float]] | None:
    """The first and the last entry that tell a figure; None where it was measured less than twice."""
    measured = [{k: number(v) for k, v in entry.items()} for entry in history if figure in entry]
    return (measured[0], measured[-1]) if len(measured) > 1 else None


def number(value: float | None) -> float:
    """A figure read back from `metrics.jsonl`, where null stands for what was not finite."""
    return math.nan if value is None else value
