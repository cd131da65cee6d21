"""From the record of a run to what its evaluators and alarms say of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from multissl.contract.decision import Decision, joined
from multissl.contract.estimate import restored
from multissl.contract.evaluator import Evaluator
from multissl.contract.verdict import Verdict
from multissl.statistics import LEVEL


def measurements(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the evaluations of a run's record, each figure an `Estimate` where the record knows more of it."""
    known = {line["step"]: line for line in lines if line["kind"] == "estimates"}
    found = []
    evals = [x for x in lines if x["kind"] == "eval"]
    floors = [x for x in evals if not x["step"]][-1:]  # measured again where the data changed
    for line in [*floors, *(x for x in evals if x["step"])]:
        more = known.get(line["step"], {})
        figures = {
            k: restored(v, more[k]) if k in more and k not in ("kind", "step") and v is not None else v
            for k, v in line.items()
        }
        found.append(figures)
    return found


def verdicts(evaluators: Mapping[str, Evaluator], evaluations: list[dict[str, Any]]) -> list[Verdict]:
    """Return what the evaluators make of a run's evaluations, in recipe order.

    Those that test share the level, so that all together say "learned" by chance no more often than one would.
    """
    histories = histories_of(evaluators, evaluations)
    said = [evaluators[name].verdict(history) for name, history in histories.items()]
    level = LEVEL / max(1, sum(v is not None and v.tested for v in said))
    said = [e.verdict(histories[n], level) for n, e in evaluators.items() if n in histories]
    return [v for v in said if v is not None]


def alarms(evaluators: Mapping[str, Evaluator], evaluations: list[dict[str, Any]]) -> list[str]:
    """Return what evaluators find wrong with a run so far."""
    said = [
        evaluators[name].alarm(history) for name, history in histories_of(evaluators, evaluations).items()
    ]
    return [text for text in said if text]


def decided(evaluators: Mapping[str, Evaluator], evaluations: list[dict[str, Any]]) -> Decision:
    """Return what the evaluators ask of a run so far, together."""
    histories = histories_of(evaluators, evaluations)
    return joined(evaluators[name].decision(history) for name, history in histories.items())


def histories_of(
    evaluators: Mapping[str, Evaluator], evaluations: list[dict[str, Any]]
) -> dict[str, list[dict[str, float]]]:
    """Return each evaluator's own part of a run's evaluations, under its own names, oldest first."""
    histories: dict[str, list[dict[str, float]]] = defaultdict(list)
    for line in evaluations:
        for name in evaluators:
            mine = {k.removeprefix(f"{name}/"): v for k, v in line.items() if k.startswith(f"{name}/")}
            if mine:
                histories[name].append({"step": line["step"], **mine})
    return histories


def alarm_of(lines: list[dict[str, Any]]) -> str:
    """Return the alarm that a run's record ends with, or nothing."""
    said = [x for x in lines if x["kind"] == "alarm"]
    return said[-1]["text"] if said else ""
