"""Optimizers: which parameter gets which learning rate and decay, and the step itself.

AdamW and SGD are torch's; LARS (You et al. 2017, arXiv 1708.03888) follows the official Barlow Twins, VICReg and
MoCo v3 code: the trust ratio uses the norm of the decayed gradient and enters the momentum buffer. Options give
lightly's ratio (separate norms) and solo-learn's (separate norms, clipped at the learning rate).
Groups follow DINOv2: layer-wise decay ** (depth + 1 - layer), a factor for the patch projection, no weight decay on
biases, norms and whatever else is a vector or a number (LayerScale, a temperature). What a parameter is depends on the
module that owns it and never on its path, as streams are called what their user likes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from multissl.abilities import DeclaresParameters
from multissl.config import Component
from multissl.config import Config as BaseConfig
from multissl.schedules import Schedule
from multissl.types import ParamRule, Progress

Norms = Literal["joint", "separate"]
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
"""Normalisation as torch has it; `_NormBase` is the base of batch and instance norms."""


class Kind(NamedTuple):
    """What a parameter is."""

    vector: bool = False
    """A bias, part of a norm, of fewer than two axes, or declared to have no weight decay."""
    token: bool = False
    """A class, mask or register token, or positions."""
    patch: bool = False
    """Part of the patch projection."""


class Treatment(NamedTuple):
    """What distinguishes one parameter group from another."""

    lr: float
    decay: float
    frozen_steps: int
    constant: bool = False


class Optimizer(Component):
    """Parameter groups with schedules around a torch optimizer."""

    group: ClassVar[str] = "optimizers"

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options that all optimizers share."""

        lr: float = 1e-3
        """Learning rate at the end of the warm-up, for the batch size that `lr_scaling` names."""
        lr_scaling: Literal["none", "linear", "sqrt"] = "none"
        """none: as given; linear: for a batch of 256; sqrt: for a batch of 1024 (DINOv2)."""
        warmup: int = 0
        """Steps of linear warm-up from 0."""
        final_lr: float = 1e-6
        """Learning rate at the end of the run; never scaled."""
        weight_decay: float = 0.04
        final_weight_decay: float | None = None
        """Weight decay at the end of the run (cosine); None keeps it constant."""
        layer_decay: float = 1.0
        """Factor on the learning rate from one layer down to the next."""
        patch_lr: float = 1.0
        """Factor on the learning rate of the patch projection (DINOv2: 0.2)."""
        decay_tokens: bool = False
        """Apply weight decay to class, mask and register tokens and positions too, as DINOv2's code does."""

        def __post_init__(self) -> None:
            for name in ("lr", "final_lr", "weight_decay", "warmup"):
                if getattr(self, name) < 0:
                    raise ValueError(f"optim.{name}={getattr(self, name)}: want 0 or more")
            if not 0 < self.layer_decay <= 1:
                raise ValueError(f"optim.layer_decay={self.layer_decay}: want more than 0 and at most 1")

    def __init__(self, cfg: Any, learner: nn.Module, rules: Sequence[ParamRule], batch_size: int) -> None:
        self.cfg = cfg
        self.lr = scaled_lr(cfg, batch_size)
        final_decay = cfg.weight_decay if cfg.final_weight_decay is None else cfg.final_weight_decay
        self.lr_schedule = Schedule(base=self.lr, final=cfg.final_lr, warmup=cfg.warmup)
        self.decay_schedule = Schedule(base=cfg.weight_decay, final=final_decay)
        groups: dict[Treatment, list[nn.Parameter]] = {}
        kinds = kinds_of(learner)
        for name, parameter in learner.named_parameters():
            if parameter.requires_grad:
                layer, depth = layer_of(learner, name)
                groups.setdefault(treatment(name, kinds[name], layer, depth, cfg, rules), []).append(
                    parameter
                )
        if not groups:
            raise ValueError(
                "nothing to train: every parameter is frozen; unfreeze an encoder or give it an lr"
            )
        self.torch = self.make([{"params": p, "treatment": tuple(t)} for t, p in groups.items()])

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The torch optimizer for these groups."""
        raise NotImplementedError

    def step(self, progress: Progress) -> float:
        """Update the parameters with the rates of this step; the learning rate before factors."""
        lr = self.lr_schedule.at(progress.step, progress.total)
        decay = self.decay_schedule.at(progress.step, progress.total)
        for group in self.torch.param_groups:
            each = Treatment(*group["treatment"])
            rate = self.lr if each.constant else lr
            group["lr"] = rate * each.lr if progress.step >= each.frozen_steps else 0.0
            group["weight_decay"] = decay * each.decay
        self.torch.step()
        return lr

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.torch.zero_grad(set_to_none=True)


def scaled_lr(cfg: Any, batch_size: int) -> float:
    """The learning rate for a global batch size by the rule that the config names."""
    match cfg.lr_scaling:
        case "linear":
            return cfg.lr * batch_size / 256
        case "sqrt":
            return cfg.lr * math.sqrt(batch_size / 1024)
        case _:
            return cfg.lr


def layer_of(learner: nn.Module, name: str) -> tuple[int, int]:
    """Layer and depth of a parameter; what lies outside the encoders counts as their last layer."""
    part, _, rest = name.partition(".")
    if part != "encoders":
        return 1, 0
    stream, _, inside = rest.partition(".")
    encoder = cast(Any, learner).encoders[stream]
    return encoder.layer_id(inside), encoder.depth


def kinds_of(learner: nn.Module) -> dict[str, Kind]:
    """Return what every parameter is, by its name: asked of the module that owns it and of those that declare it."""
    declaring = [m for m in learner.modules() if isinstance(m, DeclaresParameters)]
    tokens = {id(p) for m in declaring for p in m.token_parameters()}
    patches = {id(p) for m in declaring for p in m.patch_parameters()}
    undecayed = {id(p) for m in declaring for p in m.undecayed_parameters()}
    kinds: dict[str, Kind] = {}
    for path, module in learner.named_modules():
        keyed = isinstance(
            module, nn.ParameterDict
        )  # its keys are data, such as streams: one may be called bias
        for attribute, parameter in module.named_parameters(recurse=False):
            vector = parameter.ndim < 2 or isinstance(module, NORMS) or (attribute == "bias" and not keyed)
            place = id(parameter)
            name = f"{path}.{attribute}" if path else attribute
            kinds[name] = Kind(vector or place in undecayed, place in tokens, place in patches)
    return kinds


def treatment(
    name: str, kind: Kind, layer: int, depth: int, cfg: Any, rules: Iterable[ParamRule]
) -> Treatment:
    """Return the factors of a parameter by its kind, its layer (0..depth+1) and the rules that match its name."""
    lr = cfg.layer_decay ** (depth + 1 - layer)
    if kind.patch:
        lr *= cfg.patch_lr
    exempt = kind.vector or (kind.token and not cfg.decay_tokens)
    decay, frozen, constant = 0.0 if exempt else 1.0, 0, False
    for rule in rules:
        if rule.match in name:
            lr, decay, frozen = lr * rule.lr, decay * rule.decay, max(frozen, rule.frozen_steps)
            constant = constant or rule.constant
    return Treatment(lr, decay, frozen, constant)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    @dataclass(kw_only=True, slots=True)
    class Config(Optimizer.Config):
        """Options of AdamW."""

        betas: tuple[float, float] = (0.9, 0.999)
        eps: float = 1e-8

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """torch's AdamW, fused."""
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.cfg.betas, eps=self.cfg.eps, fused=True)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum; weight decay is added to the gradient."""

    @dataclass(kw_only=True, slots=True)
    class Config(Optimizer.Config):
        """Options of SGD."""

        momentum: float = 0.9
        nesterov: bool = False

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """torch's SGD."""
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.cfg.momentum, nesterov=self.cfg.nesterov)


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling for large batches."""

    @dataclass(kw_only=True, slots=True)
    class Config(Optimizer.Config):
        """Options of LARS."""

        momentum: float = 0.9
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
                state["momentum"].mul_(group["momentum"]).add_(update)
                p.sub_(group["lr"] * state["momentum"])

    def _adapted(self, p: Tensor, grad: Tensor, decay: float, trust: float, lr: float) -> Tensor:
        """The decayed gradient times the trust ratio."""
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
