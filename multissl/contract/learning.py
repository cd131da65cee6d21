"""Features, losses, progress, and how parameters are treated: what encoders and objectives hand to the engine.

Shapes: R rows (views times samples), N tokens, D width, P width of a space that streams share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

if TYPE_CHECKING:
    import numpy as np


@dataclass(kw_only=True, slots=True)
class Features:
    """What an encoder makes of R rows."""

    pooled: Tensor
    """[R, D]"""
    tokens: Tensor
    """[R, N, D] without class and register tokens; the visible ones, in order, under `drop`."""
    inner: tuple[Tensor, ...] = ()
    """Outputs of the last blocks asked for, first to last, each [R, N, D], before the final norm."""
    inner_pooled: tuple[Tensor, ...] = ()
    """What stands for a row in each of these blocks, [R, D], behind the final norm: `pooled` of the last one. For
    evaluators alone: made in evaluation mode, and by encoders that pool a block as they pool their output."""
    embedding: Tensor | None = None
    """[R, P] where the row lies in the space that streams share, of a shipped tower; None without such a space."""


@dataclass(kw_only=True, slots=True)
class Losses:
    """A scalar to differentiate, its named unweighted terms, and numbers that only describe."""

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def weigh(
        terms: dict[str, Tensor], weights: Mapping[str, float], stats: dict[str, Tensor] | None = None
    ) -> Losses:
        """Return the weighted sum of terms; a weight of 0 leaves its term out of the graph."""
        used = [weights[name] * value for name, value in terms.items() if weights[name] != 0]
        return Losses(
            total=torch.stack(used).sum(),
            terms={name: value.detach() for name, value in terms.items()},
            stats={name: value.detach() for name, value in (stats or {}).items()},
        )


# FSDP2 finds the tensors of a forward's output by pytree; through them it knows when the backward pass begins.
register_pytree_node(
    Losses,
    lambda losses: ([losses.total, losses.terms, losses.stats], None),
    lambda parts, _: Losses(total=parts[0], terms=parts[1], stats=parts[2]),  # type: ignore[index]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where the run stands: `step` of `total`, counted from 0."""

    step: int
    total: int
    epoch_steps: float = 1.0
    """Steps in which every sample is drawn once, on average."""
    described: bool = True
    """Whether somebody reads the statistics of this step; an objective leaves out those that cost something if not."""
    counted: Tensor | None = None
    """Whether the step just made counts, bool [] that only the device knows: where it does not, as loss or gradient
    are not finite, nothing may move. None: it does."""

    @property
    def epoch(self) -> int:
        """Return how many full passes over the data were made so far."""
        return int(self.step / self.epoch_steps)

    def moved(self, new: Tensor, old: Tensor) -> Tensor:
        """Return what becomes of `old`: `new` where the step counts; nothing waits for the device."""
        return new if self.counted is None else torch.where(self.counted, new, old)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ParamRule:
    """How the optimizer treats the parameters of a module, or one parameter: an exception that an objective declares.

    Several rules may hold for a parameter: their factors multiply, the longest freeze counts.
    """

    of: nn.Module | nn.Parameter
    lr: float = 1.0
    """Factor on the learning rate."""
    decay: float = 1.0
    """Factor on the weight decay."""
    frozen_steps: int = 0
    """Steps at the start in which the learning rate is 0."""
    constant: bool = False
    """Stay at the learning rate that others reach after the warm-up: no warm-up and no decay (SimSiam's predictor)."""

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the rule holds for."""
        return [self.of] if isinstance(self.of, nn.Parameter) else list(self.of.parameters())


@dataclass(frozen=True, slots=True)
class Figure:
    """One picture of the report."""

    title: str
    image: np.ndarray
    """uint8 [H, W, 3]"""
    caption: str = ""
