"""The record of a run, which every run keeps: a line of JSON for each thing that was logged.

A line is {"kind": "train" | "eval" | "estimates" | "note" | "alarm", "step": ..., name: value}; an alarm without text
ends the one before. A checkpoint remembers how many bytes there were and their digest (`mark`); on resume, what came
after them is cut off, so an interrupted run leaves the file of an uninterrupted one. A run that begins at step 0 sets
the lines of an earlier start aside. What was written is never written again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multissl.contract.logger import Kind, Logger
from multissl.files import Lines, read_marked, replace_text, set_aside, whole_json_lines


class RecordNotWritten(RuntimeError):
    """The record of a run could not be written; its checkpoints are intact."""


class Record(Logger):
    """Adds lines to a file; built with its path and the step that is resumed, not by name.

    `mark` is how far the record went when the checkpoint that is resumed was written; without it lines count by step.
    """

    def __init__(self, path: Path, start: int, mark: Mapping[str, Any] | None = None) -> None:
        self.path, self.step = path, start
        self.earlier: Path | None = None
        """The file to which the lines of an earlier start went, if there was one."""
        self.lost = bool(mark and mark["bytes"] and not path.exists())
        """Whether the lines of before are gone."""
        kept = read_marked(path, mark) if mark and not self.lost else None
        if start and mark is None:
            _keep_until(path, start)
        elif not start and path.is_file() and path.stat().st_size:
            self.earlier = set_aside(path)
        self._file = Lines(path, None if kept is None else len(kept))
        self._bytes, self._digest = 0, hashlib.sha256()
        self._count(path.read_bytes() if kept is None else kept)

    def _count(self, data: bytes) -> None:
        self._bytes += len(data)
        self._digest.update(data)

    def log(self, kind: Kind, step: int, metrics: Mapping[str, Any]) -> None:
        """Add one line; a number that is not finite becomes null."""
        line = {"kind": kind, "step": step, **metrics}
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self.step = step
        try:
            data = (json.dumps(clean) + "\n").encode()
            self._file.add(data)
            self._count(data)
        except OSError as error:
            raise self._not_written(error) from error

    def mark(self) -> dict[str, Any]:
        """Bring all lines to the disk; return how many bytes they have, and their digest."""
        try:
            self._file.sync()
        except OSError as error:
            raise self._not_written(error) from error
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def _not_written(self, error: OSError) -> RecordNotWritten:
        return RecordNotWritten(
            f"{self.path} could not be written to ({error.strerror}); free some space, then repeat the command to "
            "go on from the newest checkpoint"
        )

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # a line that could not be written has ended the run already
            self._file.close()


def _keep_until(path: Path, step: int) -> None:
    """Leave the lines up to a step, each of them whole, as they were written; at any moment the file is whole."""
    text = path.read_text(errors="replace") if path.is_file() else ""
    kept = "".join(f"{line}\n" for line, values in whole_json_lines(text) if values.get("step", 0) <= step)
    if kept != text:
        replace_text(path, kept)
