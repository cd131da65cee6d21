"""Verdicts: whether a run learned, from the first and the last measurement of a figure."""

from __future__ import annotations

import math


def learned(
    what: str, figure: str, history: list[dict[str, float]], margin: float
) -> tuple[bool, str] | None:
    """The verdict of a figure in percent: its last value against its first (the untrained encoder) and `raw`.

    Baselines are what only the first entry has; those other than `raw` are reported, not demanded. None where the
    figure was measured less than twice.
    """
    if (measured := first_and_last(figure, history)) is None:
        return None
    first, last = measured
    baselines = {k: v for k, v in first.items() if k not in last and "/" not in k}
    now, gates = last[figure], {"the untrained encoder's": first[figure]}
    if "raw" in baselines:
        gates = {"the raw input's": baselines.pop("raw"), **gates}
    told = {name: f"{name} {value:.1f} %" for name, value in gates.items()}
    missed = [text for name, text in told.items() if not now >= gates[name] + margin]  # a NaN is a miss
    also = [f"{name} {value:.1f} %" for name, value in baselines.items()]
    if not missed:
        beside = f" ({', '.join(also)})" if also else ""
        return True, f"learned: {what} {now:.1f} % against {' and '.join(told.values())}{beside}"
    also = [text for text in told.values() if text not in missed] + also
    beside = f" ({', '.join(also)})" if also else ""
    return (
        False,
        f"not learned: {what} {now:.1f} % is not {margin:g} points above {' and '.join(missed)}{beside}",
    )


def first_and_last(
    figure: str, history: list[dict[str, float]]
) -> tuple[dict[str, float], dict[str, float]] | None:
    """The first and the last entry that tell a figure; None where it was measured less than twice."""
    measured = [{k: number(v) for k, v in entry.items()} for entry in history if figure in entry]
    return (measured[0], measured[-1]) if len(measured) > 1 else None


def number(value: float | None) -> float:
    """A figure read back from `metrics.jsonl`, where null stands for what was not finite."""
    return math.nan if value is None else value
