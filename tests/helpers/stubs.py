"""A small encoder, an objective and a recipe for tests of the engine: fast, with dropout and a center as slow state.

`tests/helpers/stubs.py:recipe` also serves the command line.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from multissl.contract.data import Batch, Raw, Sample, Samples, Unreadable, Views
from multissl.contract.encoder import EncodeFunction, Encoder, Encoders
from multissl.contract.learning import Features, Losses, Progress
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Masking, Plans, StreamSpec, ViewPlan
from multissl.engine.batches import Data
from multissl.engine.checkpoint import Save
from multissl.engine.optim.adamw import AdamW
from multissl.objectives.common import project, same_plan
from multissl.parallel.collectives import gather, sum_ranks
from multissl.parallel.ranks import rank, world
from multissl.random import RowRandom
from multissl.recipe import Recipe


class Listed(Samples):
    """Samples in a list."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


class Points(Modality):
    """Points in 6 dimensions around 4 centers; a view adds noise. Some may be unreadable."""

    @dataclass(kw_only=True, slots=True)
    class Config(Modality.Config):
        count: int = 96
        broken: tuple[int, ...] = ()
        """Samples that cannot be read."""

    def streams(self) -> dict[str, StreamSpec]:
        return {"points": StreamSpec(kind="columns", shape=(6,), num_tokens=6)}

    def dataset(self, split: str) -> Samples:
        centers = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) * 3
        return Listed([Sample(centers[i % 4] + i / 1000, i, i % 4) for i in range(self.cfg.count)])

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        for sample in samples:
            if sample.index in self.cfg.broken:
                raise Unreadable(sample.index, "broken on purpose")
        return {"x": torch.stack([s.data for s in samples]), "id": torch.tensor([s.index for s in samples])}

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        plan, x = plans["points"], raw["x"]
        views = []
        if plan.num_clean:
            views.append(Views(x=x, stream="points", role="clean", sample_id=raw["id"]))
        if plan.num_global:
            noisy = torch.cat([x + rng.randn(6) for _ in range(plan.num_global)])
            views.append(
                Views(x=noisy, stream="points", role="global", num_views=plan.num_global, sample_id=raw["id"])
            )
        return Batch(views)


class Net(Encoder):
    """Two layers with dropout; its hidden layer is the one block."""

    @dataclass(kw_only=True, slots=True)
    class Config(Encoder.Config):
        dim: int = 8
        dropout: float = 0.1

    depth = 1

    def __init__(self, cfg: Config, spec: StreamSpec) -> None:
        super().__init__()
        self.dim = cfg.dim
        self.inner = nn.Sequential(nn.Linear(spec.shape[0], 16), nn.GELU(), nn.Dropout(cfg.dropout))
        self.out = nn.Linear(16, cfg.dim)

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        outputs = [self.out(self.inner(v.x.to(self.out.weight.dtype))) for v in views]
        return [Features(pooled=y, tokens=y[:, None]) for y in outputs]

    def shard_units(self) -> list[nn.Module]:
        return [self.inner]


class Spread(Objective):
    """Pull views together, keep the batch spread out around a moving center."""

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        pull: float = 1.0
        spoil: tuple[int, ...] = ()
        """Steps at which the loss is not a number."""

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg = cfg
        self.heads = PerStream({s: nn.Linear(encoders.widths()[s], 4) for s in streams})
        self.center: Tensor
        self.register_buffer("center", torch.zeros(4))

    def plans(self) -> Plans:
        return same_plan(self.heads, ViewPlan(num_global=2))

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        pause(progress.step)
        z = project(encoders, self.heads, batch)  # [V, B, 4]
        everyone = torch.stack([gather(v) for v in z])
        variance = (everyone - self.center).var(1)
        self.seen = sum_ranks(z.detach().mean((0, 1))) / world()
        terms = {"pull": (z[0] - z[1]).pow(2).mean(), "spread": torch.relu(1 - variance).mean()}
        if progress.step in self.cfg.spoil:
            terms["pull"] = terms["pull"] * float("nan")
        return Losses.weigh(terms, {"pull": self.cfg.pull, "spread": 1.0}, {"center": self.center.norm()})

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        self.center.lerp_(self.seen, 0.1)


def pause(step: int) -> None:
    """Wait where PAUSE_AT=step:file says so, on the first rank, until the file that is left as a sign is removed."""
    stop, _, marker = os.environ.get("PAUSE_AT", "").partition(":")
    if stop and int(stop) == step and rank() == 0:
        Path(marker).touch()
        deadline = time.monotonic() + 60
        while Path(marker).exists() and time.monotonic() < deadline:
            time.sleep(0.01)


def recipe() -> Recipe:
    """A run of a second."""
    return Recipe(
        modality=Points.Config(),
        encoders={"points": Net.Config()},
        objective=Spread.Config(),
        optim=AdamW.Config(lr=1e-2, warmup=5),
        batch_size=16,
        steps=40,
        save=Save(every=10),
        data=Data(workers=0),
        log_every=5,
        loggers={},
        clip=1.0,
    )
