"""A run is that of before: the lines of its record, what it says, what it ships, under every option of the loop."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.same_numbers import metrics
from multissl.evaluators.collapse import Collapse
from multissl.evaluators.knn import KNN
from multissl.recipe import Recipe
from multissl.run import train as run
from tests.engine.test_spy_trainer import Taught
from tests.helpers.known import Cases, Numbers, check_known, numbers_of, words_of
from tests.helpers.stubs import Points, recipe
from tests.helpers.turned import turned

LIMIT = 2e-3
"""In single precision; a run of a few steps."""
LEAVE = ("steps", "init", "batch_size", "save", "data")
TIMED = re.compile(r"\S+ samples/s|\S+ % waiting|[\d.]+ ?(?:s|min|h)\b")


def base() -> Recipe:
    """A run with all that may happen: an unreadable sample, a step whose loss is no number, alarms, a teacher."""
    made = recipe().replace(
        steps=6, log_every=2, modality=Points.Config(broken=(50, 61)), objective=Taught.Config(spoil=(3,)),
        evals={"collapse": Collapse.Config(every=2, samples=32, min_std=9.0, floor_std=9.0), "knn": KNN.Config(k=(3,))},
    )  # fmt: skip
    return made.replace(save=replace(made.save, every=4))


def ran(made: Recipe, folder: Path, said: str) -> Numbers:
    """Return the numbers of a finished run."""
    tensors: dict[str, Tensor] = {}
    for place, line in enumerate(metrics(folder)):
        figures = {
            n: float("nan") if v is None else v for n, v in line.items() if isinstance(v, float | int | None)
        }
        tensors[f"line {place}"] = torch.tensor([float(v) for v in figures.values()], dtype=torch.float64)
        tensors[f"line {place}, words"] = plain(json.dumps([*line, line.get("text", "")]), folder)
    weights = load_file(folder / "encoder.safetensors")
    tensors["weights"] = torch.cat([weights[n].flatten() for n in sorted(weights)])
    tensors["said"] = plain(said, folder)
    for path in sorted(folder.rglob("*nonfinite*/*.json")) or sorted(folder.rglob("*nonfinite*.json")):
        tensors[f"dump {path.name}"] = words_of(json.dumps(json.loads(path.read_text())))
    return numbers_of(tensors)


def plain(text: str, folder: Path) -> Tensor:
    """Return the words of a text as numbers, without times and without where the run lies."""
    return words_of(TIMED.sub("", text.replace(str(folder), "RUN")))


def cases(place: Path, capsys: pytest.CaptureFixture[str]) -> Cases:
    every: Cases = {}
    made = base()
    options: list[tuple[str, Any]] = [
        ("as it is", made),
        *turned(made, LEAVE),
        ("patience", made.replace(patience=1)),
    ]
    for number, (change, each) in enumerate(options):
        folder = Path(tempfile.mkdtemp(dir=place)) / str(number)
        capsys.readouterr()
        try:
            run.train(each, folder)
        except (RuntimeError, ValueError) as error:
            every[change] = numbers_of({"error": plain(str(error), folder)})
        else:
            every[change] = ran(each, folder, capsys.readouterr().err)
    return every


def test_runs_are_those_of_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_known("runs", functools.partial(cases, tmp_path, capsys), LIMIT)
