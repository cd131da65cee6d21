"""How tensors become what an encoder reads: the clean view of a modality, as a function of tensors alone.

`Model.module` lets it precede the encoder. It names no file and draws nothing, so the module that holds it can be
compiled, exported and read by other programs.
Shapes: B samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Constants = Mapping[str, Tensor]
"""Tensors of a preparation by name, on the device of the module that holds them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FreeAxis:
    """An axis of the input whose length may differ from call to call."""

    axis: int
    name: str
    step: int = 1
    """Its length is a multiple of this."""
    least: int = 1
    most: int = 0
    """0: no limit."""


@dataclass(kw_only=True)
class Preparation(ABC):
    """Base of preparations: plain numbers, and constants that the module keeps as buffers, in their own precision."""

    reads: str
    """What the tensor is, for messages and model cards: pictures [B, 3, 224, 224], ..."""
    constants: dict[str, Tensor] = field(default_factory=dict)
    free_axes: tuple[FreeAxis, ...] = ()
    """Axes beside that of the samples which may differ."""
    one_size: bool = False
    """Whether the encoder reads views of one size whatever the free axes are."""
    takes_mask: bool = False
    """Whether a second tensor, bool, says which entries along the second axis are real."""

    @abstractmethod
    def __call__(self, x: Tensor, mask: Tensor | None, constants: Constants) -> tuple[Tensor, Tensor | None]:
        """Return the input of the encoder, and bool [B, N], False on tokens of padding; None: all are real."""

    @abstractmethod
    def example(self, rows: int, other: bool = False) -> tuple[Tensor, ...]:
        """Return an input of so many samples, always the same; with `other` along the free axes another length."""

    def describe(self) -> dict[str, Any]:
        """Return what a program in another language has to know of the input, as JSON values."""
        return {"input": self.reads}
