"""The record of a run, which every run keeps: a line of JSON for each thing that was logged.

A line is {"kind": "train" | "eval" | "estimates" | "note" | "alarm" | "best", "step": ..., name: value}; an alarm
without text ends the one before. A checkpoint remembers how many bytes there were and their digest (`mark`); on resume,
what came after them is cut off, so an interrupted run leaves the file of an uninterrupted one. A run that begins at
step 0 sets the lines of an earlier start aside. What was written is never written again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multissl.contract.logger import Kind, Logger
from multissl.engine.marked import Marked
from multissl.files import replace_text, set_aside, whole_json_lines


class Record(Logger):
    """Adds lines to a file; built with its path and the step that is resumed, not by name.

    `mark` is how far the record went when the checkpoint that is resumed was written; without it lines count by step.
    """

    def __init__(self, path: Path, start: int, mark: Mapping[str, Any] | None = None) -> None:
        self.path, self.step = path, start
        self.earlier: Path | None = None
        """The file to which the lines of an earlier start went, if there was one."""
        if start and mark is None:
            _keep_until(path, start)
        elif not start and path.is_file() and path.stat().st_size:
            self.earlier = set_aside(path)
        self._file = Marked(path, mark)
        self.lost = self._file.lost
        """Whether the lines of before are gone."""

    def log(self, kind: Kind, step: int, metrics: Mapping[str, Any]) -> None:
        """Add one line; a number that is not finite becomes null."""
        line = {"kind": kind, "step": step, **metrics}
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self.step = step
        self._file.add((json.dumps(clean) + "\n").encode())

    def mark(self) -> dict[str, Any]:
        """Bring all lines to the disk; return how many bytes they have, and their digest."""
        return self._file.mark()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _keep_until(path: Path, step: int) -> None:
    """Leave the lines up to a step, each of them whole, as they were written; at any moment the file is whole."""
    text = path.read_text(errors="replace") if path.is_file() else ""
    kept = "".join(f"{line}\n" for line, values in whole_json_lines(text) if values.get("step", 0) <= step)
    if kept != text:
        replace_text(path, kept)
