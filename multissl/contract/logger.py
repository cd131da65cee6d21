"""A logger takes the metrics of a run somewhere: a file, TensorBoard, a tracking service."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from multissl.config import Component
from multissl.config import Config as BaseConfig
from multissl.contract.learning import Figure

Kind = Literal["train", "eval", "estimates", "note", "alarm", "best"]
"""train: means since the last line; eval: what evaluators measured; estimates: n, interval and scores of these figures,
which the record alone holds; note, alarm: a text. An alarm without text ends the one before; best: the step is the best
so far by a figure, again in the record alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """What a logger knows of the run that it is opened for."""

    name: str
    """Of the run, as its folder is called."""
    folder: Path
    """A place for the logger's own files, which may not exist yet."""
    start: int = 0
    """The step that is resumed; what was logged beyond it is replaced."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """All options, as JSON values."""


class Logger(Component, ABC):
    """Base of loggers; built with (session) on the first rank, when training begins.

    One that raises is said once and left out from then on; the training goes on.
    """

    group: ClassVar[str] = "loggers"
    packages: ClassVar[tuple[str, ...]] = ()
    """What it imports that may not be installed: a run that lacks one is refused before it begins."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of a logger."""

        def build(self, session: Session) -> Logger:
            """Return the logger of a start of a run. Raises a RuntimeError where it cannot begin."""
            return super(Logger.Config, self).build(session)

    @abstractmethod
    def log(self, kind: Kind, step: int, metrics: Mapping[str, Any]) -> None:
        """Take metrics after `step` steps: numbers, perhaps not finite, and texts, by name."""

    def draw(self, step: int, figures: Sequence[Figure]) -> None:
        """Take figures; left out by default."""

    def close(self) -> None:
        """Write what is still held, when a start of the run ends, whatever ended it."""
