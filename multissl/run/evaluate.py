"""Evaluating a finished run again."""

from __future__ import annotations

from pathlib import Path

from multissl.contract.learning import Progress
from multissl.run.model import load


def evaluate(run: Path | str) -> dict[str, float]:
    """Return the metrics of a finished run's evaluators, measured again, with their baselines."""
    model = load(run)
    progress = Progress(step=model.recipe.steps, total=model.recipe.steps)
    metrics: dict[str, float] = {}
    frozen = model.frozen()
    for name, cfg in model.recipe.evals.items():
        evaluator = cfg.build()
        measured = evaluator.run(frozen, model.modality, progress) | evaluator.baselines(model.modality)
        metrics |= {f"{name}/{n}": v for n, v in measured.items()}
    return metrics
