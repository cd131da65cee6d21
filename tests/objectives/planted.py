"""The gradient of a rank's samples, and what it is where a collective does not do what it should."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

Plant = Callable[[Callable[[Tensor], Tensor], slice], Callable[[Tensor], Tensor]]
"""Makes the wrong collective of the right one and of where a rank's own samples stand among all."""


def right_and_planted(
    loss: Callable[[Tensor], Tensor], z: Tensor, rank: int, ranks: int, module: ModuleType, name: str, plant: Plant
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradient of `loss` at this rank's samples of z [V, B, P], right and with a wrong `module.name`."""
    mine = z.chunk(ranks, 1)[rank].clone().requires_grad_()

    def grad() -> Tensor:
        return torch.autograd.grad(loss(mine), mine)[0] / ranks  # the mean over ranks that the trainer takes

    right, own = grad(), slice(rank * mine.shape[1], (rank + 1) * mine.shape[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, plant(vars(module)[name], own))
        return right, grad()


def own_gradient_alone(gather: Callable[[Tensor], Tensor], own: slice) -> Callable[[Tensor], Tensor]:
    """A gather through which no gradient of other ranks' losses flows back."""

    def gathered(x: Tensor) -> Tensor:
        everyone = gather(x.detach()).clone()
        everyone[own] = x
        return everyone

    return gathered


def of_one_rank(_: Callable[[Tensor], Tensor], _own: slice) -> Callable[[Tensor], Tensor]:
    """A collective that every rank does by itself."""
    return lambda x: x
