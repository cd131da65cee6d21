"""Short runs as they are compared: losses, gradients and state by name, and what counts as equal."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from multissl.contract.data import Batch
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.devices import copied
from multissl.engine import checkpoint
from multissl.engine.batches import StepBatches
from multissl.engine.checkpoint import Save
from multissl.engine.learner import Learner
from multissl.engine.optim.adamw import AdamW
from multissl.engine.step import Step
from multissl.parallel.collectives import sum_ranks
from multissl.parallel.ranks import rank, world
from multissl.parallel.sharding import Parallel, full, local, parallelize
from multissl.verify.cases import BATCH, Case, doubled, make

STEPS = 2
LIMIT = 1e-5
"""Largest difference, as a share of the largest entry of a tensor; runs are in double precision."""
Trace = dict[str, Tensor]


def trace(
    learner: Learner, modality: Modality, device: torch.device, batch_size: int = BATCH, steps: int = STEPS,
    sharded: bool = False,
) -> Trace:  # fmt: skip
    """Return losses, gradients and state of a run of gradient descent; losses and gradients averaged over ranks."""
    if sharded:  # FSDP2, as in a run; it averages gradients itself
        parallelize(learner, Parallel(shard=world(), precision="fp32", compile=False), device)
    objective = learner.objective
    data = StepBatches(modality, objective.plans(), batch_size, 0, rank(), world(), final=False)
    values: Trace = {}
    for step in range(steps):
        torch.manual_seed(1000 * step)  # as the trainer does: ranks draw the same and take their rows' part
        learner.train()
        progress = Progress(step=step, total=10, epoch_steps=1)
        losses = learner(batch_of(data, step, device), progress)
        learner.backward(losses)
        values[f"{step} loss"] = sum_ranks(losses.total.detach()) / world()
        for name, parameter in learner.named_parameters():
            if parameter.grad is not None:
                if not sharded:
                    parameter.grad = sum_ranks(parameter.grad) / world()
                values[f"{step} gradient of {name}"] = full(parameter.grad).clone()
                local(parameter.detach()).sub_(local(parameter.grad), alpha=0.1)
                parameter.grad = None
        objective.after_step(learner.encoders, progress)
        values |= {f"{step} state {n}": full(t.detach()).clone() for n, t in learner.state_dict().items()}
    return {name: value.cpu() for name, value in values.items()}


def batch_of(data: StepBatches, step: int, device: torch.device) -> Batch:
    """Return this rank's views of a step, in double precision."""
    return doubled(data.views(copied(data[step][0], device), step, device))


class Run:
    """A case trained by AdamW, step by step, as the trainer does it; its checkpoints lie in a folder."""

    def __init__(self, case: Case, device: torch.device) -> None:
        learner, modality = make(case, device=device)
        if world() > 1:
            parallelize(learner, Parallel(precision="fp32", compile=False), device)
        objective = learner.objective
        optimizer = AdamW.Config(lr=1e-3).build(learner, objective.param_rules(), BATCH)
        self.step, self.device = Step(learner, optimizer), device
        self.data = StepBatches(modality, objective.plans(), BATCH, 0, rank(), world(), final=False)

    def make_step(self, number: int) -> None:
        """Make the step of a number, from 0."""
        torch.manual_seed(1000 * number)
        self.step(batch_of(self.data, number, self.device), Progress(step=number, total=10, epoch_steps=1))
        self.step.optimizer.zero_grad()

    def save(self, folder: Path, steps: int) -> None:
        """Write a checkpoint after so many steps; called on every rank."""
        checkpoint.save(folder, steps, self.step.learner, self.step.optimizer.torch, Save())

    def load(self, folder: Path) -> int:
        """Go on from the newest checkpoint in a folder; return its step."""
        return checkpoint.load(checkpoint.find(folder)[-1], self.step.learner, self.step.optimizer.torch)

    def state(self) -> Trace:
        """Return everything the learner holds, whole, on the host."""
        state = self.step.learner.state_dict()
        return {n: full(t.detach()).clone().cpu() for n, t in state.items()}


def differences(actual: Trace, expected: Trace, limit: float = LIMIT, smallest: float = 0.0) -> list[str]:
    """Return a line for each tensor that differs by more than `limit` of its largest entry, and than `smallest`."""
    if actual.keys() != expected.keys():
        return [f"not on both sides: {sorted(actual.keys() ^ expected.keys())}"]
    # An exact zero on one side is rounding on the other: measured by the largest gradient.
    gradients = [t.abs().max().item() for n, t in expected.items() if "gradient" in n]
    smallest = max(smallest, 1e-10 * max(gradients, default=0.0)) if limit else 0.0
    lines = []
    for name, value in expected.items():
        if not value.numel():  # a queue that is switched off
            continue
        # NaN marks an empty slot of some state: it must stand in the same places.
        worst = (actual[name].double().nan_to_num(1e9) - value.double().nan_to_num(1e9)).abs().max().item()
        scale = value.double().nan_to_num(0).abs().max().item()
        if not worst <= max(limit * scale, smallest):
            lines.append(f"{name}: {worst:.3g} beside {scale:.3g}")
    return lines
