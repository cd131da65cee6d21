"""Where metrics go: the record always, TensorBoard, and the terminal.

A line of the record is {"kind": "train" | "eval" | "note" | "alarm", "step": ..., name: value}; an alarm without
text ends the one before. On resume, lines past the resumed step are dropped, so an interrupted run leaves the file of
an uninterrupted one. A run that begins at step 0 sets the lines of an earlier start aside.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from multissl.contract.places import Places
from multissl.files import replace_text, set_aside, whole_json_lines


def _keep_until(path: Path, step: int) -> None:
    """Leave the lines up to a step, each of them whole, as they were written; at any moment the file is whole."""
    text = path.read_text() if path.is_file() else ""
    kept = "".join(f"{line}\n" for line, values in whole_json_lines(text) if values["step"] <= step)
    if kept != text:
        replace_text(path, kept)


class Sinks:
    """Writes the figures of a run; silent on every rank but the first.

    `earlier` is the file to which the lines of an earlier start went, if there was one.
    """

    def __init__(self, places: Places, start: int, tensorboard: bool, active: bool) -> None:
        self.active, self._events, self._file, self.earlier = active, None, None, None
        if not active:
            return
        path = places.metrics
        if start:
            _keep_until(path, start)
        elif path.is_file() and path.stat().st_size:
            self.earlier = set_aside(path)
        self._file = path.open("a")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(places.logger("tensorboard")), purge_step=start or None)

    def write(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """One line, and the numbers among it as events."""
        if not self.active:
            return
        self._line({"kind": kind, "step": step, **figures})
        if self._events:
            for name, value in figures.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self._events.add_scalar(f"{kind}/{name}", value, step)

    def _line(self, line: dict[str, Any]) -> None:
        assert self._file
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Flush and close the files."""
        if self._file:
            self._file.close()
        if self._events:
            self._events.close()


class Display:
    """A progress bar on a terminal, a line every now and then without one, nothing on other ranks."""

    def __init__(self, active: bool, seconds: float = 20.0) -> None:
        self.active, self.seconds = active, seconds
        self.console = _Terminal(stderr=True, soft_wrap=True, quiet=not active, highlight=False)
        self.live = active and sys.stderr.isatty()
        self._last = time.monotonic()
        self._bar: Progress | None = None

    @contextlib.contextmanager
    def running(self, start: int, total: int) -> Iterator[None]:
        """Show progress for the time of a `with`."""
        if not self.live:
            yield
            return
        columns = (
            TextColumn("step {task.completed}/{task.total}"), BarColumn(), TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self.console) as self._bar:
            self._task = self._bar.add_task("", total=total, completed=start, figures="")
            yield
        self._bar = None

    def step(self, step: int, total: int, figures: str = "") -> None:
        """Move to `step`; `figures` replaces the text beside the bar where it is not empty."""
        if self._bar:
            self._bar.update(self._task, completed=step)
            if figures:
                self._bar.update(self._task, figures=figures)
        elif self.active and figures and (time.monotonic() - self._last > self.seconds or step >= total):
            self._last = time.monotonic()
            self.say(f"step {step}/{total}  {figures}")

    def say(self, text: str) -> None:
        """Print a line for the user; without a terminal the run goes on in silence."""
        try:
            self.console.print(text, markup=False)
        except OSError:  # it was closed
            self.console.quiet = True


class _Terminal(Console):
    """A console that falls silent where rich would end the program: whoever read its lines is gone."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
