"""What a run ships, between its weights as the run started and those that were trained.

Weights of one encoder before and after it was trained on from them lie on a line along which what was learned comes
faster than what was known goes (WiSE-FT: Wortsman et al. 2021, arXiv 2109.01903, section 4).
Shapes: those of the weights.  State: the weights at the start, which every start of the run makes anew.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Mixture:
    """The weights of a module at the start, to be mixed with those that it has later."""

    def __init__(self, module: nn.Module) -> None:
        self.start = {name: tensor.clone() for name, tensor in _floating(module).items()}

    @contextmanager
    @torch.no_grad()
    def within(self, module: nn.Module, share: float) -> Generator[None]:
        """Give a module `share` times its own weights plus `1 - share` times those of the start, and then its own back.

        Running statistics of batch norm are mixed as weights are; numbers that are not floating stay.
        """
        if share == 1:
            yield
            return
        own = _floating(module)
        kept = {name: tensor.clone() for name, tensor in own.items()}
        try:
            for name, tensor in own.items():
                tensor.copy_(self.start[name].lerp(tensor, share))
            yield
        finally:
            for name, tensor in own.items():
                tensor.copy_(kept[name])


def _floating(module: nn.Module) -> dict[str, Tensor]:
    """Return the floating numbers of a module by name; a tensor under several names once."""
    found = {id(t): (n, t) for n, t in module.state_dict().items() if t.is_floating_point()}
    return {name: tensor.detach() for name, tensor in found.values()}
