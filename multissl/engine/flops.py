"""Floating-point operations of a step, counted once, and what they come to a second beside the device's peak.

A copy of the learner, of tensors that have shapes and no numbers, takes a step of a batch without numbers under torch's
own counter of matrix products, convolutions and attention. `executed` is what the step computes; `nominal` is
what the architecture has, without rows that drop path leaves out and without encoding chunks twice, so that skipped
work cannot pass for speed. What activation checkpoints compute again is in neither, nor are element-wise operations.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from multissl.contract.abilities import DropsRows
from multissl.contract.data import Batch
from multissl.contract.learning import Progress
from multissl.engine.learner import Learner

PEAKS = {
    "B200": 2250.0, "H200": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0,
    "L40": 181.0, "L4": 121.0, "A10G": 70.0, "A10": 125.0, "A30": 165.0, "A40": 150.0, "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}  # fmt: skip
"""Dense bf16 tensor-core peaks by a part of the device's name, TFLOP/s, from the makers' data sheets; the first that
fits counts."""


Shape = Sequence[int]


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Attention of tensors without numbers is that of a CPU, which torch's counter leaves out."""


@dataclass(frozen=True, slots=True)
class StepFlops:
    """Operations of a step on one rank."""

    executed: float
    nominal: float


class Blueprint:
    """A learner without numbers, from which its step is counted; made before its parameters are spread or compiled."""

    def __init__(self, learner: Learner) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        memo: dict[int, object] = {}
        for p in learner.parameters():
            memo[id(p)] = nn.Parameter(self.mode.from_tensor(p.detach()), requires_grad=p.requires_grad)
        for b in learner.buffers():
            memo[id(b)] = self.mode.from_tensor(b)
        self.learner: Learner | None = None
        self.problem: Exception | None = None
        try:
            self.learner = copy.deepcopy(learner, memo)
        except Exception as error:
            self.problem = (
                error  # a model may hold what cannot be copied; its training is not the worse for it
            )

    def count(self, batch: Batch, progress: Progress) -> StepFlops:
        """Return the operations of the step that a batch of this rank takes.

        Raises what kept the learner from being copied, and whatever an objective raises that asks for numbers of a
        tensor in the middle of its step.
        """
        if self.learner is None:
            assert self.problem
            raise self.problem
        executed = self._step(self.learner, batch, progress)
        dropping = [m for m in self.learner.modules() if isinstance(m, DropsRows) and m.drop_path]
        if not dropping and not self.learner.chunk:
            return StepFlops(executed, executed)
        for module in dropping:
            module.drop_path = 0.0
        self.learner.chunk = 0
        return StepFlops(executed, self._step(self.learner, batch, progress))

    def _step(self, learner: Learner, batch: Batch, progress: Progress) -> float:
        learner.train()
        progress = replace(progress, described=False)
        fake = Batch(v.to(torch.device("cpu")).map(self.mode.from_tensor) for v in batch)
        with self.mode, FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
            losses = learner(fake, progress)
            learner.backward(losses)
        learner.zero_grad()
        return float(counter.get_total_flops())


def peak(device: torch.device) -> float | None:
    """Return a device's peak in operations a second, half precision; None of a device that the table does not know."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * value for part, value in PEAKS.items() if part in name), None)


def power(device: torch.device) -> float | None:
    """Return the watts that a device draws now; None where it does not tell."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.power_draw(device) / 1000
    except (ModuleNotFoundError, RuntimeError):  # torch asks NVML through a package that may not be there
        return None
