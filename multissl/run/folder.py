"""The folder of a run, and the only place that knows what the files in it are called.

A run's folder holds `recipe.json`, `data.json`, `metrics.jsonl`, `trace.bin`, `checkpoints/`, `encoder.safetensors`,
`modality.json`, `summary.json`, `report.html` and `README.md`; `sessions.jsonl` with a line for each start,
`evaluations.jsonl` where it was measured later, `lock.json` while it is trained; a folder for each logger that keeps
files, `recipe_code/` where the recipe comes from a Python file or names code that is no installed package's,
`nonfinite/` where steps were skipped.
What lies inside a checkpoint is up to `engine.checkpoint`. Files are whole at any moment: see `multissl.files`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multissl import shapes
from multissl.contract.places import Places
from multissl.files import (
    Damaged,
    alone,
    digest,
    make_folder,
    read_marked,
    read_sealed,
    read_sealed_lines,
    replace_bytes,
    replace_sealed_lines,
    replace_tensors,
    replace_text,
    sealed,
)
from multissl.plain_data import parse_json

if TYPE_CHECKING:
    from torch import Tensor


class NotWritten(RuntimeError):
    """A file that a run ends with could not be written; those of before are intact."""


def located(run: Path | str) -> tuple[RunFolder, int | None]:
    """Return the folder of `RUN`, `RUN@STEP` or `RUN@best`, and the step where one is named.

    Raises a ValueError where what stands behind the @ is neither, or the run kept no best step. A folder may have an @
    in its name.
    """
    name, at, step = str(run).rpartition("@")
    if not at or Path(run).is_dir():
        return RunFolder(run), None
    if step == "best":
        best = RunFolder(name).read_best()
        if best is None:
            raise ValueError(
                f"{run}: {name} has no best step yet; a run trained with --best.figure knn keeps one"
            )
        return RunFolder(name), best["step"]
    if not step.isdecimal():
        raise ValueError(
            f"{run}: want RUN, RUN@best or RUN@STEP with the step of a checkpoint, as {name}@1000"
        )
    return RunFolder(name), int(step)


def run_of(place: str) -> RunFolder | None:
    """Return the folder of a run that a place of weights names, with @STEP or @best or without; None for no run."""
    name = place.rpartition("@")[0]
    if not os.path.isdir(place) and not (name and os.path.isdir(name)):
        return None
    folder, _ = located(place)
    return folder if folder.recipe.is_file() else None


class RunFolder(Places):
    """Paths of a run's files, and how those that are read or written in one go are."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def recipe(self) -> Path:
        """Return the file of all options."""
        return self.path / "recipe.json"

    @property
    def metrics(self) -> Path:
        """Return the file of the record."""
        return self.path / "metrics.jsonl"

    @property
    def trace(self) -> Path:
        """Return the file of what every step was."""
        return self.path / "trace.bin"

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def encoder(self) -> Path:
        """Return the file of the weights that the run ships."""
        return self.path / "encoder.safetensors"

    @property
    def modality(self) -> Path:
        """Return the file of what the modality was fitted to."""
        return self.path / "modality.json"

    @property
    def summary(self) -> Path:
        """Return the file of how the run ended."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """Return the file of the page about the run."""
        return self.path / "report.html"

    @property
    def readme(self) -> Path:
        """Return the file that says how the run is used."""
        return self.path / "README.md"

    @property
    def data(self) -> Path:
        """Return the file of what the run's data is known by, and from which step on."""
        return self.path / "data.json"

    @property
    def sessions(self) -> Path:
        """Return the file of who trained it when."""
        return self.path / "sessions.jsonl"

    @property
    def evaluations(self) -> Path:
        """Return the file of what was measured after the run had finished, or beside it."""
        return self.path / "evaluations.jsonl"

    @property
    def lock(self) -> Path:
        """Return the file that says which process trains it."""
        return self.path / "lock.json"

    @property
    def code(self) -> Path:
        """Return the folder of copies of the source files that the recipe comes from or names."""
        return self.path / "recipe_code"

    def nonfinite(self, step: int, rank: int) -> Path:
        """Return the file that describes a step which a rank skipped as not finite."""
        return self.path / "nonfinite" / f"step_{step}_rank_{rank}.json"

    def logger(self, name: str) -> Path:
        """Return a folder for a logger's own files."""
        folder = self.path / name
        reserved = (
            self.checkpoints,
            self.nonfinite(0, 0).parent,
            self.code,
            self.data,
            self.recipe,
            self.metrics,
            self.encoder,
            self.sessions,
            self.evaluations,
            self.lock,
            self.trace,
            self.readme,
        )
        if (
            name != folder.name
            or name in ("", "..")
            or folder in (*reserved, self.modality, self.summary, self.report)
        ):
            raise ValueError(f"loggers.{name}: no folder of a logger can be called so; give it another name")
        return folder

    @property
    def shipped(self) -> tuple[Path, Path]:
        """Return what `load` needs besides the recipe."""
        return self.encoder, self.modality

    def check_shipped(self) -> None:
        """Raise a ValueError where a file that `load` needs is missing, or one that is there is not what was recorded.

        Runs of before digests were recorded, and folders without a summary, are not compared.
        """
        for file in (self.recipe, self.modality, self.encoder):
            if not file.is_file():
                raise ValueError(f"{self.path} holds no {file.name}: give the folder of a finished run")
        if changed := self.changed(self.finish()):
            raise Damaged(
                f"{self.path / changed} is not what the run recorded when it finished: it is damaged, or the run is "
                "going on; put it back from a copy, or repeat the command of the run, which writes it from the last "
                "checkpoint"
            )
        self.check_record()

    def check_record(self) -> None:
        """Raise a `Damaged` where the record is not that of when the run finished, or what is known of its data is not.

        Either may be missing: nothing that the run ships depends on them. So may the evaluations, which are looked at,
        too.
        """
        mark = self.finish().get("record")
        if mark and self.metrics.is_file():
            read_marked(self.metrics, mark)
        self.read_data()
        self.read_evaluations()

    def finish(self) -> dict[str, Any]:
        """Return the step at which the run finished and the digests of its files, {} where none is recorded."""
        finish = self.read_summary().get("finished")
        return finish if isinstance(finish, dict) and isinstance(finish.get("sha256"), dict) else {}

    def changed(self, finish: Mapping[str, Any]) -> str:
        """Return the first file that is missing or not what a finish recorded; "" where there is none."""
        recorded = finish.get("sha256", {})
        for name, file in self._recorded().items():
            if name in recorded and not (file.is_file() and digest(file) == recorded[name]):
                return name
        return ""

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of the recipe, of what the run ships, of its trace and code, by places in the run."""
        return {name: digest(file) for name, file in self._recorded().items()}

    def _recorded(self) -> dict[str, Path]:
        """Return the files whose digests are recorded when the run finishes, by their places in it."""
        copies = sorted(self.code.rglob("*.py")) if self.code.is_dir() else []
        traced = [self.trace] if self.trace.is_file() else []
        files = [*self.shipped, self.recipe, *traced, *copies]
        return {file.relative_to(self.path).as_posix(): file for file in files}

    def read_recipe(self) -> dict[str, Any]:
        """Return the options as they were written, {} without any.

        Raises a `Damaged` where they are not; those of older versions hold no digest.
        """
        return read_sealed(self.recipe, unsealed=True) if self.recipe.is_file() else {}

    def write_recipe(self, options: Mapping[str, Any]) -> None:
        """Write the options; the folder is made if need be. Raises an OSError where it cannot be."""
        make_folder(self.path)
        replace_text(self.recipe, json.dumps(sealed(options), indent=1))

    def read_options(self) -> dict[str, Any]:
        """Return the options of the run as of its last session: those of the recipe with what that one changed."""
        sessions = self.read_sessions()
        return self.read_recipe() | (sessions[-1].get("changed", {}) if sessions else {})

    def read_sessions(self) -> list[dict[str, Any]]:
        """Return a line for each session of the run, oldest first."""
        return _lines(self.sessions, shapes.SESSION)

    def write_sessions(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write the lines of all sessions."""
        with self._writing():
            replace_sealed_lines(self.sessions, lines)

    def read_evaluations(self) -> list[dict[str, Any]]:
        """Return what was measured later, oldest first."""
        return _lines(self.evaluations, shapes.EVALUATION)

    def add_evaluation(self, values: Mapping[str, Any]) -> None:
        """Add what was measured."""
        with self._writing(), alone(self.path):
            replace_sealed_lines(self.evaluations, [*self.read_evaluations(), values])

    def read_data(self) -> list[dict[str, Any]]:
        """Return what the data was known by, each entry from a step on; none where nothing was written down.

        Raises a `Damaged` where the file is not what was written.
        """
        if not self.data.is_file():
            return []
        values = read_sealed(self.data, unsealed=True)
        if values.get("format") != 1:  # of the first format there was no digest
            values = read_sealed(self.data)
        shapes.check(values, shapes.DATA, str(self.data))
        return values.get("entries", [])

    def write_data(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write what the data is known by."""
        with self._writing():
            replace_text(self.data, json.dumps(sealed({"format": 2, "entries": [*entries]}), indent=1))

    def write_code(self, sources: Mapping[str, bytes]) -> None:
        """Write copies of source files, by their place below the folder of copies."""
        for name, content in sources.items():
            path = self.code / name
            make_folder(path.parent)
            replace_bytes(path, content)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return all lines of the record; a last line cut short by a crash is left out, as are those of no sense."""
        return shapes.read_record(self.metrics)

    def read_best(self) -> dict[str, Any] | None:
        """Return the best step, its figure and the value of that, None where none was noted."""
        noted = [line for line in self.read_metrics() if line["kind"] == "best"]
        return noted[-1] if noted else None

    def read_modality(self) -> dict[str, Any]:
        """Return what the modality was fitted to."""
        return _read_json(self.modality)

    def write_model(self, weights: Mapping[str, Tensor], modality: Mapping[str, Any]) -> None:
        """Write what the run ships: the encoder's weights, on the CPU, and what the modality was fitted to."""
        self.write_encoder(weights)
        self.write_modality(modality)

    def write_encoder(self, weights: Mapping[str, Tensor]) -> None:
        """Write the weights that the run ships, which lie on the CPU."""
        with self._writing():
            replace_tensors(self.encoder, weights)

    def write_modality(self, state: Mapping[str, Any]) -> None:
        """Write what the modality was fitted to."""
        with self._writing():
            replace_text(self.modality, json.dumps(state))

    def read_summary(self) -> dict[str, Any]:
        """Return how the run ended, {} without a summary. Raises a `Damaged` where it is not what was written."""
        if not self.summary.is_file():
            return {}
        summary = read_sealed(self.summary, unsealed=True)
        finish = summary.get("finished")
        recorded = finish.get("sha256") if isinstance(finish, dict) else None
        if isinstance(recorded, dict) and self.recipe.name in recorded:
            read_sealed(self.summary)  # versions that record the recipe write a digest of the summary, too
        shapes.check(summary, shapes.SUMMARY, str(self.summary))
        return summary

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Write how the run ended."""
        with self._writing():
            replace_text(self.summary, json.dumps(sealed(values), indent=1))

    def write_report(self, page: str) -> None:
        """Write the page about the run."""
        with self._writing():
            replace_text(self.report, page)

    def write_readme(self, text: str) -> None:
        """Write how the run is used."""
        with self._writing():
            replace_text(self.readme, text)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Say what to do where a file that a run ends with cannot be written."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                way = "Give the command a copy of the folder that can be written to"
            else:
                way = "Free some space, then repeat the command"
            raise NotWritten(
                f"{self.path} could not be written to ({error.strerror}); what was written before is intact. {way}"
            ) from error


def _lines(path: Path, shape: Mapping[str, shapes.Shape]) -> list[dict[str, Any]]:
    """Return the values of a file of sealed lines; raise a `Damaged` where they are not those of a run."""
    lines = read_sealed_lines(path)
    for number, line in enumerate(lines, start=1):
        shapes.check(line, shape, f"line {number} of {path}")
    return lines


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    values = parse_json(file.read_bytes(), str(file))
    if not isinstance(values, dict):
        raise ValueError(f"{file}: want a mapping")
    return values
