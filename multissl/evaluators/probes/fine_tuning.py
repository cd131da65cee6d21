"""Training a copy of a whole encoder with a head on its pooled feature: layer decay, warm-up and cosine, mixup.

The groups are those of MAE's `util/lr_decay.py` (He et al. 2022, arXiv 2111.06377): the rate falls by a factor from one
layer down to the next, biases, norms and tokens have no weight decay.
Shapes: S samples, B of a batch, D width, C classes (1 for a quantity).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.abilities import DeclaresParameters
from multissl.contract.data import Views
from multissl.contract.encoder import Encoder, Encoders
from multissl.contract.modality import Modality
from multissl.evaluators.probes.training import REFERENCE_BATCH, falling
from multissl.evaluators.several_classes import binary_loss
from multissl.inference import pooled, readable_views

LEAST_RATE = 1e-6
"""What the cosine falls to, as in MAE's code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How a whole encoder is trained."""

    lr: float
    """Of the head, for a batch of 256."""
    layer_decay: float
    """Factor on the rate from one layer down to the next."""
    weight_decay: float
    epochs: float
    warmup: float
    """Epochs in which the rate rises."""
    batch: int
    smoothing: float = 0.0
    """Share of a class's probability that is spread over all of them."""
    mixup: float = 0.0
    """Of the Beta distribution that two samples are mixed by; 0: none are."""


def groups_of(encoder: Encoder, head: nn.Module, schedule: Schedule, batch: int) -> list[dict[str, Any]]:
    """Return parameter groups with their highest rate, one for each layer and weight decay."""
    lr = schedule.lr * batch / REFERENCE_BATCH
    tokens = {
        id(p) for m in encoder.modules() if isinstance(m, DeclaresParameters) for p in m.token_parameters()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    placed = [(p, encoder.layer_id(name)) for name, p in encoder.named_parameters()]
    placed += [(p, encoder.depth + 1) for p in head.parameters()]
    for parameter, layer in placed:
        decay = 0.0 if parameter.ndim < 2 or id(parameter) in tokens else schedule.weight_decay
        scale = schedule.layer_decay ** (encoder.depth + 1 - layer)
        groups.setdefault((lr * scale, decay), []).append(parameter)
    return [{"params": p, "lr": rate, "peak": rate, "weight_decay": d} for (rate, d), p in groups.items()]


class Tuned(nn.Module):
    """An encoder with a linear head on its pooled feature."""

    def __init__(self, encoders: Encoders, stream: str, width: int, outputs: int) -> None:
        super().__init__()
        self.encoders = encoders.subset([stream])
        self.head = nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, views: Views) -> Tensor:
        """Views to scores [R, C]."""
        return self.head(pooled(self.encoders, views))


def fine_tune(
    encoders: Encoders, stream: str, width: int, modality: Modality, places: list[int], targets: Tensor, *,
    outputs: int, schedule: Schedule, seed: int, device: torch.device, after_epoch: Callable[[Tuned], None],
) -> None:  # fmt: skip
    """Train a copy of an encoder on clean views of samples of the train split, with their targets [S].

    `after_epoch` sees the model in evaluation mode at the end of each epoch, and may keep it.
    """
    batch = min(schedule.batch, len(places))
    steps = max(1, round(schedule.epochs * len(places) / batch))
    per_epoch = max(1, round(len(places) / batch))
    rising = int(schedule.warmup * len(places) / batch)
    order = batches(len(places), batch, seed)
    data = modality.dataset("train")
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Tuned(copy.deepcopy(encoders), stream, width, outputs).to(device)
        encoder = model.encoders[stream]
        encoder.locked = False
        model.requires_grad_(True)
        solver = torch.optim.AdamW(groups_of(encoder, model.head, schedule, batch), betas=(0.9, 0.999))
        for step in range(steps):
            model.train()
            rows = next(order)
            views, read = readable_views(modality, [data[places[r]] for r in rows], stream, device)
            kept = {sample.index for sample in read}
            there = [r for r in rows if data[places[r]].index in kept]
            share = (step + 1) / rising if step < rising else falling(step - rising, steps - rising)
            for group in solver.param_groups:
                group["lr"] = max(group["peak"] * share, min(LEAST_RATE, group["peak"]))
            loss = mixed_loss(model, views, targets[there].to(device), schedule)
            solver.zero_grad()
            loss.backward()
            solver.step()
            if (step + 1) % per_epoch == 0 or step + 1 == steps:
                model.eval()
                with torch.no_grad():
                    after_epoch(model)


def mixed_loss(model: nn.Module, views: Views, targets: Tensor, schedule: Schedule) -> Tensor:
    """Return the loss of a batch: cross entropy of classes, square error of quantities; of mixed samples by parts."""
    if not schedule.mixup:
        return loss_of(model(views), targets, schedule.smoothing)
    share = float(torch.distributions.Beta(schedule.mixup, schedule.mixup).sample())
    other = torch.randperm(len(views.x)).to(views.x.device)
    scores = model(replace(views, x=share * views.x + (1 - share) * views.x[other]))
    parts = (loss_of(scores, each, schedule.smoothing) for each in (targets, targets[other]))
    return share * next(parts) + (1 - share) * next(parts)


def loss_of(scores: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Return the mean cost of scores [B, C] for classes int64 [B], or of [B, 1] for standardized quantities [B].

    For several classes (bool [B, C]) the costs of having each or not are added up.
    """
    if targets.dtype == torch.bool:
        return binary_loss(scores, targets)
    if targets.is_floating_point():
        return F.mse_loss(scores[:, 0], targets)
    return F.cross_entropy(scores, targets, label_smoothing=smoothing)


def batches(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Yield rows in an order that is drawn anew for each epoch, without end."""
    draw = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while True:
        while len(order) < size:
            order += torch.randperm(count, generator=draw).tolist()
        yield order[:size]
        order = order[size:]
