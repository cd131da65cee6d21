"""The training step of a recipe on fake tensors, part by part as the trainer makes it, for `launches` to count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from multissl.build import Parts, build
from multissl.contract.data import Batch
from multissl.contract.learning import Progress
from multissl.engine.step import Step
from multissl.engine.window import Window
from multissl.parallel.gradients import clip_gradients, largest_gradient
from multissl.recipe import Recipe


@dataclass
class Prepared:
    """What stands before a step begins."""

    parts: Parts
    batch: Batch
    step: Step
    window: Window

    @property
    def trainable(self) -> list[nn.Parameter]:
        """What the optimizer moves."""
        return [p for p in self.parts.learner.parameters() if p.requires_grad]


@contextmanager
def without_content() -> Iterator[None]:
    """Let modules be trained on tensors without content as on a GPU: fused, in lists, with flash attention."""
    kinds, tensor = ["cuda", "meta"], torch.tensor

    def copied(data: Any, device: Any = None, **options: Any) -> Tensor:
        return tensor(data, **options).to(device or "cpu")  # torch makes one on meta without a copy

    patches = (
        mock.patch("torch.nn.functional.scaled_dot_product_attention", flash),
        mock.patch("torch.utils._foreach_utils._get_foreach_kernels_supported_devices", return_value=kinds),
        mock.patch("torch.optim.optimizer._get_fused_kernels_supported_devices", return_value=kinds),
        mock.patch.object(torch, "autocast", return_value=nullcontext()),
        mock.patch.object(torch, "tensor", copied),
        mock.patch.object(torch, "_fused_sgd_", averaged),
    )
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def averaged(tensors: list[Tensor], targets: list[Tensor], *_: Any, lr: float, **__: Any) -> None:
    """Move the teacher in one kernel over lists, as torch's fused SGD does, which knows no tensors without content."""
    torch._foreach_lerp_(tensors, targets, -lr)  # pyright: ignore[reportPrivateImportUsage]


def flash(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0, is_causal: bool = False
) -> Tensor:
    """Attend as an H100 does in half precision; torch asks a GPU which kernel it has."""
    assert mask is None
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout, is_causal)[0]


def prepared(recipe: Recipe, raw: Any, rng: Any, device: torch.device) -> Prepared:
    """Return a recipe's parts on a device, and a batch with its views made."""
    parts = build(recipe, device)
    learner = parts.learner.train()
    batch = parts.modality.views(raw, learner.objective.plans(), rng)
    step = Step(learner, parts.optimizer, recipe.clip, recipe.clip_per)
    return Prepared(parts, batch, step, Window())


def step(it: Prepared, logged: bool) -> Iterator[str]:
    """Make a step as the trainer does, and yield the name of every part after it."""
    learner, progress = it.parts.learner, Progress(step=1000, total=10_000, described=logged)
    it.step.buffers.keep()
    yield "buffers"
    losses = learner(it.batch, progress)
    yield "forward"
    learner.backward(losses)
    yield "backward"
    norms = clip_gradients(it.step.groups, it.step.clip)
    yield "clipping"
    checks = it.step.check(losses, norms, stop=False)
    progress = replace(progress, counted=checks[0])
    yield "check"
    rate = it.parts.optimizer.step(progress)
    yield "optimizer"
    learner.objective.after_step(learner.encoders, progress)
    yield "teacher"
    it.step.buffers.settle(checks[0])
    checks.clone()  # stands for its copy to the host, which tensors without content cannot make
    yield "settling"
    it.window.add(losses, norms, lr=rate, waited=0.0, samples=len(it.batch), counted=checks[0])
    if logged:
        largest_gradient(it.trainable)
        torch.cat(
            [*it.window.sums.values()]
        )  # is then read: numbers that tensors without content do not have
    it.parts.optimizer.zero_grad()
    yield "sums"
