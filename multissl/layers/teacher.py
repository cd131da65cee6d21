"""Teachers: copies of the student that follow it without gradient.

The rules are those of DINO, section 5.2 (Caron et al. 2021, arXiv 2104.14294). Every move is one kernel over
this rank's shards, in fp32: near the end of a run 1 - m is too small for half precision.
State: the copies; for the rule previous_step one more copy.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from multissl.config import Component
from multissl.config import Config as BaseConfig
from multissl.contract.encoder import Encoders
from multissl.contract.learning import Progress
from multissl.contract.per_stream import PerStream
from multissl.layers.heads import RankBatchNorm
from multissl.parallel.sharding import local
from multissl.schedules import Schedule


class Teacher(Component, nn.Module):
    """Deep copies of named modules, in eval mode but for their batch norms; `update` moves them after the originals."""

    group: ClassVar[str] = "layers"

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of a teacher."""

        rule: Literal["ema", "previous_epoch", "previous_step", "copy", "frozen"] = "ema"
        """ema: a moving average; previous_epoch: the student as it ended the last epoch; previous_step: as it was one
        step ago; copy: the student's present weights; frozen: the weights it began with."""
        ema: float = 0.992
        """Momentum m of the first step: teacher = m * teacher + (1 - m) * student."""
        final_ema: float = 1.0
        """Momentum at the end of the run."""
        ema_shape: Literal["cosine", "linear"] = "cosine"
        """How the momentum gets there: cosine (DINO, BYOL) or linear (I-JEPA, data2vec)."""
        stretch: float = 1.0
        """Lay the momentum out for so many times the steps of the run, which ends before it does (V-JEPA: 1.25)."""
        buffers: Literal["copy", "keep", "ema"] = "copy"
        """Batch norm statistics and the like: taken from the student, left alone, or averaged too."""
        batch_norm: Literal["running", "batch"] = "running"
        """Statistics by which the teacher's batch norms normalize while training: their running ones, or each batch's
        own (BYOL, MoCo), which go into their running ones; use that with buffers=keep."""

        def __post_init__(self) -> None:
            for name in ("ema", "final_ema"):
                if not 0 <= getattr(self, name) <= 1:
                    raise ValueError(f"objective.teacher.{name}={getattr(self, name)}: want 0 to 1")
            if self.stretch < 1:
                raise ValueError(f"objective.teacher.stretch={self.stretch}: want 1 or more, such as 1.25")

    def __init__(self, cfg: Config, students: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.cfg = cfg
        self.momentum = Schedule(base=cfg.ema, final=cfg.final_ema, shape=cfg.ema_shape)
        self.now: PerStream[nn.Module] = PerStream(copy.deepcopy(dict(students)))
        self.next: PerStream[nn.Module] = PerStream(
            copy.deepcopy(dict(students)) if cfg.rule == "previous_step" else {}
        )
        for name, parameter in self.now.named_parameters():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                raise ValueError(
                    f"{name} is {parameter.dtype}: a teacher follows fp32 weights, use parallel.precision=bf16"
                )
        self.requires_grad_(False).eval()

    def __getitem__(self, name: str) -> Any:
        return self.now[name]

    @property
    def encoders(self) -> Encoders:
        """The copies of the encoders, where they are among what it follows."""
        encoders = self.now["encoders"]
        assert isinstance(encoders, Encoders)
        return encoders

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode whatever is asked; only batch norms may train, to take each batch's statistics."""
        super().train(False)
        for module in self.now.modules():
            if isinstance(module, (nn.modules.batchnorm._BatchNorm, RankBatchNorm)):
                module.train(mode and self.cfg.batch_norm == "batch")
        return self

    def shard_units(self) -> list[nn.Module]:
        """The blocks of the encoders among the copies, and every other copy as a whole."""
        copies = [m for d in (self.now, self.next) for m in d.values()]
        return [unit for m in copies for unit in (m.shard_units() if isinstance(m, Encoders) else [m])]

    @torch.no_grad()
    def update(self, students: Mapping[str, nn.Module], progress: Progress) -> None:
        """Follow the students, once after every optimizer step; `progress` is that of the step just made."""
        match self.cfg.rule:
            case "ema":
                total = round(progress.total * self.cfg.stretch)
                self._follow(self.now, students, 1 - self.momentum.at(progress.step, total), progress)
            case "copy":
                self._follow(self.now, students, 1.0, progress)
            case "previous_step":
                self._follow(self.now, self.next, 1.0, progress)
                self._follow(self.next, students, 1.0, progress)
            case "previous_epoch":
                if replace(progress, step=progress.step + 1).epoch > progress.epoch:
                    self._follow(self.now, students, 1.0, progress)
            case "frozen":
                pass

    @torch.no_grad()
    def become(self, students: Mapping[str, nn.Module], progress: Progress) -> None:
        """Become what the students are, if the step just made counts."""
        self._follow(self.now, students, 1.0, progress)

    def _follow(
        self,
        copies: PerStream[nn.Module],
        students: Mapping[str, nn.Module] | PerStream[nn.Module],
        share: float,
        progress: Progress,
    ) -> None:
        """Move `share` of the way from the copies to the students, if the step counts.

        The trainer puts back buffers that moved in a step that does not.
        """
        pairs = [(copy_, students[name]) for name, copy_ in copies.items()]
        ours, theirs = (
            [local(p.detach()) for m in side for p in m.parameters()] for side in zip(*pairs, strict=True)
        )
        move(ours, theirs, share, progress.counted)
        for buffer, other in [b for c, s in pairs for b in zip(c.buffers(), s.buffers(), strict=True)]:
            if self.cfg.buffers == "ema" and buffer.is_floating_point():
                buffer.lerp_(other, share)
            elif self.cfg.buffers != "keep":
                buffer.copy_(other)


def move(tensors: list[Tensor], targets: list[Tensor], share: float, counted: Tensor | None = None) -> None:
    """Move tensors `share` of the way to their targets, in place, if a step counts: bool [], None: it does.

    Half the way and more is a plain interpolation that ends at its targets exactly.
    """
    if share < 0.5 and all(t.is_floating_point() for t in tensors):
        _average(tensors, targets, share, counted)
    elif counted is None:
        torch._foreach_lerp_(tensors, targets, share)  # pyright: ignore[reportPrivateImportUsage]
    else:
        for tensor, target in zip(tensors, targets, strict=True):
            tensor.copy_(torch.where(counted, tensor.lerp(target, share), tensor))


def _average(tensors: list[Tensor], targets: list[Tensor], share: float, counted: Tensor | None) -> None:
    """Move by torch's fused SGD, the one kernel over lists that reads on the device whether a step counts.

    With a weight decay of -1 it descends along target - tensor, at a rate of -share.
    """
    kinds: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for tensor, target in zip(tensors, targets, strict=True):
        ours, theirs = kinds.setdefault((tensor.device, tensor.dtype), ([], []))
        ours.append(tensor)
        theirs.append(target)
    for ours, theirs in kinds.values():
        torch._fused_sgd_(  # pyright: ignore[reportPrivateImportUsage]
            ours, theirs, [], weight_decay=-1.0, momentum=0.0, lr=-share, dampening=0.0, nesterov=False,
            maximize=False, is_first_step=False, found_inf=None if counted is None else (~counted).float(),
        )  # fmt: skip
