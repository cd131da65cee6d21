"""What a target of `multissl export` says of itself: what it can hold, which files it writes, which lines read them.

The lines are Python that other programs can hold: they define `encode(*arrays)`, from numpy arrays to features [B, D],
are printed, stand in the model card, and run as they are in a fresh process, which compares.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from multissl.contract.encoder import Encoder
from multissl.run.folder import RunFolder
from multissl.run.model import Model
from multissl.run.module import FeatureModule


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is exported: a stream of a run."""

    model: Model
    run: RunFolder
    stream: str
    module: FeatureModule
    """What features are compared with; on the CPU, in fp32."""

    @property
    def encoder(self) -> Encoder:
        """Return the encoder of the stream, without a head."""
        return self.module.encoder

    def reads_other_sizes(self) -> bool:
        """Return whether the input may have other lengths along the free axes of its preparation."""
        preparation = self.module.preparation
        return bool(preparation.free_axes) and (preparation.one_size or self.encoder.any_size)

    def cases(self, other_sizes: bool) -> list[tuple[Tensor, ...]]:
        """Return inputs to compare on: two sizes of batch, and another size of sample if asked for."""
        example = self.module.preparation.example
        return [example(3), example(5), *([example(2, other=True)] if other_sizes else [])]


class Exporter(ABC):
    """Base of targets; made without options, and without state."""

    name: ClassVar[str]
    """How it is registered, and typed behind --to."""
    reads: ClassVar[str]
    """Which program opens it, for the model card."""

    @abstractmethod
    def check(self, subject: Subject) -> None:
        """Raise a ValueError with the reason where the target cannot hold it, an ImportError without its packages."""

    @abstractmethod
    def write(self, subject: Subject, folder: Path) -> None:
        """Write the files into a folder, which is empty and takes its place later."""

    @abstractmethod
    def code(self, subject: Subject, folder: Path) -> str:
        """Return lines of Python that define `encode(*arrays)` on the files in a folder."""

    def cases(self, subject: Subject) -> list[tuple[Tensor, ...]]:
        """Return the inputs that are compared; by default of all sizes that the encoder reads."""
        return subject.cases(subject.reads_other_sizes())

    def card(self, subject: Subject) -> dict[str, Any]:
        """Return what the head of a model card says of the format."""
        return {"library_name": "multissl"}
