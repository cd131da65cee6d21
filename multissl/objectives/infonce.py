"""InfoNCE: each view of a sample is recognized by its other views among the views of all samples (SimCLR, NT-Xent).

NT-Xent: Chen et al. 2020, arXiv 2002.05709, equation 1: V views, anchors are all V*B of them, candidates all views of
all ranks but the anchor itself, the mean over anchors (lightly, solo-learn; Google's code is V times that). Options:
several positives outside or inside the log (SupCon, arXiv 2004.11362), DCL and DCLW (Yeh et al. 2022, arXiv 2110.06848,
equations 4 and 6), candidates of other views only, ReLIC's invariance term (Mitrovic et al. 2021, arXiv 2010.07922,
equation 3; here the mean of both directions, with gradient to both), CURL's bilinear similarity (arXiv 2004.04136).
Shapes: V views, B samples on this rank, W ranks, P projector width.
Collectives: gathers of embeddings (with gradient) and of ids.  State: one projector per stream, a learned scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders, SharedSpace
from multissl.contract.learning import Losses, ParamRule, Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Plans, StreamSpec
from multissl.layers.heads import MLPHead
from multissl.layers.scale import Scale
from multissl.losses.common import embedding_std
from multissl.losses.infonce import infonce_terms
from multissl.losses.nce import MultiPos
from multissl.objectives.common import need_two, presence, project, same_plan, shared_space, views_per_stream
from multissl.objectives.pairing import relations_of
from multissl.parallel.ranks import world


class InfoNCE(Objective):
    """Views of a single stream, or the views of several streams of a sample, are positives of each other."""

    reads_present = True
    reads_tokens = False

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of InfoNCE; the defaults are SimCLR's."""

        temperature: float = 0.1
        """Temperature of the scores, more than 0."""
        learn_temperature: bool = False
        """Learn the temperature from this one on, between 0.01 and 1."""
        num_views: int = 2
        """Views of a single stream; several streams give one clean view each."""
        clean: bool = False
        """Of a single stream, the first view is the sample as it is and the others are global; else all are global."""
        multi_pos: MultiPos = "outside"
        """Where several positives are averaged: outside the log (SupCon) or inside it."""
        decoupled: bool = False
        """Leave the positives out of the denominator (DCL)."""
        sigma: float = 0.0
        """Weigh each positive pair by how far apart it is, at this temperature (DCLW: 0.5); 0 weighs all alike."""
        other_view_only: bool = False
        """Leave out candidates of the anchor's own view."""
        relic: float = 0.0
        """Weight of the divergence between the views' distributions over the batch (ReLIC: 1)."""
        bilinear: bool = False
        """Learn the similarity q W k of embeddings as they are (CURL, temperature=1) in place of their cosine."""
        projector: MLPHead.Config = field(
            default_factory=lambda: MLPHead.Config(hidden=2048, out=128, layers=2, last_norm=True)
        )
        """Head between the features and the loss."""

        def __post_init__(self) -> None:
            if self.temperature <= 0:
                raise ValueError(f"objective.temperature={self.temperature}: want more than 0, as 0.1")
            if self.learn_temperature and not 0.01 <= self.temperature <= 1:
                raise ValueError(
                    f"objective.temperature={self.temperature}: a learned one starts between 0.01 and 1; "
                    "or set objective.learn_temperature=False"
                )
            if self.num_views < 2:
                raise ValueError(f"objective.num_views={self.num_views}: want 2 or more")
            for name in (n for n in ("sigma", "relic") if getattr(self, n) < 0):
                raise ValueError(f"objective.{name}={getattr(self, name)}: want 0 or more")
            if self.sigma and not self.decoupled:
                raise ValueError(
                    f"objective.sigma={self.sigma} belongs to the decoupled loss: set objective.decoupled=True"
                )

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.plan = cfg, views_per_stream(streams, cfg.num_views, cfg.clean)
        self.projectors = PerStream({s: cfg.projector.build(encoders.widths()[s]) for s in streams})
        self.scale = Scale(cfg.temperature) if cfg.learn_temperature else None
        self.bilinear = nn.Parameter(torch.eye(cfg.projector.out)) if cfg.bilinear else None

    def plans(self) -> Plans:
        """Global views of a single stream, or one clean view of each of several."""
        return same_plan(self.projectors, self.plan)

    def check_batch_size(self, samples: int) -> None:
        """Samples are compared with one another."""
        need_two("infonce", samples)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The losses of this rank's rows."""
        z = project(encoders, self.projectors, batch)  # [V, B, P]
        need_two("infonce", z.shape[1] * world())
        cfg, temperature = self.cfg, self.scale() if self.scale else self.cfg.temperature
        present = presence(batch)  # [V, B]
        terms, stats = infonce_terms(
            z, relations_of(batch), temperature, present, cfg.multi_pos, cfg.decoupled, cfg.sigma,
            cfg.other_view_only, cfg.relic > 0, self.bilinear,
        )  # fmt: skip
        if self.scale:
            stats["temperature"] = self.scale().squeeze()
        return Losses.weigh(
            terms, {"nce": 1.0, "relic": cfg.relic}, {"std": embedding_std(z, present), **stats}
        )

    def shared_space(self) -> SharedSpace | None:
        """Return the space of the projections, where there are several streams."""
        return shared_space(self.projectors)

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        """A learned temperature goes back into its limits."""
        if self.scale:
            self.scale.clamp()

    def param_rules(self) -> list[ParamRule]:
        """No decay on a learned similarity, which is no weight to shrink."""
        return [] if self.bilinear is None else [ParamRule(of=self.bilinear, decay=0.0)]
