"""VICReg: keep variance, kill covariance, bring the views of a sample together.

Bardes, Ponce, LeCun, ICLR 2022, arXiv 2105.04906, equations 1 to 6. The official code, which we follow, averages the
variance term over the views and sums the covariance term.
Shapes: V views, B samples on this rank, W ranks, P projector width.  State: a projector a stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.distributed import gather
from multissl.encoders.base import Encoders
from multissl.layers.heads import MLPHead
from multissl.objectives.base import Objective, project, spread, views_per_stream
from multissl.types import Batch, Encode, Losses, Plans, Progress, StreamSpec


class VICReg(Objective):
    """Two views of a sample agree; features neither collapse nor repeat each other."""

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

        def __post_init__(self) -> None:
            for name in ("invariance", "variance", "covariance"):
                if getattr(self, name) < 0:
                    raise ValueError(f"objective.{name}={getattr(self, name)}: want 0 or more")
            if self.invariance + self.variance + self.covariance == 0:
                raise ValueError("objective.invariance, variance and covariance are all 0: set one above 0")

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.weights = {"invariance": cfg.invariance, "variance": cfg.variance, "covariance": cfg.covariance}
        self.plan = views_per_stream(streams, 2)
        self.projectors = nn.ModuleDict({s: cfg.projector.build(encoders.widths()[s]) for s in streams})

    def plans(self) -> Plans:
        """Two global views of a lone stream, or one clean view of each of several."""
        return spread(self.projectors, self.plan)

    def forward(self, encoders: Encode, batch: Batch, progress: Progress) -> Losses:
        """The losses of this rank's rows."""
        z = project(encoders, self.projectors, batch, apart=True)  # [V, B, P]
        return Losses.weigh(vicreg_terms(z), self.weights)


def vicreg_terms(z: Tensor) -> dict[str, Tensor]:
    """The unweighted terms of V projections z [V, B, P], V > 1; the statistics span all W ranks."""
    everyone = torch.stack([gather(view) for view in z])  # [V, W*B, P]
    if everyone.shape[1] < 2:
        raise ValueError("vicreg needs 2 or more samples a step, got 1: raise batch_size")
    centred = everyone - everyone.mean(1, keepdim=True)
    std = (centred.pow(2).sum(1) / (centred.shape[1] - 1) + 1e-4).sqrt()  # [V, P]
    covariance = centred.mT @ centred / (centred.shape[1] - 1)  # [V, P, P]
    off_diagonal = covariance.pow(2).sum((1, 2)) - covariance.diagonal(dim1=1, dim2=2).pow(2).sum(1)  # [V]
    return {
        "invariance": torch.stack([F.mse_loss(a, b) for a, b in combinations(z, 2)]).mean(),
        "variance": F.relu(1 - std).mean(),
        "covariance": off_diagonal.sum() / z.shape[-1],
    }
