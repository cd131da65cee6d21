"""AdamW, torch's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from multissl.engine.optim.base import Optimizer


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    @dataclass(kw_only=True, slots=True)
    class Config(Optimizer.Config):
        """Options of AdamW."""

        betas: tuple[float, float] = (0.9, 0.999)
        """Decay rates of the running mean and the running square of the gradient, each 0 to below 1."""
        eps: float = 1e-8
        """Number added to the denominator of the update."""

    cfg: Config

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """torch's AdamW, fused."""
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.cfg.betas, eps=self.cfg.eps, fused=True)
