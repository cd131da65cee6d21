"""The training step of a recipe on fake tensors, part by part as the trainer makes it, for `launches` to count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn

from multissl.build import Parts, build
from multissl.contract.data import Batch
from multissl.contract.learning import Progress
from multissl.engine.buffers import Buffers
from multissl.engine.trainer import Trainer
from multissl.engine.window import Window
from multissl.parallel.gradients import clip_gradients, largest_gradient
from multissl.recipe import Recipe


@dataclass
class Prepared:
    """What stands before a step begins."""

    parts: Parts
    batch: Batch
    groups: dict[str, list[nn.Parameter]]
    clip: float
    buffers: Buffers
    window: Window
    device: torch.device

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
        mock.patch.object(Tensor, "tolist", lambda tensor: [True] * len(tensor)),  # of the trainer's check
    )
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


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
    groups = learner.clip_groups(recipe.clip_per)
    return Prepared(parts, batch, groups, recipe.clip, Buffers(learner), Window(), device)


def step(it: Prepared, logged: bool) -> Iterator[str]:
    """Make a step as the trainer does, and yield the name of every part after it."""
    learner, progress = it.parts.learner, Progress(step=1000, total=10_000, described=logged)
    it.buffers.keep()
    yield "buffers"
    losses = learner(it.batch, progress)
    yield "forward"
    learner.backward(losses)
    yield "backward"
    norms = clip_gradients(it.groups, it.clip)
    yield "clipping"
    Trainer._agree(cast(Any, SimpleNamespace(stop=False, device=it.device)), losses, norms)
    yield "check"
    rate = it.parts.optimizer.step(progress)
    yield "optimizer"
    learner.objective.after_step(learner.encoders, progress)
    yield "teacher"
    it.window.add(losses, norms, lr=rate, waited=0.0, samples=len(it.batch))
    if logged:
        largest_gradient(it.trainable)
        it.window.summary()
    it.parts.optimizer.zero_grad()
    yield "sums"
