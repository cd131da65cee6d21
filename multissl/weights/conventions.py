"""What a network's tensors do not tell: how its norms, activations, positions and pooling compute.

The same names hold networks that compute differently: a norm's eps, a GELU's form, the way a position table is
resampled. Weights that are read with another convention load without a word and give other features, so every layout
says its own, and they are set where the encoder is made from the weights, and compared where it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from multissl.encoders.transformer import Pooling
from multissl.layers.transformer import Act, FinalNorm, NormOrder

RESAMPLED = ("position.offset", "position.antialias", "position.interpolation")
"""The options of an encoder that say how it resamples its position table; wherever a table of a file is resampled, they
are compared with `Conventions.resampling`."""


class Resampling(NamedTuple):
    """How some code resamples the position table of its models."""

    offset: float
    antialias: bool
    whose: str
    """Where it is known from, for messages."""
    interpolation: str = "bicubic"


class Context(NamedTuple):
    """What is known beside the tensors."""

    config: Mapping[str, Any] = {}
    """Hugging Face's or timm's `config.json`, {} without one."""
    grid: tuple[int, ...] = ()
    """Tokens along each axis of the encoder that is to be filled, () where there is none yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conventions:
    """How the network of a file computes; None where nothing tells."""

    norm_eps: float | None = 1e-6
    act: Act | None = "gelu"
    heads: int | None = None
    kind: str = "learned"
    """position.kind; learned also for fixed tables, which lie in the files."""
    resampling: Resampling | None = None
    base: float = 100.0
    """Longest period of rotary positions."""
    grid: tuple[int, ...] = ()
    """Tokens along each axis of the position table; () where it is a square, or the encoder's."""
    pooling: Pooling = "cls"
    """What its authors evaluate: set with the rest, but free."""
    final_norm: FinalNorm = "tokens"
    norm_order: NormOrder = "pre"
    key_bias: bool = True
