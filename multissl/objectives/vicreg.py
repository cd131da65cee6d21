"""VICReg: keep variance, kill covariance, bring the views of a sample together.

Bardes, Ponce, LeCun, ICLR 2022, arXiv 2105.04906, equations 1 to 6. The official code, which we follow, averages the
variance term over the views and sums the covariance term; solo-learn sums both, which is `variance=50` here. The
invariance is a mean over samples and features. Every view has its own statistics, so streams may be unlike each other.
Shapes: V views, B samples on this rank, W ranks, P projector width.  State: one projector per stream.
Collectives: one gather per view, with gradient; where samples lack a stream also sums of counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from multissl.contract.alarms import History, lasting, point_alarm
from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders, SharedSpace
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Plans, StreamSpec
from multissl.layers.heads import MLPHead
from multissl.losses.common import embedding_std
from multissl.losses.vicreg import vicreg_terms
from multissl.objectives.common import need_two, presence, project, same_plan, shared_space, views_per_stream


class VICReg(Objective):
    """Two views of a sample agree; features neither collapse nor repeat each other."""

    reads_present = True
    reads_tokens = False

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of VICReg."""

        invariance: float = 25.0
        """Weight of the squared distance between the projections of two views."""
        variance: float = 25.0
        """Weight of the hinge that holds every feature's standard deviation at 1."""
        covariance: float = 1.0
        """Weight of the squared covariances between features."""
        projector: MLPHead.Config = field(default_factory=lambda: MLPHead.Config(hidden=8192, out=8192))
        """Head between the features and the loss."""

        def __post_init__(self) -> None:
            check_weights(self.invariance, self.variance, self.covariance)

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.weights = {"invariance": cfg.invariance, "variance": cfg.variance, "covariance": cfg.covariance}
        self.plan = views_per_stream(streams, 2)
        self.projectors = PerStream({s: cfg.projector.build(encoders.widths()[s]) for s in streams})

    def plans(self) -> Plans:
        """Two global views of a single stream, or one clean view of each of several."""
        return same_plan(self.projectors, self.plan)

    def check_batch_size(self, samples: int) -> None:
        """Samples are compared with one another."""
        need_two("vicreg", samples)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The losses of this rank's rows."""
        z = project(encoders, self.projectors, batch, apart=True)  # [V, B, P]
        present = presence(batch)  # [V, B]
        return Losses.weigh(vicreg_terms(z, present), self.weights, {"std": embedding_std(z, present)})

    def shared_space(self) -> SharedSpace | None:
        """Return the space of the projections, where there are several streams."""
        return shared_space(self.projectors)

    def alarm(self, history: History, progress: Progress) -> str | None:
        """Embeddings in one point, or around one so closely that the hinge is all but wholly due."""
        weight = self.weights["variance"]
        way = f"objective.variance={weight:g} is too little to hold them apart, " + (
            "set it to 25" if weight < 25 else "lower objective.invariance or optim.lr"
        )
        due = lasting(history, "terms/variance", lambda v: v > 0.95)
        if due is not None:
            return f"vicreg: embeddings do not spread out (variance term {due:.3f} of 1): {way}"
        return point_alarm("vicreg", history, way)


def check_weights(invariance: float, variance: float, covariance: float) -> None:
    """Refuse weights below 0 and weights that leave no loss."""
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
    for name, value in weights.items():
        if value < 0:
            raise ValueError(f"objective.{name}={value}: want 0 or more")
    if not any(weights.values()):
        raise ValueError("objective.invariance, variance and covariance are all 0: set one above 0")
