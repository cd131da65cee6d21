"""What a naming of weights says of itself: which files are in it, and what our encoders call their tensors.

The same network is published under many names: cut or fused projections, prefixes of wrappers, heads beside it.
A layout turns one such naming into the names and shapes of an encoder here; loading then compares the two.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import ClassVar

from torch import Tensor, nn

from multissl.weights.files import State
from multissl.weights.resampling import Convention


class Layout(ABC):
    """Base of namings; made without options, and without state."""

    name: ClassVar[str]
    """How it is registered, for messages."""

    @abstractmethod
    def recognizes(self, names: Collection[str], encoder: nn.Module) -> bool:
        """Return whether tensors of these names are in this naming, and can fill such an encoder."""

    @abstractmethod
    def to_ours(self, state: Mapping[str, Tensor], encoder: nn.Module) -> State:
        """Return the tensors under the encoder's own names, in its shapes; what it does not know keeps its name."""

    def convention(self, state: Mapping[str, Tensor]) -> Convention | None:
        """Return how the code that gave the names resamples position tables; None where the names do not tell."""
        return None


def shorten(name: str) -> str:
    """Return a name of our transformer without its two parts, as messages and DINOv2 have it."""
    return re.sub(r"^(tokenizer|trunk)\.", "", name)


def unwrapped(name: str) -> str:
    """Return a name without the prefixes of training code: of wrappers, teachers and models around a backbone."""
    return re.sub(r"^(module\.|backbone\.|teacher\.|dinov2\.|dinov2_with_registers\.)+", "", name)
