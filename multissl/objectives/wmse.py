"""W-MSE: whiten the embeddings of each view, then bring the views of a sample together.

Ermolov et al., ICML 2021, arXiv 2007.06346, equations 4 to 6. The embeddings of a view are cut into random groups of
G samples; each group is whitened by the inverse of the lower Cholesky factor of its covariance (G - 1 in the
denominator, shrunk towards the identity by `eps`), so that they cannot collapse; the loss is 2 - 2 cos between
the views of a sample, the mean over pairs of views and over `draws` ways of grouping (the paper's w_iter). As in the
official code the gradient flows through the whitening of both views; solo-learn stops it at the second one. The heads
see all views at once, as there. Groups are drawn from the step by the number of a sample in the global batch, so the
loss does not depend on the number of ranks.
Shapes: V views, B samples on this rank, W ranks, G samples per group, P projector width.  State: projectors.
Collectives: a gather of all views, with gradient; every rank takes the loss of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders, SharedSpace
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Plans, StreamSpec
from multissl.layers.heads import MLPHead
from multissl.losses.common import embedding_std
from multissl.losses.wmse import groupings, wmse_loss
from multissl.objectives.common import presence, project, same_plan, shared_space, views_per_stream
from multissl.parallel.collectives import gather


class WMSE(Objective):
    """Whitened views of a sample agree."""

    reads_tokens = False

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of W-MSE."""

        group: int = 128
        """G, samples that are whitened together: at least twice projector.out, as in the paper, and it divides
        batch_size."""
        draws: int = 1
        """Ways of grouping a batch over which the loss is averaged."""
        eps: float = 0.0
        """Share of the identity in a group's covariance; above 0 where embeddings do not fill their space."""
        projector: MLPHead.Config = field(
            default_factory=lambda: MLPHead.Config(hidden=1024, out=64, layers=2)
        )
        """Head between the features and the loss."""

        def __post_init__(self) -> None:
            if self.group < 2 * self.projector.out:
                raise ValueError(
                    f"objective.group={self.group}: want {2 * self.projector.out} samples or more, twice "
                    f"objective.projector.out={self.projector.out}, for a covariance that can be inverted well; raise "
                    "the one or lower the other"
                )
            if self.draws < 1:
                raise ValueError(f"objective.draws={self.draws}: want 1 or more")
            if not 0 <= self.eps < 1:
                raise ValueError(f"objective.eps={self.eps}: want 0 or more, below 1")

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.plan = cfg, views_per_stream(streams, 2)
        self.projectors = PerStream({s: cfg.projector.build(encoders.widths()[s]) for s in streams})

    def plans(self) -> Plans:
        """Two global views of a single stream, or one clean view of each of several."""
        return same_plan(self.projectors, self.plan)

    def check_batch_size(self, samples: int) -> None:
        """Groups are of equal size."""
        groupings(samples, self.cfg.group, 1, 0)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The loss of the whole batch, the same on every rank."""
        there = presence(batch)
        if there is not None and not there.all():
            raise ValueError(
                "wmse whitens whole groups and a sample lacks a stream: take vicreg, or data without gaps"
            )
        z = project(encoders, self.projectors, batch)  # [V, B, P]
        everyone = gather(z.transpose(0, 1).contiguous()).transpose(0, 1)  # [V, W*B, P]
        orders = groupings(everyone.shape[1], self.cfg.group, self.cfg.draws, progress.step)
        loss = wmse_loss(everyone, orders.to(z.device), self.cfg.eps)
        return Losses.weigh({"distance": loss}, {"distance": 1.0}, {"std": embedding_std(z)})

    def shared_space(self) -> SharedSpace | None:
        """Return the space of the projections, where there are several streams."""
        return shared_space(self.projectors)
