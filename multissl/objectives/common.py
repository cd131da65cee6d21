"""What objectives share: plans for their streams, and the projection of views.

Shapes: V views, B samples on this rank, R = V*B rows, D encoder width, P projector width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import EncodeFunction, SharedSpace
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import StreamSpec, ViewPlan
from multissl.precision import at_least_fp32

ONE_VIEW = {"clean": ViewPlan(num_clean=1), "global": ViewPlan(num_global=1)}
"""The plan of a single view, by its role."""


def same_plan(streams: Iterable[str], plan: ViewPlan) -> dict[str, ViewPlan]:
    """The same plan for every stream."""
    return dict.fromkeys(streams, plan)


def need_two(name: str, samples: int) -> None:
    """Refuse steps of one sample, where an objective compares the samples of a step with one another."""
    if samples < 2:
        raise ValueError(
            f"batch_size={samples}: {name} needs 2 or more samples per step, got {samples}: raise batch_size"
        )


def single_stream(
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
    """`total` global views of a single stream, the first clean if asked, or one clean view of each of several."""
    alone = ViewPlan(num_clean=int(clean), num_global=total - clean)
    return alone if len(streams) == 1 else ViewPlan(num_clean=1)


def small_and_large_views(
    streams: Mapping[str, StreamSpec], num_global: int, num_local: int
) -> tuple[ViewPlan, int]:
    """The views of a single stream, or one clean view of each of several; and how many of all views are whole ones."""
    if len(streams) == 1:
        return ViewPlan(num_global=num_global, num_local=num_local), num_global
    return ViewPlan(num_clean=1), len(streams)


def check_sliced(weight: float, usual: float, *, num_global: int, num_local: int, slices: int) -> None:
    """Refuse what no loss can be made of that weighs agreement of views against their distribution along directions."""
    if not 0 < weight < 1:
        raise ValueError(f"objective.weight={weight}: want above 0 and below 1, such as {usual}")
    for name, value, low in (
        ("num_global", num_global, 1),
        ("num_local", num_local, 0),
        ("slices", slices, 1),
    ):
        if value < low:
            raise ValueError(f"objective.{name}={value}: want {low} or more")
    if num_global + num_local < 2:  # a single view has nothing to agree with
        raise ValueError(
            f"objective.num_global={num_global} and num_local={num_local}: want 2 views or more in all"
        )


def shared_space(projectors: PerStream[Any]) -> SharedSpace | None:
    """Return the space that the projectors of several streams lead into; None for the projector of one stream."""
    return SharedSpace(dict(projectors.items())) if len(projectors) > 1 else None


def project(
    encoders: EncodeFunction,
    projectors: Mapping[str, nn.Module] | PerStream[Any],
    batch: Sequence[Views],
    apart: bool = False,
) -> Tensor:
    """Every view of `batch` encoded, pooled and projected: [V, B, P] in fp32, V over all items of the batch."""
    features = encoders.encode(batch)
    parts = [
        head(projectors[v.stream], f.pooled, v.num_views, apart, v.present_rows)
        for v, f in zip(batch, features, strict=True)
    ]
    return torch.cat(parts)


def head(
    module: nn.Module, x: Tensor, num_views: int, apart: bool = False, keep: Tensor | None = None
) -> Tensor:
    """A head on the rows x [V*B, D] of V views: [V, B, P] in fp32, or wider.

    `apart` calls it once per view, so that batch norm takes each view's own statistics (VICReg, BYOL, MoCo v3);
    otherwise they span all views (SimCLR, SwAV). Rows outside `keep` (bool [V*B]) have no part in them.
    """
    calls = num_views if apart else 1
    if keep is None:
        parts = [module(rows) for rows in x.chunk(calls)]
    else:
        parts = [module(*rows) for rows in zip(x.chunk(calls), keep.chunk(calls), strict=True)]
    return at_least_fp32(torch.cat(parts)).unflatten(0, (num_views, -1))


def project_together(
    encoders: EncodeFunction, projectors: Mapping[str, nn.Module] | PerStream[Any], batch: Sequence[Views]
) -> Tensor:
    """Every view of `batch` encoded, pooled and projected: [V, B, P] in fp32, V over all items of the batch.

    A projector is called once for the views of all roles of its stream, so that batch norm's statistics span them.
    """
    features = encoders.encode(batch)
    parts = []
    for stream in dict.fromkeys(v.stream for v in batch):
        mine = [(v, f) for v, f in zip(batch, features, strict=True) if v.stream == stream]
        pooled = torch.cat([f.pooled for _, f in mine])
        here = None if mine[0][0].present is None else torch.cat([_rows(v) for v, _ in mine])
        parts.append(head(projectors[stream], pooled, sum(v.num_views for v, _ in mine), keep=here))
    return torch.cat(parts)


def _rows(views: Views) -> Tensor:
    rows = views.present_rows
    assert rows is not None, "the views of a stream are all of the same samples"
    return rows


def one_by_one(views: Views) -> list[Views]:
    """V views as V items of one view each, without masks and targets."""
    cut = {n: getattr(views, n) for n in ("x", "valid", "condition")}
    return [
        replace(
            views, num_views=1, masks=(), target=None, coords=None,
            **{n: t.chunk(views.num_views)[i] for n, t in cut.items() if t is not None},
        )
        for i in range(views.num_views)
    ]  # fmt: skip


def presence(batch: Batch) -> Tensor | None:
    """Which samples every view has, bool [V, B] with V over all items of the batch; None where nothing is missing."""
    if all(v.present is None for v in batch):
        return None
    whole = [torch.ones(v.batch, dtype=torch.bool, device=v.x.device) for v in batch]
    found = [w if v.present is None else v.present for v, w in zip(batch, whole, strict=True)]
    return torch.cat([f.expand(v.num_views, -1) for v, f in zip(batch, found, strict=True)])
