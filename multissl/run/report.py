"""The report of a finished run: reads its folder, draws its figures, writes its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from multissl.contract.data import Batch
from multissl.contract.encoder import without_heads
from multissl.contract.learning import Figure
from multissl.engine.batches import StepBatches
from multissl.inference import readable_views
from multissl.report.page import page
from multissl.run.folder import located
from multissl.run.model import Model, load


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """What only the encoder and its data can tell of a run."""

    figures: Sequence[Figure] = ()
    titles: Mapping[str, str]
    """What objective and evaluators call their metrics in the page, by the name in the record."""


def report(run: Path | str, samples: int = 8, trust: bool = False) -> Path:
    """Write the page of a finished run: its views, what its encoder sees, neighbors and curves; return its path.

    `trust`: run code that its recipe names even where the user has not trained with it.
    """
    return write_report(run, draw(load(run, trust=trust), samples))


def draw(model: Model, samples: int = 8) -> Drawn:
    """Return the figures of modality, encoders and evaluators."""
    recipe, modality = model.recipe, model.modality
    objective = recipe.objective.build(without_heads(model.encoders), modality.streams())
    steps = StepBatches(modality, objective.plans(), samples, recipe.seed, 0, 1, True)
    figures = modality.figures(Batch(v.samples(torch.arange(samples)) for v in steps[0][0]))
    for stream, encoder in model.encoders.items():
        validation = modality.dataset("val")
        some = [validation[i] for i in range(min(samples, len(validation)))]
        views, _ = readable_views(modality, some, stream, model.device)
        with torch.inference_mode():
            figures += encoder.figures(views)
    titles, frozen = dict(objective.titles), model.frozen()
    for name, cfg in recipe.evals.items():
        evaluator = cfg.build()
        figures += evaluator.figures(frozen, modality)
        titles |= {f"{name}/{metric}": title for metric, title in evaluator.titles.items()}
    return Drawn(figures=figures, titles=titles)


def write_report(run: Path | str, drawn: Drawn | None = None) -> Path:
    """Write the page from what lies in a run's folder, finished or not, and from what was drawn; return its path."""
    folder = located(run)[0]
    drawn = drawn or Drawn(titles={})
    text = page(
        folder.path.resolve().name,
        recipe=folder.read_options(),
        lines=folder.read_metrics(),
        summary=folder.read_summary(),
        evaluations=folder.read_evaluations(),
        sessions=folder.read_sessions(),
        figures=drawn.figures,
        titles=drawn.titles,
    )
    folder.write_report(text)
    return folder.report
