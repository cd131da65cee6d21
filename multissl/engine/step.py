"""One training step: from a batch of views to weights that have moved, without a wait for the device.

Whether loss and gradient are finite on every rank is known on the device alone. A step that does not count changes
nothing there: the fused kernels of optimizer and teacher leave weights and moments as they are, buffers are put back.
The host reads the answer when it has arrived, in training one step later, so it never waits while the device is idle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from multissl.contract.data import Batch
from multissl.contract.learning import Losses, Progress
from multissl.devices import ToHost
from multissl.engine.buffers import Buffers
from multissl.engine.learner import Learner
from multissl.engine.optim.base import Optimizer
from multissl.parallel.collectives import all_true
from multissl.parallel.gradients import clip_gradients


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step as the host knows it while the device may still be at work on it."""

    step: int
    losses: Losses
    norms: Mapping[str, Tensor]
    """Of the gradient before it was clipped, by clip group."""
    lr: float
    counted: Tensor
    """bool []"""
    answer: ToHost
    """Whether it counted and whether all ranks go on, bool [2]."""
    loss: ToHost
    """Of this rank's rows, []."""


class Step:
    """What one step needs of a learner and its optimizer; the gradients stay until the optimizer forgets them."""

    def __init__(
        self,
        learner: Learner,
        optimizer: Optimizer,
        clip: float = 0.0,
        clip_per: Literal["all", "module", "parameter"] = "all",
    ) -> None:
        self.learner, self.optimizer, self.clip = learner, optimizer, clip
        self.groups: dict[str, list[nn.Parameter]] = learner.clip_groups(clip_per)
        self.buffers = Buffers(learner)

    def __call__(self, batch: Batch, progress: Progress, stops: Callable[[], bool] = bool) -> StepResult:
        """Make a step; `stops` tells whether this rank has been asked to end the run."""
        self.learner.train()
        self.buffers.keep()
        losses = self.learner(batch, progress)
        self.learner.backward(losses)
        norms = clip_gradients(self.groups, self.clip)
        checks = self.check(losses, norms, stops())
        counted = checks[0]
        progress = replace(progress, counted=counted)
        lr = self.optimizer.step(progress)
        self.learner.objective.after_step(self.learner.encoders, progress)
        self.buffers.settle(counted)
        loss = ToHost(losses.total.detach())
        return StepResult(progress.step, losses, norms, lr, counted, ToHost(checks), loss)

    @staticmethod
    def check(losses: Losses, norms: Mapping[str, Tensor], stop: bool) -> Tensor:
        """Return whether every rank's loss and gradient are finite, and that no rank was asked to stop. bool [2]"""
        total = losses.total.detach().float()
        finite = torch.isfinite(torch.stack([total, *(n.float() for n in norms.values())])).all()
        going = torch.full((), not stop, device=total.device)  # without a copy, which would wait
        return all_true(torch.stack([finite, going]))
