"""SwAV: the views of a sample predict each other's code, a soft assignment to prototypes that uses all evenly.

Caron et al., NeurIPS 2020, arXiv 2006.09882, equations 1 to 3. Scores are cosines s of projections and prototypes.
Every full view i is coded by Sinkhorn-Knopp, q_i, over the rows of all ranks; with CE(q, s) = -sum_k q_k log
softmax(s / T)_k the loss is the mean over coded views i, over all other views v and over samples of CE(q_i, s_v). That
is the official code's; solo-learn averages over all pairs at once, which is the same. As there
- prototypes are made unit vectors again after every step and keep their weight decay; gradients do not pass the norm;
- batch norm in the projector spans all views of a stream; a queue of earlier projections joins the Sinkhorn rounds
  once it is full and `queue_start` is reached, with its own part for every coded view.
Several streams share the prototypes; each codes its one clean view.
Shapes: V views of which the first A are coded, B samples on this rank, W ranks, P projector width, K prototypes,
Q queued rows.  Across ranks: Sinkhorn's potentials, the rows for the queue; each rank scores its part of the queue.
State: one projector per stream, prototypes, the queue and how many rows have entered it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.alarms import History, one_point
from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders, SharedSpace
from multissl.contract.learning import Losses, ParamRule, Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Plans, StreamSpec, ViewPlan
from multissl.layers.heads import MLPHead
from multissl.losses.common import embedding_std
from multissl.losses.swav import swav_loss
from multissl.losses.targets import describe
from multissl.objectives.common import head, same_plan, shared_space
from multissl.parallel.collectives import gather
from multissl.parallel.ranks import rank, world
from multissl.parallel.sharding import local
from multissl.precision import at_least_fp32


class SwAV(Objective):
    """Views predict each other's codes; full views are coded, small ones only predict."""

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of SwAV."""

        prototypes: int = 3000
        """K; about ten times the classes one hopes for."""
        temperature: float = 0.1
        """Temperature of the student's softmax, more than 0."""
        num_local: int = 6
        """Small views of a single stream; they predict codes and have none."""
        epsilon: float = 0.05
        """Temperature of the codes: Sinkhorn's regularization."""
        sinkhorn_rounds: int = 3
        """Rounds of Sinkhorn-Knopp, 1 or more."""
        queue: int = 0
        """Earlier samples that join the codes' rounds; a batch of 256 and less needs some 15 batches of them."""
        queue_start: int = 0
        """First step in which the queue is used; it fills from the first step on."""
        freeze_prototypes: int = 0
        """Steps at the start in which the prototypes do not move."""
        projector: MLPHead.Config = field(default_factory=lambda: MLPHead.Config(layers=2, out=128))
        """Head between the features and the loss."""

        def __post_init__(self) -> None:
            for name in ("temperature", "epsilon"):
                if getattr(self, name) <= 0:
                    raise ValueError(f"objective.{name}={getattr(self, name)}: want more than 0")
            least = {"prototypes": 2, "sinkhorn_rounds": 1}
            for name in (*least, "num_local", "queue", "queue_start", "freeze_prototypes"):
                if getattr(self, name) < (low := least.get(name, 0)):
                    raise ValueError(f"objective.{name}={getattr(self, name)}: want {low} or more")

    queue: Tensor
    queued: Tensor

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, alone = cfg, len(streams) == 1
        self.plan = ViewPlan(num_global=2, num_local=cfg.num_local) if alone else ViewPlan(num_clean=1)
        self.coded = 2 if alone else len(streams)
        self.projectors = PerStream({s: cfg.projector.build(encoders.widths()[s]) for s in streams})
        self.prototypes = nn.Linear(cfg.projector.out, cfg.prototypes, bias=False)
        self.prototypes.weight.data = F.normalize(self.prototypes.weight.data)
        size = (self.coded, cfg.queue, cfg.projector.out)
        self.register_buffer("queue", torch.zeros(size) if cfg.queue else None)
        self.register_buffer("queued", torch.zeros((), dtype=torch.long) if cfg.queue else None)
        self.fresh: Tensor | None = None

    def plans(self) -> Plans:
        """Two global views of a single stream and its local ones, or one clean view of each of several."""
        return same_plan(self.projectors, self.plan)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The loss of this rank's rows."""
        cfg, waiting, full = self.cfg, None, None
        if any(v.present is not None for v in batch):
            raise ValueError(
                "swav codes every sample in every stream, some here lack one: drop those samples"
            )
        unit = F.normalize(self.project(encoders, batch), dim=-1)  # [V, B, P]
        if cfg.queue:
            self.fresh = gather(unit[: self.coded].detach().transpose(0, 1))  # [W*B, A, P]
            if (rows := len(self.fresh)) > cfg.queue:
                way = f"is smaller than the batch, {rows} samples: set 0, or a few times the batch"
                raise ValueError(f"objective.queue={cfg.queue} {way}")
            if progress.step >= cfg.queue_start:
                waiting = self.score(self.queue[:, rank() :: world()]).detach()  # [A, Q/W, K]
                full = self.queued >= cfg.queue
        options = (cfg.temperature, cfg.epsilon, cfg.sinkhorn_rounds)
        loss, codes, ce = swav_loss(self.score(unit), self.coded, *options, waiting, full)
        stats: dict[str, Tensor] = {}
        if progress.described:
            seen = [describe(q, c.view(-1, len(q.b)).mean(0)) for q, c in zip(codes, ce, strict=True)]
            stats = {name: torch.stack([s[name] for s in seen]).mean() for name in seen[0]}
            stats["entropy_share"] = stats["teacher_entropy"] / math.log(cfg.prototypes)
            stats["std"] = embedding_std(unit[: self.coded])
        return Losses.weigh({"swap": loss}, {"swap": 1.0}, stats)

    def project(self, encoders: EncodeFunction, batch: Batch) -> Tensor:
        """Every view projected, coded ones first: [V, B, P]; a projector is called once for all views of a stream."""
        features = encoders.encode(batch)
        coded, rest = [], []
        for stream, projector in self.projectors.items():
            mine = [(v, f) for v, f in zip(batch, features, strict=True) if v.stream == stream]
            z = head(projector, torch.cat([f.pooled for _, f in mine]), sum(v.num_views for v, _ in mine))
            for (v, _), part in zip(mine, z.split([v.num_views for v, _ in mine]), strict=True):
                (rest if v.role == "local" else coded).append(part)
        found = torch.cat([*coded, *rest])
        assert sum(map(len, coded)) == self.coded, [v.role for v in batch]
        return found

    def score(self, unit: Tensor) -> Tensor:
        """Cosines of unit vectors [..., P] and prototypes, [..., K]; half precision bends the rows' length, mended."""
        weight = at_least_fp32(self.prototypes.weight)  # [K, P]
        return F.linear(unit.to(weight.dtype), weight / weight.detach().norm(dim=1, keepdim=True))

    def shared_space(self) -> SharedSpace | None:
        """Return the space of the projections, where there are several streams."""
        return shared_space(self.projectors)

    @torch.no_grad()
    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        """Prototypes become unit vectors again, the batch enters the queue."""
        rows = local(self.prototypes.weight)  # this rank's whole rows
        rows.copy_(progress.moved(F.normalize(rows, dim=1), rows))
        if self.fresh is not None:
            newest = self.fresh.transpose(0, 1).to(self.queue.dtype)  # [A, W*B, P]
            self.queue.copy_(torch.cat([newest, self.queue], 1)[:, : self.cfg.queue])
            self.queued += newest.shape[1]
            self.fresh = None

    def alarm(self, history: History, progress: Progress) -> str | None:
        """Embeddings in one point: Sinkhorn then has nothing to tell samples apart by."""
        said = "swav: embeddings have become one point (std {:.3f} of 1): lower objective.epsilon or optim.lr"
        return None if (std := one_point(history)) is None else said.format(std)

    def param_rules(self) -> list[ParamRule]:
        """The prototypes rest for the first steps."""
        steps = self.cfg.freeze_prototypes
        return [ParamRule(of=self.prototypes, frozen_steps=steps)] if steps else []
