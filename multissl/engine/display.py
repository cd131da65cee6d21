"""What the terminal shows of a run: a progress bar, or a line every now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


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
            TextColumn("{task.fields[metrics]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self.console) as self._bar:
            self._task = self._bar.add_task("", total=total, completed=start, metrics="")
            yield
        self._bar = None

    def step(self, step: int, total: int, metrics: str = "") -> None:
        """Move to `step`; `metrics` replaces the text beside the bar where it is not empty."""
        if self._bar:
            self._bar.update(self._task, completed=step)
            if metrics:
                self._bar.update(self._task, metrics=metrics)
        elif self.active and metrics and (time.monotonic() - self._last > self.seconds or step >= total):
            self._last = time.monotonic()
            self.say(f"step {step}/{total}  {metrics}")

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
