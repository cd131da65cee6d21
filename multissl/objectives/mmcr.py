"""MMCR: views of a sample come together as the centroids of all samples fill as many directions as they can.

Yerxa et al., NeurIPS 2023, arXiv 2303.03307: the loss is minus the nuclear norm of the centroids of unit vectors over
the global batch, plus `compression` times the mean nuclear norm of the views of a sample (the paper's lambda, 0 in the
official code too: a centroid is long where its views agree). The published ImageNet runs average the views of a slow
teacher into the centroids; `teacher` does that. The norm grows with the square root of the batch, as it is published;
`stats/filled` is its share of the most that it can be.
Shapes: V views, B samples on this rank, W ranks, P projector width.  State: projectors; the teacher, if there is one.
Collectives: a gather of centroids, with gradient; every rank takes the norm of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.alarms import History, point_alarm
from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders, SharedSpace
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Plans, StreamSpec
from multissl.layers.heads import MLPHead
from multissl.layers.teacher import Teacher
from multissl.losses.common import embedding_std
from multissl.losses.mmcr import capacity, mean_extent
from multissl.objectives.common import need_two, presence, project, same_plan, shared_space, views_per_stream


class MMCR(Objective):
    """The centroids of the views of all samples have the largest nuclear norm."""

    reads_present = True
    reads_tokens = False

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of MMCR."""

        num_views: int = 2
        """Views of a sample, where there is a single stream; 2 or more."""
        compression: float = 0.0
        """Weight of the mean nuclear norm of a sample's views, 0 or more."""
        projector: MLPHead.Config = field(default_factory=lambda: MLPHead.Config(hidden=8192, out=512))
        """Head between the features and the loss."""
        teacher: Teacher.Config | None = None
        """A slow copy of the student whose views enter the centroids too; None: there is none."""

        def __post_init__(self) -> None:
            if self.num_views < 2:
                raise ValueError(f"objective.num_views={self.num_views}: want 2 or more, which agree")
            if self.compression < 0:
                raise ValueError(f"objective.compression={self.compression}: want 0 or more")

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.plan = cfg, views_per_stream(streams, cfg.num_views)
        self.projectors = PerStream({s: cfg.projector.build(encoders.widths()[s]) for s in streams})
        self.teacher: Teacher | None = cfg.teacher.build(self.students(encoders)) if cfg.teacher else None

    def students(self, encoders: nn.Module) -> dict[str, nn.Module]:
        """What the teacher has a copy of, by name."""
        return {"encoders": encoders, "projectors": self.projectors}

    def plans(self) -> Plans:
        """Global views of a single stream, or one clean view of each of several."""
        return same_plan(self.projectors, self.plan)

    def check_batch_size(self, samples: int) -> None:
        """Samples are compared with one another."""
        need_two("mmcr", samples)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The losses: the norm is that of the whole batch on every rank, the extent that of this rank's rows."""
        z, present = project(encoders, self.projectors, batch), presence(batch)  # [V, B, P], [V, B]
        views, here = F.normalize(z, dim=-1), present
        if self.teacher is not None:
            views = torch.cat([views, self.taught(self.teacher, batch)])  # [2V, B, P]
            here = None if present is None else torch.cat([present, present])
        norm, filled = capacity(views, here)
        terms, weights = {"capacity": -norm}, {"capacity": 1.0}
        if self.cfg.compression:
            terms["compression"], weights["compression"] = mean_extent(views, here), self.cfg.compression
        return Losses.weigh(terms, weights, {"std": embedding_std(z, present), "filled": filled})

    @torch.no_grad()
    def taught(self, teacher: Teacher, batch: Batch) -> Tensor:
        """Return the teacher's unit vectors [V, B, P]."""
        return F.normalize(project(teacher.encoders, teacher["projectors"], batch), dim=-1)

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        """The teacher follows, if there is one."""
        if self.teacher is not None:
            self.teacher.update(self.students(encoders), progress)

    def alarm(self, history: History, progress: Progress) -> str | None:
        """Embeddings in one point."""
        way = "lower objective.compression" if self.cfg.compression else "lower optim.lr"
        return point_alarm("mmcr", history, way)

    def shared_space(self) -> SharedSpace | None:
        """Return the space of the projections, where there are several streams."""
        return shared_space(self.projectors)

    def shard_units(self) -> list[nn.Module]:
        """The teacher's blocks."""
        return [] if self.teacher is None else self.teacher.encoders.shard_units()
