"""A small encoder and batches for the tests of contrastive objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoder, Encoders
from multissl.contract.learning import Features, Progress
from multissl.contract.objective import Objective
from multissl.contract.plans import Masking, StreamSpec
from multissl.engine.learner import Learner
from multissl.engine.optim.adamw import AdamW
from multissl.engine.optim.treatment import groups_of
from multissl.parallel.ranks import world

ROWS = StreamSpec(kind="columns", shape=(6,), num_tokens=6)
START = Progress(step=0, total=10)


class Stub(Encoder):
    dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        return [Features(pooled=self.linear(v.x), tokens=v.x[:, :, None]) for v in views]


def build(cfg: Any, streams: str = "a") -> tuple[Encoders, Any]:
    """Encoders and the objective of a config, the same every time."""
    torch.manual_seed(0)
    encoders = Encoders({s: Stub() for s in streams})
    return encoders, cfg.build(encoders, dict.fromkeys(streams, ROWS))


def batch_of(rows: int, streams: str = "a", views: int = 2, seed: int = 1, **more: Any) -> Batch:
    """Global views of a lone stream, one clean view of each of several."""
    torch.manual_seed(seed)
    if len(streams) == 1:
        x = torch.randn(views * rows, 6)
        return Batch([Views(x=x, stream=streams, role="global", num_views=views, **more)])
    return Batch(Views(x=torch.randn(rows, 6), stream=s, role="clean", **more) for s in streams)


def part_of(batch: Batch, rank: int) -> Batch:
    """This rank's samples of a global batch."""
    rows = batch[0].batch // world()
    return Batch(v.samples(torch.arange(rank * rows, (rank + 1) * rows)) for v in batch)


def gradients(rank: int, cfg: Any, streams: str = "a", steps: int = 2, **more: Any) -> list[Tensor]:
    """This rank's part of the gradients of some steps, then the slow state."""
    encoders, objective = build(cfg, streams)
    trained = [p for m in (encoders, objective) for p in m.parameters() if p.requires_grad]
    found = []
    for step in range(steps):
        losses = objective(encoders, part_of(batch_of(8, streams, seed=step, **more), rank), START)
        found += [g / world() for g in torch.autograd.grad(losses.total, trained)]
        objective.after_step(encoders, START)
    return found


def decay_of(parameter: nn.Parameter, encoders: Encoders, objective: Objective) -> float:
    """The factor on the weight decay of a parameter, as the optimizer treats it."""
    groups = groups_of(Learner(encoders, objective), AdamW.Config(), objective.param_rules())
    (decay,) = [t.decay for t, members in groups.items() if any(p is parameter for p in members)]
    return decay


def moved(cfg: Any, streams: str = "a") -> None:
    """A step trains every parameter and leaves teachers and buffers without gradient."""
    encoders, objective = build(cfg, streams)
    losses = objective(encoders, batch_of(8, streams), START)
    losses.total.backward()
    for name, p in [*encoders.named_parameters(), *objective.named_parameters()]:
        assert (p.grad is not None and bool(p.grad.isfinite().all())) != name.startswith("teacher."), name
    assert not any(b.requires_grad for b in objective.buffers())
    assert all(v.isfinite() and not v.requires_grad for v in losses.stats.values())
    assert "std" in losses.stats
