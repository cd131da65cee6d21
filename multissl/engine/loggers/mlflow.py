"""MLflow: curves, the figures of the report, notes and options, on a server or in the run's folder.

A run keeps its identity in its folder, so a run that is resumed goes on in the same curves; a step that is taken again
after a kill has two points.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multissl.contract.learning import Figure
from multissl.contract.logger import Kind, Logger, Session
from multissl.files import make_folder, replace_text
from multissl.registry import require

MOST_PARAMS = 100
"""That one call takes."""


class MLflow(Logger):
    """Numbers as `kind/name`, options as parameters, texts and figures as artifacts."""

    packages = ("mlflow",)

    @dataclass(kw_only=True, slots=True)
    class Config(Logger.Config):
        """Options of MLflow."""

        uri: str = ""
        """Of the tracking server, such as http://localhost:5000; empty: files in the run's folder."""
        experiment: str = "multissl"
        """Name of the experiment that the run belongs to; made where there is none of that name."""

    def __init__(self, cfg: Config, session: Session) -> None:
        require("mlflow")
        if not cfg.uri:  # a store of files is all that a run's folder can hold, and MLflow wants it allowed
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        make_folder(session.folder)
        self._metric = Metric
        self._client = MlflowClient(tracking_uri=cfg.uri or (session.folder / "store").resolve().as_uri())
        identity = session.folder / "id.txt"
        if session.start and identity.is_file():
            self._run = identity.read_text()
            self._client.update_run(self._run, status="RUNNING")
        else:
            experiment = self._client.get_experiment_by_name(cfg.experiment)
            number = (
                experiment.experiment_id if experiment else self._client.create_experiment(cfg.experiment)
            )
            self._run = self._client.create_run(number, run_name=session.name).info.run_id
            replace_text(identity, self._run)
            options = [Param(name, value) for name, value in flattened(session.recipe)]
            for first in range(0, len(options), MOST_PARAMS):
                self._client.log_batch(self._run, params=options[first : first + MOST_PARAMS])
        self._client.log_text(
            self._run, json.dumps(session.recipe, indent=1), f"options/{session.start}.json"
        )
        self._notes: list[str] = []

    def log(self, kind: Kind, step: int, metrics: Mapping[str, Any]) -> None:
        """Log every finite number; texts are gathered in a file."""
        now = int(time.time() * 1000)
        texts = [f"step {step}: {kind} {value}" for value in metrics.values() if isinstance(value, str)]
        numbers = {n: v for n, v in metrics.items() if not isinstance(v, str) and math.isfinite(v)}
        if numbers:
            points = [self._metric(key_of(kind, n), float(v), now, step) for n, v in numbers.items()]
            self._client.log_batch(self._run, metrics=points)
        if texts:
            self._notes += texts
            self._client.log_text(self._run, "\n".join(self._notes), "notes.txt")

    def draw(self, step: int, figures: Sequence[Figure]) -> None:
        """Keep every figure as an artifact."""
        for number, figure in enumerate(figures):
            name = re.sub(r"[^\w]+", "_", figure.title).strip("_")
            self._client.log_image(self._run, figure.image, f"figures/{step}/{number:02d}_{name}.png")

    def close(self) -> None:
        """Mark the run as ended; a start that resumes it marks it as running again."""
        self._client.set_terminated(self._run)


def key_of(kind: str, name: str) -> str:
    """Return MLflow's key of a metric: one file to a key, so a name may not be the folder of another."""
    return f"{kind}/{re.sub(r'[^A-Za-z0-9_. -]', '.', name)}"


def flattened(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested options by their path, such as `optim.lr`, as text."""
    for name, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)[:500]
