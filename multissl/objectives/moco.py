"""MoCo: a view is recognized by the key that a slowly moving copy of the encoder makes of the sample's other view.

v2, the default: He et al. 2020, arXiv 1911.05722, equation 1 and algorithm 1, with the head of arXiv 2003.04297: one
direction, negatives from a queue of earlier keys, which the step's keys enter after the loss. v3 (Chen et al. 2021,
arXiv 2104.02057, algorithm 1): queue=0, a predictor, both directions, negatives from the batch. Several directions are
averaged; `reference_sum` adds them, times 2 * temperature, as v3's code does. Keys in the queue that share the anchor's
sample_id or group_id are no negatives. Batch norms see one view at a time, and each batch's statistics in the teacher;
instead of MoCo's shuffling those of the heads span all ranks.
Shapes: V views, B samples on this rank, W ranks, K queued keys, P width.
Collectives: gathers of keys (without gradient) and of ids.  State: projectors, predictors, teacher, stream queues.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import EncodeFunction, Encoders, SharedSpace
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Plans, StreamSpec
from multissl.layers.heads import MLPHead
from multissl.layers.queue import MISSING, Queue, strangers
from multissl.layers.teacher import Teacher
from multissl.losses.common import embedding_std
from multissl.losses.moco import queue_loss
from multissl.losses.nce import one_way
from multissl.objectives.common import (
    need_two,
    one_by_one,
    presence,
    project,
    same_plan,
    shared_space,
    views_per_stream,
)
from multissl.objectives.pairing import ids_of, predict, relations_of
from multissl.parallel.collectives import gather
from multissl.parallel.ranks import world


class MoCo(Objective):
    """Momentum contrast of two views, or of one view of each of several streams; with a queue or within the batch."""

    reads_present = True

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of MoCo; the defaults are v2's."""

        queue: int = 65536
        """Keys of earlier steps that serve as negatives; 0: the keys of the batch do (v3)."""
        temperature: float = 0.2
        """Temperature of the scores, more than 0."""
        symmetric: bool = False
        """Let every view ask for every other (v3); otherwise only the first for the second."""
        reference_sum: bool = False
        """Add the directions, each times 2 * temperature (v3's code), in place of their mean."""
        projector: MLPHead.Config = field(
            default_factory=lambda: MLPHead.Config(hidden=2048, out=128, layers=2, norm="none")
        )
        """Head between the features and the loss."""
        predictor: MLPHead.Config | None = None
        """After the projector, without a copy in the teacher (v3)."""
        teacher: Teacher.Config = field(
            default_factory=lambda: Teacher.Config(
                ema=0.999, final_ema=0.999, buffers="keep", batch_norm="batch"
            )
        )
        """The slow copy of the student that makes the targets."""

        def __post_init__(self) -> None:
            if self.temperature <= 0:
                raise ValueError(
                    f"objective.temperature={self.temperature}: want more than 0, MoCo v2 has 0.2"
                )
            if self.queue < 0:
                raise ValueError(f"objective.queue={self.queue}: want 0 (none) or more")
            if self.predictor is not None and self.predictor.out != self.projector.out:
                raise ValueError(
                    f"objective.predictor.out={self.predictor.out}: want that of objective.projector.out, "
                    f"{self.projector.out}"
                )

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.plan = cfg, views_per_stream(streams, 2)
        if len(streams) > 1 and not cfg.symmetric:
            raise ValueError(
                f"moco with one direction would train only the encoder of {next(iter(streams))}: "
                "set objective.symmetric=True for several streams"
            )
        self.projectors = PerStream({s: cfg.projector.build(encoders.widths()[s]) for s in streams})
        self.predictors = PerStream(
            {s: cfg.predictor.build(cfg.projector.out) for s in streams} if cfg.predictor else {}
        )
        self.teacher: Teacher = cfg.teacher.build(self.students(encoders))
        sizes = dict.fromkeys(streams, cfg.queue) if cfg.queue else {}
        self.queues = PerStream({s: Queue(k, cfg.projector.out, labels=2) for s, k in sizes.items()})

    def students(self, encoders: nn.Module) -> dict[str, nn.Module]:
        """What the teacher has a copy of, by name."""
        return {"encoders": encoders, **{f"{s}_projector": p for s, p in self.projectors.items()}}

    def plans(self) -> Plans:
        """Two global views of a single stream, or one clean view of each of several."""
        return same_plan(self.projectors, self.plan)

    def check_batch_size(self, samples: int) -> None:
        """Without a queue samples are compared with one another."""
        if not self.queues:
            need_two("moco without a queue", samples)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The loss of this rank's rows."""
        cfg, relation, flags, ids = self.cfg, relations_of(batch), presence(batch), ids_of(batch)
        self.check_batch_size(len(ids) * world())
        views = [one for v in batch for one in one_by_one(v)]
        asking = list(range(len(views)))[: None if cfg.symmetric else 1]
        asked = list(range(len(views))) if cfg.symmetric else [1]
        queries = [views[a] for a in asking]
        q = project(encoders, self.projectors, queries, apart=True)  # [V or 1, B, P]
        here = None if flags is None else flags[: len(asking)]
        if self.predictors:
            q = predict(self.predictors, [v.stream for v in queries], q, here)
        keys = dict(zip(asked, self.keys([views[b] for b in asked]), strict=True))  # each [B, P]
        found = []
        for a, b in [(a, b) for a in asking for b in asked if a != b]:
            keep = None if flags is None else flags[a] & flags[b]
            if self.queues:
                queue = self.queue(views[b].stream)
                negative = strangers(ids, queue.labels)
                found.append(queue_loss(q[a], keys[b], queue.rows, cfg.temperature, negative, keep))
            else:
                found.append(one_way(q[a], keys[b], relation, cfg.temperature, keep))
        losses, hits = (torch.stack(values) for values in zip(*found, strict=True))
        factor = 2 * cfg.temperature * len(losses) if cfg.reference_sum else 1.0
        constant = factor * math.log(1 + cfg.queue if cfg.queue else len(ids) * world())
        stats = {"std": embedding_std(q, here), "accuracy": hits.mean(), "constant": q.new_full((), constant)}
        for stream in self.queues:
            mine = [b for b in asked if views[b].stream == stream]
            names = [ids if flags is None else ids.masked_fill(~flags[b, :, None], MISSING) for b in mine]
            real = [keys[b] if flags is None else keys[b] * flags[b, :, None] for b in mine]
            new = torch.cat([F.normalize(gather(k), dim=1) for k in real])
            self.queue(stream).put(new, torch.cat([gather(n) for n in names]))
            stats["queue_filled"] = self.queue(stream).share_filled()
        return Losses.weigh({"nce": losses.mean()}, {"nce": factor}, stats)

    @torch.no_grad()
    def keys(self, views: Sequence[Views]) -> Tensor:
        """The teacher's projections of some views, [.., B, P]."""
        heads = {s: self.teacher[f"{s}_projector"] for s in self.projectors}
        return project(self.teacher.encoders, heads, views, apart=True)

    def queue(self, stream: str) -> Queue:
        """The keys of a stream."""
        return cast(Queue, self.queues[stream])

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        """The teacher follows, and the step's keys enter the queues."""
        self.teacher.update(self.students(encoders), progress)
        for queue in self.queues.values():
            cast(Queue, queue).after_step()

    def shared_space(self) -> SharedSpace | None:
        """Return the space of the projections, where there are several streams and no predictor behind them.

        With one a prediction, not the projection itself, comes to lie beside another stream's projection.
        """
        return None if self.predictors else shared_space(self.projectors)

    def shard_units(self) -> list[nn.Module]:
        """The teacher's blocks and heads."""
        return self.teacher.shard_units()
