"""Where the engine leaves what it writes: a run's folder answers, so that the engine spells no file name of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path


class Places(ABC):
    """Paths of what a training writes; nothing of them need exist yet."""

    path: Path
    """The folder around all of them, which messages name."""

    @property
    @abstractmethod
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""

    @property
    @abstractmethod
    def metrics(self) -> Path:
        """Return the file of the record: a line of JSON for each thing that was logged."""

    @property
    @abstractmethod
    def trace(self) -> Path:
        """Return the file of what every step was."""

    @abstractmethod
    def nonfinite(self, step: int, rank: int) -> Path:
        """Return the file that describes a step which a rank skipped as not finite."""

    @abstractmethod
    def logger(self, name: str) -> Path:
        """Return a folder for a logger's own files. Raises a ValueError where the name is taken."""
