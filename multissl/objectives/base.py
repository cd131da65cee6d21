"""What every objective shares: the base class, the projection of views, and how spread out embeddings are.

Shapes: V views, B samples on this rank, R = V*B rows, D encoder width, P projector width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from multissl.config import Component
from multissl.config import Config as BaseConfig
from multissl.encoders.base import towers
from multissl.objectives.alarms import common_alarm
from multissl.precision import wide
from multissl.types import Batch, Encode, Losses, Masking, ParamRule, Plans, Progress, StreamSpec, ViewPlan


class Objective(Component, nn.Module):
    """Base of objectives: owns projectors, predictors, teachers, centres and queues; built with (encoders, streams)."""

    group: ClassVar[str] = "objectives"
    maskings: frozenset[Masking] = frozenset({"none"})
    """What it asks encoders to do with masks, whatever its options are."""
    reads_tokens: bool = True
    """Whether it reads `Features.tokens`; where it does not, encoding in chunks holds none of them."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of an objective."""

        def maskings(self) -> frozenset[Masking]:
            """What it asks encoders to do with masks under these options."""
            return cast(Any, self.owner).maskings

    def plans(self) -> Plans:
        """The views it needs, by stream."""
        raise NotImplementedError

    def admit(self, samples: int) -> None:
        """Told the number of training samples before the first step; a ValueError where they are too few."""

    def forward(self, encoders: Encode, batch: Batch, progress: Progress) -> Losses:
        """The losses of this rank's rows; the gradient averaged over ranks is that of the global batch."""
        raise NotImplementedError

    def after_step(self, encoders: nn.ModuleDict, progress: Progress) -> None:
        """Move the slow state, once after every optimizer step. `progress` is that of the step just made.

        A step whose loss is not finite is skipped, without this call and with all buffers put back; what `forward`
        keeps for it elsewhere is set anew by every `forward`.
        """

    def alarm(self, history: Sequence[Mapping[str, float]], progress: Progress) -> str | None:
        """What has gone wrong in training, its cause and the option to change; None where nothing has.

        `history` holds the logged figures so far: step, loss, terms/NAME, stats/NAME, oldest first. Seen by default:
        embeddings in one point (`stats/std`), and a loss that stays at that of a constant output (`stats/constant`).
        """
        return common_alarm(type(self).__name__.lower(), history)

    def exported(self, encoders: nn.ModuleDict) -> nn.ModuleDict:
        """The encoders to evaluate and ship: the student unless a teacher is better.

        Where `projectors` lead several streams into one space, towers that end in it. With `predictors` behind them
        they do not: a prediction, not the projection itself, comes to lie beside another stream's projection.
        """
        projectors, predictors = (getattr(self, name, ()) for name in ("projectors", "predictors"))
        shared = len(projectors) > 1 and not len(predictors)
        return towers(encoders, cast(nn.ModuleDict, projectors)) if shared else encoders

    def param_rules(self) -> list[ParamRule]:
        """Exceptions to the optimizer's treatment of parameters."""
        return []

    def shard_units(self) -> list[nn.Module]:
        """Modules to shard on their own: a teacher's blocks, heads."""
        return []


ONE_VIEW = {"clean": ViewPlan(num_clean=1), "global": ViewPlan(num_global=1)}
"""The plan of a lone view, by its role."""


def spread(streams: Iterable[str], plan: ViewPlan) -> dict[str, ViewPlan]:
    """The same plan for every stream."""
    return dict.fromkeys(streams, plan)


def lone(
    name: str,
    streams: Iterable[str],
    does: str = "reads one stream",
    instead: str = "sum objectives with weighted instead",
) -> str:
    """The only stream of an objective that takes no more; others are refused with what to do `instead`."""
    first, *others = streams
    if others:
        got = ", ".join([first, *others])
        raise ValueError(f"{name} {does}, got {got}: {instead}")
    return first


def views_per_stream(streams: Mapping[str, StreamSpec], total: int, clean: bool = False) -> ViewPlan:
    """`total` global views of a lone stream, the first of them clean if asked, or one clean view of each of several."""
    alone = ViewPlan(num_clean=int(clean), num_global=total - clean)
    return alone if len(streams) == 1 else ViewPlan(num_clean=1)


def project(encoders: Encode, projectors: nn.ModuleDict, batch: Batch, apart: bool = False) -> Tensor:
    """Every view of `batch` encoded, pooled and projected: [V, B, P] in fp32, V over all items of the batch."""
    features = encoders.encode(batch)
    parts = [
        head(projectors[v.stream], f.pooled, v.num_views, apart) for v, f in zip(batch, features, strict=True)
    ]
    return torch.cat(parts)


def head(module: nn.Module, x: Tensor, num_views: int, apart: bool = False) -> Tensor:
    """A head on the rows x [V*B, D] of V views: [V, B, P] in fp32, or wider.

    `apart` calls it once a view, so that batch norm takes each view's own statistics (VICReg, BYOL, MoCo v3);
    otherwise they span all views (SimCLR, SwAV).
    """
    rows = x.chunk(num_views) if apart else [x]
    return wide(torch.cat([module(r) for r in rows])).unflatten(0, (num_views, -1))


def presence(batch: Batch) -> Tensor | None:
    """Which samples every view has, bool [V, B] with V over all items of the batch; None where nothing is missing."""
    if all(v.present is None for v in batch):
        return None
    whole = [torch.ones(v.batch, dtype=torch.bool, device=v.x.device) for v in batch]
    found = [w if v.present is None else v.present for v, w in zip(batch, whole, strict=True)]
    return torch.cat([f.expand(v.num_views, -1) for v, f in zip(batch, found, strict=True)])
