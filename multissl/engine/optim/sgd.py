"""Stochastic gradient descent, torch's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from multissl.engine.optim.base import Optimizer
from multissl.parallel.sharding import local


class SGD(Optimizer):
    """Stochastic gradient descent with momentum; weight decay is added to the gradient."""

    @dataclass(kw_only=True, slots=True)
    class Config(Optimizer.Config):
        """Options of SGD."""

        momentum: float = 0.9
        """Decay rate of the running update, 0 to below 1."""
        nesterov: bool = False
        """Look one step ahead along the momentum."""

    cfg: Config

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """torch's SGD; fused, which takes no sharded parameters."""
        parameters = [p for group in groups for p in group["params"]]
        fused = all(local(p) is p for p in parameters)
        made = torch.optim.SGD(
            groups, lr=self.lr, momentum=self.cfg.momentum, nesterov=self.cfg.nesterov, fused=fused
        )
        if (
            fused and self.cfg.momentum
        ):  # torch would make them of the first gradient, even of one to be skipped
            for parameter in parameters:
                made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return made
