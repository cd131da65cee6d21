"""What every objective shares: the base class, and the projection of the global views.

Shapes: V views, B samples on this rank, P projector width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from multissl.config import Component
from multissl.config import Config as BaseConfig
from multissl.types import Batch, Encode, Losses, Masking, ParamRule, Plans, Progress, StreamSpec, ViewPlan


class Objective(Component, nn.Module):
    """Base of objectives: owns projectors, predictors, teachers, centres and queues; built with (encoders, streams)."""

    group: ClassVar[str] = "objectives"
    maskings: frozenset[Masking] = frozenset({"none"})
    """What it asks encoders to do with masks."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of an objective."""

    def plans(self) -> Plans:
        """The views it needs, by stream."""
        raise NotImplementedError

    def forward(self, encoders: Encode, batch: Batch, progress: Progress) -> Losses:
        """The losses of this rank's rows; the gradient averaged over ranks is that of the global batch."""
        raise NotImplementedError

    def after_step(self, encoders: nn.ModuleDict, progress: Progress) -> None:
        """Move the slow state, once after every optimizer step. `progress` is that of the step just made."""

    def exported(self, encoders: nn.ModuleDict) -> nn.ModuleDict:
        """The encoders to evaluate and ship: the student unless a teacher is better."""
        return encoders

    def param_rules(self) -> list[ParamRule]:
        """Exceptions to the optimizer's treatment of parameters."""
        return []

    def shard_units(self) -> list[nn.Module]:
        """Modules to shard on their own: a teacher's blocks, heads."""
        return []


def spread(streams: Iterable[str], plan: ViewPlan) -> dict[str, ViewPlan]:
    """The same plan for every stream."""
    return dict.fromkeys(streams, plan)


def views_per_stream(streams: Mapping[str, StreamSpec], total: int) -> ViewPlan:
    """`total` global views of a lone stream, or one clean view of each of several."""
    return ViewPlan(num_global=total) if len(streams) == 1 else ViewPlan(num_clean=1)


def project(encoders: Encode, projectors: nn.ModuleDict, batch: Batch, **options: Any) -> Tensor:
    """Every view of `batch` encoded, pooled and projected: [V, B, P] in fp32, V over all items of the batch."""
    features = encoders.encode(batch, **options)
    parts = [projectors[v.stream](f.pooled) for v, f in zip(batch, features, strict=True)]  # each [V_i*B, P]
    rows = [p.float().unflatten(0, (v.num_views, v.batch)) for v, p in zip(batch, parts, strict=True)]
    return torch.cat(rows)
