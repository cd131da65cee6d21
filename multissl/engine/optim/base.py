"""The base of optimizers: parameter groups with schedules around a torch optimizer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from multissl.config import Component
from multissl.config import Config as BaseConfig
from multissl.contract.learning import ParamRule, Progress
from multissl.engine.learner import Learner
from multissl.engine.optim.treatment import Treatment, groups_of
from multissl.schedules import Schedule


class Optimizer(Component, ABC):
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
        """Steps of linear warm-up from `warmup_lr`."""
        warmup_lr: float = 0.0
        """Learning rate of the first step of the warm-up; never scaled (I-JEPA: 2e-4)."""
        final_lr: float = 1e-6
        """Learning rate at the end of the run; never scaled."""
        lr_shape: Literal["cosine", "steps", "constant"] = "cosine"
        """After the warm-up: cosine down to final_lr, a tenth from each step of `lr_drops` on (SimMIM), or constant up
        to the last `cooldown` steps, which more --steps extend exactly."""
        cooldown: int = 0
        """Steps at the end of the run in which a constant learning rate falls to final_lr, on a line."""
        lr_drops: tuple[int, ...] = ()
        """Steps from which on the learning rate is a tenth of what it was; only with lr_shape=steps."""
        stretch: float = 1.0
        """Lay learning rate and weight decay out for so many times the steps of the run, which ends before they do
        (V-JEPA, MSN: 1.25)."""
        weight_decay: float = 0.04
        """Weight decay, 0 or more; biases, norms and other vectors have none."""
        final_weight_decay: float | None = None
        """Weight decay at the end of the run (cosine); None keeps it constant."""
        layer_decay: float = 1.0
        """Factor on the learning rate from one layer down to the next."""
        patch_lr: float = 1.0
        """Factor on the learning rate of the patch projection (DINOv2: 0.2)."""
        decay_tokens: bool = False
        """Apply weight decay to class, mask and register tokens and positions too, as DINOv2's code does."""
        decay_vectors: bool = False
        """Apply weight decay to biases, norms and whatever else has none by its kind, as MoCo's and SwAV's code
        does."""
        vector_lr: float = 1.0
        """Factor on the learning rate of biases, norms and other vectors (Barlow Twins: 0.024)."""

        def __post_init__(self) -> None:
            for name in ("lr", "final_lr", "weight_decay", "warmup", "warmup_lr", "vector_lr", "cooldown"):
                if getattr(self, name) < 0:
                    raise ValueError(f"optim.{name}={getattr(self, name)}: want 0 or more")
            if self.stretch < 1:
                raise ValueError(f"optim.stretch={self.stretch}: want 1 or more, such as 1.25")
            if bool(self.lr_drops) != (self.lr_shape == "steps"):
                raise ValueError(
                    f"optim.lr_drops={self.lr_drops} with optim.lr_shape={self.lr_shape}: want steps of the run and "
                    "lr_shape=steps, or neither"
                )
            if self.lr_shape != "constant" and self.cooldown:
                raise ValueError(
                    f"optim.cooldown={self.cooldown} with optim.lr_shape={self.lr_shape}: want lr_shape=constant, or 0"
                )
            if self.lr_shape == "constant" and self.stretch != 1:
                raise ValueError(
                    f"optim.stretch={self.stretch} with optim.lr_shape=constant: the run would end before its "
                    "cool-down; want 1"
                )
            if not 0 < self.layer_decay <= 1:
                raise ValueError(f"optim.layer_decay={self.layer_decay}: want more than 0 and at most 1")

        def build(self, learner: Learner, rules: Sequence[ParamRule], batch_size: int) -> Optimizer:
            """Return the optimizer of a learner's parameters, for a global batch size."""
            return super(Optimizer.Config, self).build(learner, rules, batch_size)

    def __init__(self, cfg: Config, learner: Learner, rules: Sequence[ParamRule], batch_size: int) -> None:
        self.cfg = cfg
        self.factor = 1.0
        """On the learning rate: what the figures of the run ask for."""
        self.lr = scaled_lr(cfg, batch_size)
        final_decay = cfg.weight_decay if cfg.final_weight_decay is None else cfg.final_weight_decay
        self.lr_schedule = Schedule(
            base=self.lr,
            final=cfg.final_lr,
            warmup=cfg.warmup,
            start=cfg.warmup_lr,
            shape=cfg.lr_shape,
            drops=cfg.lr_drops,
            cooldown=cfg.cooldown,
        )
        self.decay_schedule = Schedule(base=cfg.weight_decay, final=final_decay)
        groups = groups_of(learner, cfg, rules)
        if not groups:
            raise ValueError(
                "nothing to train: every parameter is frozen; unfreeze an encoder or give it an lr"
            )
        self.torch = self.make([{"params": p, "treatment": tuple(t)} for t, p in groups.items()])

    @abstractmethod
    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the torch optimizer for these groups."""

    def step(self, progress: Progress) -> float:
        """Update the parameters with the rates of this step, if it counts; return the learning rate before factors."""
        total = round(progress.total * self.cfg.stretch)
        lr = self.factor * self.lr_schedule.at(progress.step, total)
        decay = self.decay_schedule.at(progress.step, total)
        for group in self.torch.param_groups:
            each = Treatment(*group["treatment"])
            rate = self.factor * self.lr if each.constant else lr
            group["lr"] = rate * each.lr if progress.step >= each.frozen_steps else 0.0
            group["weight_decay"] = decay * each.decay
        self._move(progress.counted)
        return lr

    def _move(self, counted: Tensor | None) -> None:
        """Let torch's optimizer make its step where it counts, by the protocol of torch.amp.GradScaler.

        One that can reads on the device whether the gradient is infinite; for any other the host waits.
        """
        if counted is None:
            self.torch.step()
        elif vars(self.torch).get("_step_supports_amp_scaling", False):
            self.torch.found_inf = (~counted).float()  # type: ignore[attr-defined]
            self.torch.step()
            self.torch.found_inf = None  # type: ignore[attr-defined]
        elif counted.item():
            self.torch.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.torch.zero_grad(set_to_none=True)


def scaled_lr(cfg: Optimizer.Config, batch_size: int) -> float:
    """Return the learning rate for a global batch size by the rule that the config names."""
    match cfg.lr_scaling:
        case "linear":
            return cfg.lr * batch_size / 256
        case "sqrt":
            return cfg.lr * math.sqrt(batch_size / 1024)
        case _:
            return cfg.lr
