"""TiCo: a view agrees with the teacher's view of its sample and avoids the directions that all samples share.

Zhu et al. 2022, arXiv 2206.10698, algorithm 1: invariance + rho * z'Cz. C, a moving covariance of the student's unit
vectors, stands in for the negatives of earlier batches; it is summed over ranks and read with the step's own vectors in
it, without gradient, as in lightly. In the paper the first view asks for the second; `symmetric` lets each ask for
each, a mean over them, with one covariance per stream that all its views move together. There is no predictor.
Shapes: V views, B samples on this rank, P projector width.
State: projectors, the teacher, a covariance per stream.  Collectives: sums of products and counts, without gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from multissl.contract.alarms import History, point_alarm
from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders, SharedSpace
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Plans, StreamSpec
from multissl.layers.covariance import MovingCovariance
from multissl.layers.heads import MLPHead
from multissl.layers.teacher import Teacher
from multissl.losses.common import embedding_std
from multissl.losses.tico import tico_terms
from multissl.objectives.common import (
    one_by_one,
    presence,
    project,
    same_plan,
    shared_space,
    views_per_stream,
)


class TiCo(Objective):
    """Views agree with a slow teacher's, and a moving covariance keeps samples apart."""

    reads_present = True
    reads_tokens = False

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of TiCo."""

        rho: float = 8.0
        """Weight of the covariance term, 0 or more; lightly's default is 20."""
        beta: float = 0.9
        """Momentum of the covariance: 0 or more, below 1."""
        symmetric: bool = False
        """Let every view ask for every other; otherwise only the first for the second."""
        projector: MLPHead.Config = field(default_factory=lambda: MLPHead.Config(hidden=4096, layers=2))
        """Head between the features and the loss."""
        teacher: Teacher.Config = field(
            default_factory=lambda: Teacher.Config(ema=0.99, buffers="keep", batch_norm="batch")
        )
        """The slow copy of the student that makes the targets."""

        def __post_init__(self) -> None:
            if self.rho < 0:
                raise ValueError(f"objective.rho={self.rho}: want 0 or more, such as 8")
            if not 0 <= self.beta < 1:
                raise ValueError(f"objective.beta={self.beta}: want 0 or more and below 1, such as 0.9")

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.plan = cfg, views_per_stream(streams, 2)
        if len(streams) > 1 and not cfg.symmetric:
            raise ValueError(
                f"tico with one direction would train only the encoder of {next(iter(streams))}: "
                "set objective.symmetric=True for several streams"
            )
        self.projectors = PerStream({s: cfg.projector.build(encoders.widths()[s]) for s in streams})
        self.covariances = PerStream({s: MovingCovariance(cfg.projector.out, cfg.beta) for s in streams})
        self.teacher: Teacher = cfg.teacher.build(self.students(encoders))

    def students(self, encoders: nn.Module) -> dict[str, nn.Module]:
        """What the teacher has a copy of, by name."""
        return {"encoders": encoders, "projectors": self.projectors}

    def plans(self) -> Plans:
        """Two global views of a single stream, or one clean view of each of several."""
        return same_plan(self.projectors, self.plan)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The losses of this rank's rows."""
        views, flags = [one for v in batch for one in one_by_one(v)], presence(batch)  # flags [V, B]
        asking = list(range(len(views) if self.cfg.symmetric else 1))
        asked = asking if self.cfg.symmetric else [1]
        z = project(encoders, self.projectors, [views[a] for a in asking], apart=True)  # [V or 1, B, P]
        with torch.no_grad():
            t = project(
                self.teacher.encoders, self.teacher["projectors"], [views[b] for b in asked], apart=True
            )
        targets = dict(zip(asked, t, strict=True))  # each [B, P]
        here = None if flags is None else flags[: len(asking)]
        moved = self.observe(z, [views[a].stream for a in asking], here)
        found = []
        for a, b in [(a, b) for a in asking for b in asked if a != b]:
            keep = None if flags is None else flags[a] & flags[b]
            found.append(tico_terms(z[a], targets[b], moved[views[a].stream], keep))
        terms = {name: torch.stack([each[name] for each in found]).mean() for name in found[0]}
        weights = {"invariance": 1.0, "covariance": self.cfg.rho}
        return Losses.weigh(terms, weights, {"std": embedding_std(z, here)})

    def observe(self, z: Tensor, streams: list[str], present: Tensor | None) -> dict[str, Tensor]:
        """Return each stream's covariance [P, P] with its views of z [V, B, P] in it; present bool [V, B]."""
        moved = {}
        for stream in dict.fromkeys(streams):
            mine = [i for i, each in enumerate(streams) if each == stream]
            here = None if present is None else present[mine].flatten()
            covariance = cast(MovingCovariance, self.covariances[stream])
            moved[stream] = covariance.observe(z[mine].flatten(0, 1), here)
        return moved

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        """The teacher follows, and the covariances are those of the step."""
        self.teacher.update(self.students(encoders), progress)
        for covariance in self.covariances.values():
            cast(MovingCovariance, covariance).after_step()

    def alarm(self, history: History, progress: Progress) -> str | None:
        """Embeddings in one point."""
        return point_alarm("tico", history, "raise objective.rho, or lower optim.lr")

    def shared_space(self) -> SharedSpace | None:
        """Return the space of the projections, where there are several streams."""
        return shared_space(self.projectors)

    def shard_units(self) -> list[nn.Module]:
        """The teacher's blocks; heads are small and called once per view."""
        return self.teacher.encoders.shard_units()
