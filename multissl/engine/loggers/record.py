"""The record of a run, which every run keeps: a line of JSON for each thing that was logged.

A line is {"kind": "train" | "eval" | "estimates" | "note" | "alarm", "step": ..., name: value}; an alarm without text
ends the one before. On resume, lines past the resumed step are dropped, so an interrupted run leaves the file of an
uninterrupted one. A run that begins at step 0 sets the lines of an earlier start aside. The file is whole at any
moment.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multissl.contract.logger import Kind, Logger
from multissl.files import replace_text, set_aside, whole_json_lines


class RecordNotWritten(RuntimeError):
    """The record of a run could not be written; its checkpoints are intact."""


class Record(Logger):
    """Adds lines to a file; built with its path and the step that is resumed, not by name."""

    def __init__(self, path: Path, start: int) -> None:
        self.path, self.step = path, start
        self.earlier: Path | None = None
        """The file to which the lines of an earlier start went, if there was one."""
        if start:
            _keep_until(path, start)
        elif path.is_file() and path.stat().st_size:
            self.earlier = set_aside(path)
        self._file = path.open("a")

    def log(self, kind: Kind, step: int, metrics: Mapping[str, Any]) -> None:
        """Add one line; a number that is not finite becomes null."""
        line = {"kind": kind, "step": step, **metrics}
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self.step = step
        try:
            self._file.write(json.dumps(clean) + "\n")
            self._file.flush()
        except OSError as error:
            raise RecordNotWritten(
                f"{self.path} could not be written to ({error.strerror}); free some space, then repeat the command to "
                "go on from the newest checkpoint"
            ) from error

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # a line that could not be written has ended the run already
            self._file.close()


def _keep_until(path: Path, step: int) -> None:
    """Leave the lines up to a step, each of them whole, as they were written; at any moment the file is whole."""
    text = path.read_text() if path.is_file() else ""
    kept = "".join(f"{line}\n" for line, values in whole_json_lines(text) if values["step"] <= step)
    if kept != text:
        replace_text(path, kept)
