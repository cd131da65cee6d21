"""Evaluating a finished run again, and what its figures say."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

from multissl.config import to_dict
from multissl.contract.estimate import Estimate
from multissl.contract.learning import Progress
from multissl.contract.verdict import Verdict, whole_verdict
from multissl.engine.judging import alarm_of, measurements, verdicts
from multissl.files import Damaged
from multissl.run.folder import NotWritten, RunFolder, located
from multissl.run.identity import identity_of
from multissl.run.lock import now
from multissl.run.model import Model, load
from multissl.run.sessions import environment

log = logging.getLogger("multissl")


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
    """Return the metrics of a run's evaluators, measured again, and the verdict on them; both are kept with the run.

    `RUN` is what it ships, or its newest checkpoint where it has not finished, `RUN@STEP` a checkpoint. The untrained
    encoder's figures are those of the run's record, as are those that a saved encoder cannot tell.
    """
    model, began = load(run, trust=trust), time.monotonic()
    progress = Progress(step=model.step, total=model.recipe.steps)
    metrics: dict[str, float] = {}
    again: dict[str, float] = {}
    frozen, evaluators = model.frozen(), {}
    for name, cfg in model.recipe.evals.items():
        evaluator = evaluators[name] = cfg.build()
        trained = {f"{name}/{n}": v for n, v in evaluator.run(frozen, model.modality, progress).items()}
        again |= trained
        metrics |= trained | {f"{name}/{n}": v for n, v in evaluator.baselines(model.modality).items()}
    folder = located(run)[0]
    lines = [x for x in folder.read_metrics() if x.get("step", 0) <= model.step]
    said = verdicts(evaluators, [*measurements(lines), {"step": progress.step, **again}])
    evaluation = Evaluation(metrics=metrics, verdict=whole_verdict(said, alarm_of(lines)))
    _keep(folder, model, evaluation, time.monotonic() - began)
    return evaluation


def _keep(folder: RunFolder, model: Model, evaluation: Evaluation, seconds: float) -> None:
    """Add figures to the run's evaluations, with all that they depend on; where it cannot be written, say so."""
    figures = {
        n: {"value": finite(v)} | (v.to_json(with_scores=False) if isinstance(v, Estimate) else {})
        for n, v in evaluation.metrics.items()
    }
    line = {
        "time": now(),
        "step": model.step,
        "protocols": to_dict(model.recipe)["evals"],
        "figures": figures,
        "verdict": evaluation.verdict.text,
        "data": identity_of(model.modality, with_validation=True).summary(),
        "seconds": round(seconds, 1),
        **environment(model.device),
    }
    try:
        folder.add_evaluation(line)
    except (NotWritten, Damaged) as error:
        log.warning("these figures are not kept: %s", error)


def finite(value: float) -> float | None:
    """Return a number as JSON can hold it: None for one that is not finite."""
    return float(value) if math.isfinite(value) else None
