"""W-MSE: whiten the embeddings of each view, then bring the views of a sample together.

Ermolov et al., ICML 2021, arXiv 2007.06346, equations 4 to 6. The embeddings of a view are cut into random groups of
G samples; each group is whitened by the inverse of the lower Cholesky factor of its covariance (G - 1 in the
denominator, shrunk towards the identity by `eps`), so that they cannot collapse; the loss is 2 - 2 cos between
the views of a sample, the mean over pairs of views and over `draws` ways of grouping (the paper's w_iter). As in the
official code the gradient flows through the whitening of both views; solo-learn stops it at the second one. The heads
see all views at once, as there. Groups are drawn from the step by the number of a sample in the global batch, so the
loss does not depend on the number of ranks.
Shapes: V views, B samples on this rank, W ranks, G samples a group, P projector width.  State: a projector a stream.
Collectives: a gather of all views, with gradient; every rank takes the loss of the whole batch.
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
from multissl.layers.heads import MLPHead, wide
from multissl.objectives.base import Objective, embedding_std, presence, project, spread, views_per_stream
from multissl.types import Batch, Encode, Losses, Plans, Progress, StreamSpec


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
        self.projectors = nn.ModuleDict({s: cfg.projector.build(encoders.widths()[s]) for s in streams})

    def plans(self) -> Plans:
        """Two global views of a lone stream, or one clean view of each of several."""
        return spread(self.projectors, self.plan)

    def forward(self, encoders: Encode, batch: Batch, progress: Progress) -> Losses:
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


def groupings(rows: int, group: int, draws: int, step: int) -> Tensor:
    """Ways of cutting `rows` samples into groups, drawn from the step alone: int64 [draws, groups, G]."""
    if rows % group:
        raise ValueError(
            f"batch_size={rows} does not divide into groups of objective.group={group}: make batch_size a multiple, "
            "or choose a group that divides it, twice objective.projector.out or more"
        )
    generator = torch.Generator().manual_seed(step)
    return torch.stack([torch.randperm(rows, generator=generator) for _ in range(draws)]).unflatten(
        1, (-1, group)
    )


def wmse_loss(z: Tensor, orders: Tensor, eps: float = 0.0) -> Tensor:
    """Mean of 2 - 2 cos between the whitened views z [V, B, P] of a sample, V > 1, grouped by orders [.., G].

    In fp32 at least: of inputs rounded to bf16 the loss agrees to 0.05 with that of the inputs themselves.
    """
    with torch.autocast(z.device.type, enabled=False):
        white = F.normalize(whiten(z[:, orders], eps), dim=-1, eps=1e-12)  # [V, .., G, P]
        pairs = combinations(white, 2)
        return torch.stack([(2 - 2 * (a * b).sum(-1)).mean() for a, b in pairs]).mean()


def whiten(x: Tensor, eps: float = 0.0) -> Tensor:
    """Groups x [.., G, P], G > P, with mean 0 and, where eps = 0, the identity as covariance; in fp32 at least."""
    with torch.autocast(x.device.type, enabled=False):
        x = wide(x)
        centred = x - x.mean(-2, keepdim=True)
        covariance = centred.mT @ centred / (x.shape[-2] - 1)  # [.., P, P]
        shrunk = (1 - eps) * covariance + eps * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        factor, failed = torch.linalg.cholesky_ex(shrunk)
        if failed.any() and shrunk.isfinite().all():  # the trainer knows what to do about NaN
            raise ValueError(
                f"embeddings do not fill their {x.shape[-1]} dimensions and cannot be whitened: raise objective.eps, "
                "or lower objective.projector.out"
            )
        return torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT
