"""LARS: layer-wise adaptive rate scaling for large batches.

You et al. 2017, arXiv 1708.03888, as in the official Barlow Twins, VICReg and MoCo v3 code: the trust ratio uses the
norm of the decayed gradient and enters the momentum buffer. Options give lightly's ratio (separate norms) and
solo-learn's (separate norms, clipped at the learning rate).
State: a momentum buffer per parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from multissl.engine.optim.base import Optimizer

Norms = Literal["joint", "separate"]


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling for large batches."""

    @dataclass(kw_only=True, slots=True)
    class Config(Optimizer.Config):
        """Options of LARS."""

        momentum: float = 0.9
        """Decay rate of the running update, 0 to below 1."""
        trust: float = 0.001
        """Eta: the size of an update relative to the norm of its parameter; CIFAR recipes use 0.02."""
        norms: Norms = "joint"
        """What the parameter's norm is divided by. joint: |g + wd p|, as in the official code; separate:
        |g| + wd |p| + 1e-8, as in lightly and solo-learn, where a parameter or gradient of norm 0 is not decayed."""
        clip: bool = False
        """Step by min(trust ratio, learning rate) instead of their product (solo-learn's CIFAR recipes)."""
        exclude_vectors: bool = True
        """Leave biases, norms and other vectors without decay and adaptation."""

        def __post_init__(self) -> None:
            super(LARS.Config, self).__post_init__()
            if not 0 <= self.momentum < 1:
                raise ValueError(f"optim.momentum={self.momentum}: want at least 0 and below 1")
            if self.trust <= 0:
                raise ValueError(f"optim.trust={self.trust}: want more than 0, such as 0.001")

    cfg: Config

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Our LARS."""
        cfg = self.cfg
        return TorchLARS(groups, self.lr, cfg.momentum, cfg.trust, cfg.norms, cfg.clip, cfg.exclude_vectors)


class TorchLARS(torch.optim.Optimizer):
    """LARS as a torch optimizer; by default vectors (biases, norms) are neither decayed nor rescaled."""

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.9,
        trust: float = 0.001,
        norms: Norms = "joint",
        clip: bool = False,
        exclude_vectors: bool = True,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0})
        self._step_supports_amp_scaling = True
        self.found_inf: Tensor | None = None
        """1 where the gradient is not finite and the step is to change nothing, as in torch's fused optimizers."""
        self.norms, self.clip, self.exclude_vectors = norms, clip, exclude_vectors

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad
                if p.ndim > 1 or not self.exclude_vectors:
                    update = self._adapted(p, update, group["weight_decay"], group["trust"], group["lr"])
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                momentum = state["momentum"] * group["momentum"] + update
                moved = p - group["lr"] * momentum
                state["momentum"].copy_(self._unless_skipped(momentum, state["momentum"]))
                p.copy_(self._unless_skipped(moved, p))

    def _unless_skipped(self, new: Tensor, old: Tensor) -> Tensor:
        return new if self.found_inf is None else torch.where(self.found_inf == 0, new, old)

    def _adapted(self, p: Tensor, grad: Tensor, decay: float, trust: float, lr: float) -> Tensor:
        """Return the decayed gradient times the trust ratio."""
        size, decayed = p.norm(), grad + decay * p
        if self.norms == "joint":
            change = decayed.norm()
            usable, unadapted = (size > 0) & (change > 0), decayed
        else:
            slope = grad.norm()
            change = slope + decay * size + 1e-8
            usable, unadapted = (size > 0) & (slope > 0), grad
        ratio = trust * size / change
        if self.clip:
            ratio = (ratio / lr).clamp(max=1.0) if lr > 0 else torch.ones_like(ratio)
        return torch.where(usable, decayed * ratio, unadapted)
