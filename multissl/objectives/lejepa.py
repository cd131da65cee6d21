"""LeJEPA: the views of a sample come together and embeddings are Gaussian; no teacher, no stopped gradient.

Balestriero and LeCun 2025, arXiv 2511.08544. The loss is (1 - weight) * invariance + weight * sigreg:
  invariance  squared distance of all views from the mean of the whole ones of their sample, over samples and features
  sigreg      how far each view's embeddings are from a Gaussian, the mean over views (`losses/sigreg.py`)
With num_local=0 it is the form of the authors' minimal example, whose center is the mean of all views. Directions are
drawn from the step, the same on all ranks; the statistic is that of the global batch, on any number of ranks.
What `sigreg` says depends on the global batch N: a Gaussian costs 1.05 at any N, what is not one costs more in
proportion to N, one point 0.4 N. So `weight` weighs more in larger batches, and `stats/over_gaussian`, the term by what
a Gaussian costs, ends near 1 and not at 0. In one point no gradient leads away: the projector's last layer
must not be so small that embeddings begin there.
Shapes: V views, B samples on this rank, P projector width, K directions.  State: one projector per stream.
Collectives: sums over ranks, with gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

from multissl.contract.alarms import History, point_alarm
from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders, SharedSpace
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Plans, StreamSpec
from multissl.layers.heads import MLPHead
from multissl.losses.common import embedding_std
from multissl.losses.sigreg import distance_to_center, draw_directions, gaussian_cost, sigreg
from multissl.objectives.common import (
    check_sliced,
    presence,
    project_together,
    same_plan,
    shared_space,
    small_and_large_views,
)


class LeJEPA(Objective):
    """Views of a sample agree, and what all samples give is an isotropic Gaussian."""

    reads_present = True
    reads_tokens = False
    titles: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"stats/over_gaussian": "sigreg by what a Gaussian costs: healthy near 1, never 0"}
    )

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of LeJEPA."""

        weight: float = 0.05
        """Share of sigreg in the loss, above 0 and below 1; the paper explores 0.01 to 0.1. What it does grows with the
        global batch."""
        num_global: int = 2
        """Whole views of a sample, whose mean is the center; 1 or more."""
        num_local: int = 6
        """Local views of a sample."""
        slices: int = 1024
        """Random directions of a step."""
        knots: int = 17
        """Points at which characteristic functions are compared, an odd number."""
        t_max: float = 3.0
        """The last of these points."""
        projector: MLPHead.Config = field(default_factory=lambda: MLPHead.Config(out=64))
        """Head between the features and the loss."""

        def __post_init__(self) -> None:
            check_sliced(
                self.weight,
                0.05,
                num_global=self.num_global,
                num_local=self.num_local,
                slices=self.slices,
            )
            if self.knots < 3 or self.knots % 2 == 0:
                raise ValueError(f"objective.knots={self.knots}: want an odd number from 3 on, such as 17")
            if self.t_max <= 0:
                raise ValueError(f"objective.t_max={self.t_max}: want more than 0, such as 3")

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.gaussian_cost = cfg, gaussian_cost(cfg.knots, cfg.t_max)
        self.plan, self.centers = small_and_large_views(streams, cfg.num_global, cfg.num_local)
        self.projectors = PerStream({s: cfg.projector.build(encoders.widths()[s]) for s in streams})

    def plans(self) -> Plans:
        """Global and local views of a single stream, or one clean view of each of several."""
        return same_plan(self.projectors, self.plan)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The losses of this rank's rows."""
        cfg = self.cfg
        z = project_together(encoders, self.projectors, batch)  # [V, B, P], whole views first
        present = presence(batch)  # [V, B]
        directions = draw_directions(z.shape[-1], cfg.slices, progress.step, z)
        terms = {
            "invariance": distance_to_center(z, self.centers, present),
            "sigreg": sigreg(z, directions, cfg.knots, cfg.t_max, present),
        }
        stats = {
            "std": embedding_std(z, present),
            "over_gaussian": terms["sigreg"] / self.gaussian_cost,
        }
        return Losses.weigh(terms, {"invariance": 1 - cfg.weight, "sigreg": cfg.weight}, stats)

    def shared_space(self) -> SharedSpace | None:
        """Return the space of the projections, where there are several streams."""
        return shared_space(self.projectors)

    def alarm(self, history: History, progress: Progress) -> str | None:
        """Embeddings in one point, from which sigreg has no gradient that leads away."""
        return point_alarm("lejepa", history, "raise objective.weight, or lower optim.lr")
