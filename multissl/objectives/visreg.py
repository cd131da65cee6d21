"""VISReg: the views of a sample come together; embeddings have center, scale and shape of a normal distribution.

arXiv 2606.02572. The loss is (1 - weight) * invariance + weight * (center + scale + shape):
  invariance            squared distance of all views from the mean of the whole ones of their sample
  center, scale, shape  of each view, over the global batch, the mean over views (`losses/visreg.py`)
No teacher and no stopped gradient but one: the shape does not move the scale. The published code draws other directions
on every rank; here they are drawn from the step, so that a step is that of one process on any number of ranks.
Shapes: V views, B samples on this rank, P projector width, K directions.  State: one projector per stream.
Collectives: a gather of all views, with gradient; every rank takes the terms of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from multissl.contract.alarms import History, point_alarm
from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders, SharedSpace
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Plans, StreamSpec
from multissl.layers.heads import MLPHead
from multissl.losses.common import embedding_std
from multissl.losses.sigreg import distance_to_center, draw_directions
from multissl.losses.visreg import visreg_terms
from multissl.objectives.common import (
    check_sliced,
    need_two,
    presence,
    project_together,
    same_plan,
    shared_space,
    small_and_large_views,
)


class VISReg(Objective):
    """Views of a sample agree, and the embeddings of all samples are normally distributed along random directions."""

    reads_present = True
    reads_tokens = False

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of VISReg."""

        weight: float = 0.9
        """Share of the three terms of the distribution in the loss, above 0 and below 1."""
        num_global: int = 4
        """Whole views of a sample, whose mean is the center; 1 or more."""
        num_local: int = 6
        """Local views of a sample."""
        slices: int = 4096
        """Random directions of a step."""
        projector: MLPHead.Config = field(default_factory=lambda: MLPHead.Config(out=256))
        """Head between the features and the loss; the paper's is a third as wide as the features."""

        def __post_init__(self) -> None:
            check_sliced(
                self.weight,
                0.9,
                num_global=self.num_global,
                num_local=self.num_local,
                slices=self.slices,
            )

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg = cfg
        self.plan, self.centers = small_and_large_views(streams, cfg.num_global, cfg.num_local)
        self.projectors = PerStream({s: cfg.projector.build(encoders.widths()[s]) for s in streams})

    def plans(self) -> Plans:
        """Global and local views of a single stream, or one clean view of each of several."""
        return same_plan(self.projectors, self.plan)

    def check_batch_size(self, samples: int) -> None:
        """Samples are compared with one another."""
        need_two("visreg", samples)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The losses of this rank's rows."""
        cfg = self.cfg
        z = project_together(encoders, self.projectors, batch)  # [V, B, P], whole views first
        present = presence(batch)  # [V, B]
        directions = draw_directions(z.shape[-1], cfg.slices, progress.step, z)
        terms = {
            "invariance": distance_to_center(z, self.centers, present),
            **visreg_terms(z, directions, present),
        }
        weights = {**dict.fromkeys(terms, cfg.weight), "invariance": 1 - cfg.weight}
        return Losses.weigh(terms, weights, {"std": embedding_std(z, present)})

    def shared_space(self) -> SharedSpace | None:
        """Return the space of the projections, where there are several streams."""
        return shared_space(self.projectors)

    def alarm(self, history: History, progress: Progress) -> str | None:
        """Embeddings in one point."""
        return point_alarm("visreg", history, "raise objective.weight, or lower optim.lr")
