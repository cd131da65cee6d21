"""Where the metrics of a run go: its record always, and whatever loggers its recipe names."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from multissl.contract.learning import Figure
from multissl.contract.logger import Kind, Logger, Session
from multissl.contract.places import Places
from multissl.engine.loggers.record import Record
from multissl.registry import require


def check_loggers(loggers: Mapping[str, Logger.Config], places: Places) -> None:
    """Raise where a logger has no place for its files, or a package that it needs is not installed."""
    for name, cfg in loggers.items():
        places.logger(name)
        for package in cfg.owner.packages:
            require(package)


class Metrics:
    """The record and the loggers of one start of a run, on the rank that writes.

    What the record cannot hold ends the run, which goes on from its newest checkpoint. A logger that fails is said
    once and left out from then on, and the training goes on.
    State: open files and sessions, until `close`.
    """

    def __init__(
        self,
        loggers: Mapping[str, Logger.Config],
        places: Places,
        *,
        start: int,
        recipe: Mapping[str, Any],
        say: Callable[[str], None],
        mark: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the record, then every logger, at the step that is resumed; `mark` is where the record goes on."""
        self.say = say
        self.record = Record(places.metrics, start, mark)
        if self.record.lost:
            say(f"{places.metrics} is gone: the record begins again at step {start}")
        self.loggers: dict[str, Logger] = {}
        for name, cfg in loggers.items():
            folder = places.logger(name)
            session = Session(name=places.path.resolve().name, folder=folder, start=start, recipe=recipe)
            self._attempt(name, start, functools.partial(self._open, name, cfg, session))

    def _open(self, name: str, cfg: Logger.Config, session: Session) -> None:
        self.loggers[name] = cfg.build(session)

    def log(self, kind: Kind, step: int, metrics: Mapping[str, Any]) -> None:
        """Give metrics after `step` steps to the record and to every logger."""
        self.record.log(kind, step, metrics)
        for name, logger in list(self.loggers.items()):
            self._attempt(name, step, lambda logger=logger: logger.log(kind, step, metrics))

    def draw(self, step: int, figures: Sequence[Figure]) -> None:
        """Give figures to every logger; the record holds none."""
        for name, logger in list(self.loggers.items()):
            self._attempt(name, step, lambda logger=logger: logger.draw(step, figures))

    def close(self) -> None:
        """Close every logger, also where another one fails to, then the record; a second call does nothing."""
        for name, logger in list(self.loggers.items()):
            self._attempt(name, self.record.step, logger.close)
        self.loggers.clear()
        self.record.close()

    def _attempt(self, name: str, step: int, action: Callable[[], None]) -> None:
        """Do something with a logger; where it fails, say so and leave the logger out from now on."""
        try:
            action()
        except Exception as error:  # whatever a library or a network raises: the training is worth more
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            text = f"the logger {name} failed and is left out from now on: {reason}"
            failed = self.loggers.pop(name, None)
            self.say(text)
            self.record.log("note", step, {"text": text})
            if failed and action != failed.close:
                with contextlib.suppress(Exception):  # it has been said already
                    failed.close()
