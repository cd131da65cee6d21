"""Evaluating a finished run again, and what its figures say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from multissl.contract.learning import Progress
from multissl.contract.verdict import Verdict, whole_verdict
from multissl.engine.judging import alarm_of, measurements, verdicts
from multissl.run.folder import RunFolder
from multissl.run.model import load


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What a finished run's evaluators measure, and say of it."""

    metrics: dict[str, float]
    verdict: Verdict


def evaluate(run: Path | str, trust: bool = False) -> dict[str, float]:
    """Return the metrics of a finished run's evaluators, measured again, with their baselines.

    `trust`: run code that its recipe names even where the user has not trained with it.
    """
    return judge(run, trust).metrics


def judge(run: Path | str, trust: bool = False) -> Evaluation:
    """Return the metrics of a finished run's evaluators, measured again, and the verdict on them.

    The untrained encoder's figures are those of the run's record, as are those that a saved encoder cannot tell.
    """
    model = load(run, trust=trust)
    progress = Progress(step=model.recipe.steps, total=model.recipe.steps)
    metrics: dict[str, float] = {}
    again: dict[str, float] = {}
    frozen, evaluators = model.frozen(), {}
    for name, cfg in model.recipe.evals.items():
        evaluator = evaluators[name] = cfg.build()
        trained = {f"{name}/{n}": v for n, v in evaluator.run(frozen, model.modality, progress).items()}
        again |= trained
        metrics |= trained | {f"{name}/{n}": v for n, v in evaluator.baselines(model.modality).items()}
    lines = RunFolder(run).read_metrics()
    said = verdicts(evaluators, [*measurements(lines), {"step": progress.step, **again}])
    return Evaluation(metrics=metrics, verdict=whole_verdict(said, alarm_of(lines)))
