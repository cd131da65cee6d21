"""What a worker notes of a batch and how views are put together of it: ids, roles, masks, packing. Once for all.

Shapes: B samples of this rank, V views, R = V*B rows stacked view-major, N tokens, M hidden ones of the batch.
State: none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multissl.contract.data import ROLES, Mask, Raw, Role, Sample, Samples, Views
from multissl.contract.plans import ViewPlan
from multissl.devices import copied
from multissl.random import RowRandom


class Payloads(Samples):
    """Payloads as samples."""

    def __init__(self, data: Sequence[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.data[index], index)


def roles(plan: ViewPlan, raw: Mapping[str, Any] | None = None) -> Iterator[tuple[Role, int]]:
    """Yield the roles that a plan asks for, and that `raw` holds, with their number of views, in the order of ROLES."""
    for role in ROLES:
        if plan.count(role) and (raw is None or role in raw):
            yield role, plan.count(role)


def draw_roles(
    plan: ViewPlan,
    raw: Mapping[str, Any],
    rng: RowRandom,
    draw: Callable[[Role, int, RowRandom], dict[str, Tensor]],
) -> dict[Role, dict[str, Tensor]]:
    """Return what is drawn on the host for each role of a raw batch, on the batch's device, where it goes in one copy.

    `draw` gets a role, its number of views and random numbers of the role's own on the CPU.
    """
    drawn: dict[Role, dict[str, Tensor]] = {
        role: draw(role, count, rng.fork(role).to("cpu")) for role, count in roles(plan, raw)
    }
    return copied(drawn, raw["sample_id"].device)


def ids_of(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Return `sample_id` and, where samples have groups, `group_id` of the views, int64 [B].

    A sample without a group gets one of its own, which no group number can be.
    """
    ids = {"sample_id": torch.tensor([s.index for s in samples])}
    if any(s.group >= 0 for s in samples):
        ids["group_id"] = group_ids([(s.group, s.index) for s in samples])
    return ids


def group_ids(pairs: Iterable[tuple[int, int]]) -> Tensor:
    """Return groups, int64 [B], from pairs of a group, -1 without one, and what is unique to a sample."""
    return torch.tensor([group if group >= 0 else -2 - unique for group, unique in pairs])


def with_masks(raw: Raw, masks: Iterable[Mask]) -> None:
    """Add masks to what a worker hands over, whole: `build_views` takes them out for the global views."""
    raw["masks"] = {str(number): mask for number, mask in enumerate(masks)}


def build_views(x: Tensor, stream: str, role: Role, raw: Mapping[str, Any]) -> Views:
    """Return the views x [R, ...] of a role with the ids and, of global views, the masks that a worker noted."""
    return Views(
        x=x,
        stream=stream,
        role=role,
        num_views=len(x) // len(raw["sample_id"]),
        masks=tuple(raw["masks"].values()) if role == "global" and "masks" in raw else (),
        sample_id=raw["sample_id"],
        group_id=raw.get("group_id"),
    )


def view_major(drawn: Tensor) -> Tensor:
    """Return what is drawn for each sample and view, [B, V, ...], as rows [R, ...]."""
    return drawn.transpose(0, 1).flatten(0, 1)


def rand_rows(rng: RowRandom, views: int, *shape: int) -> Tensor:
    """Return uniform numbers in [0, 1) for the rows of so many views, [R, *shape]."""
    return view_major(rng.rand(views, *shape))


def pack_masks(hidden: Tensor, size: int | None = None) -> Mask:
    """Return a `Mask` from hidden [R, N], its index padded to `size` (default: as many as are hidden)."""
    counts = hidden.sum(1)  # [R]
    index = hidden.flatten().nonzero().flatten()
    weight = (1.0 / counts.clamp(min=1)).repeat_interleave(counts).float()
    padding = (len(index) if size is None else size) - len(index)
    if padding < 0:
        raise ValueError(f"{len(index)} tokens are hidden, more than the {size} that fit")
    same = counts.numel() > 0 and bool((counts == counts[0]).all())
    return Mask(
        hidden=hidden,
        index=torch.nn.functional.pad(index, (0, padding)),
        weight=torch.nn.functional.pad(weight, (0, padding)),
        num_hidden=int(counts[0]) if same else None,
    )
