"""Barlow Twins: the features of two views correlate each with itself and with no other.

Zbontar et al., ICML 2021, arXiv 2103.03230, equation 1: sum_i (C_ii - 1)^2 + lambda * sum_{i != j} C_ij^2 of the
cross-correlation C between views, as in the official code: features standardized by the batch (biased variance, 1e-5
under the root), sums over the matrix, not means. solo-learn multiplies the loss by `scale` = 0.025 to 0.1, which
matters where gradients are clipped and in sums of objectives. lightly standardizes each rank by its own rows, an
option of the free function only: it makes the loss depend on the number of ranks. More than two views: the mean over
their pairs.
Shapes: V views, B samples on this rank, P projector width.  State: one projector per stream.
Collectives: sums over ranks, with gradient, of means, variances and the matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

import torch

from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders, SharedSpace
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Plans, StreamSpec
from multissl.layers.heads import MLPHead
from multissl.losses.barlow import barlow_terms, cross_correlation
from multissl.losses.common import embedding_std
from multissl.objectives.common import need_two, presence, project, same_plan, shared_space, views_per_stream


class BarlowTwins(Objective):
    """Views agree feature by feature, and features do not repeat each other."""

    reads_present = True
    reads_tokens = False

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of Barlow Twins."""

        redundancy: float = 0.0051
        """Lambda: weight of the correlations between different features."""
        scale: float = 1.0
        """Of the whole loss; solo-learn takes 0.025 to 0.1."""
        projector: MLPHead.Config = field(default_factory=lambda: MLPHead.Config(hidden=8192, out=8192))
        """Head between the features and the loss."""

        def __post_init__(self) -> None:
            if self.redundancy < 0:
                raise ValueError(f"objective.redundancy={self.redundancy}: want 0 or more")
            if self.scale <= 0:
                raise ValueError(f"objective.scale={self.scale}: want more than 0")

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.weights = {"invariance": cfg.scale, "redundancy": cfg.scale * cfg.redundancy}
        self.plan = views_per_stream(streams, 2)
        self.projectors = PerStream({s: cfg.projector.build(encoders.widths()[s]) for s in streams})

    def plans(self) -> Plans:
        """Two global views of a single stream, or one clean view of each of several."""
        return same_plan(self.projectors, self.plan)

    def check_batch_size(self, samples: int) -> None:
        """Samples are compared with one another."""
        need_two("barlow", samples)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The loss of the whole batch, the same on every rank."""
        z = project(encoders, self.projectors, batch, apart=True)  # [V, B, P]
        there = presence(batch)  # [V, B]
        pairs = list(combinations(range(len(z)), 2))
        found = [
            cross_correlation(z[i], z[j], None if there is None else there[i] & there[j]) for i, j in pairs
        ]
        each = [barlow_terms(c) for c in found]
        terms = {name: torch.stack([e[name] for e in each]).mean() for name in self.weights}
        same = torch.stack([c.diagonal().mean() for c in found]).mean()
        return Losses.weigh(terms, self.weights, {"std": embedding_std(z, there), "correlation": same})

    def shared_space(self) -> SharedSpace | None:
        """Return the space of the projections, where there are several streams."""
        return shared_space(self.projectors)
