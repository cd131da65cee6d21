"""What is drawn on the host for views of frames or numbers, and how they are made on their device.

Shapes: V views, R = V*B rows stacked view-major, C channels, F pixels per side of a frame, N numbers of an observation,
k observations of a stack.  State: none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multissl.contract.data import Batch, Role, Views
from multissl.contract.plans import ViewPlan
from multissl.modalities.image.crops import pair, patchify, token_centers
from multissl.modalities.rl.vectors import measured
from multissl.modalities.views import build_views, draw_roles, rand_rows, view_major
from multissl.random import RowRandom


def draw_moves(cfg: Any, views: int, room: int, rng: RowRandom) -> dict[str, Tensor]:
    """Return where views are cut and how bright they become: "place" int64 [R, 2] and "factor" float32 [R].

    `room` is by how much a frame's side exceeds a view's; a place is its top and left, less than 0 outside.
    """
    reach = room + 2 * cfg.shift + 1
    place = (rand_rows(rng.fork("shift"), views, 2) * reach).long().clamp(max=reach - 1) - cfg.shift
    moved = view_major(rng.fork("shift chance").hit(cfg.shift_chance, views))
    return {"place": torch.where(moved[:, None], place, room // 2), **draw_light(cfg, views, rng)}


def draw_light(cfg: Any, views: int, rng: RowRandom) -> dict[str, Tensor]:
    """Return how bright views become, or by what numbers are multiplied: "factor" float32 [R]."""
    light = view_major(rng.fork("intensity").randn(views)).clamp(-2, 2)
    return {"factor": 1 + cfg.intensity * light}


def still(rows: int, room: int) -> dict[str, Tensor]:
    """Return what `draw_moves` does for clean views: the middle of a frame, as bright as it is."""
    return {"place": torch.full((rows, 2), room // 2), "factor": torch.ones(rows)}


def cut(stacks: Tensor, place: Tensor, size: int, pad: int) -> Tensor:
    """Return a crop of each of the stacks [R, C, F, F], uint8 [R, C, size, size].

    place int64 [R, 2] is its top and left. Up to `pad` pixels outside the edges are repeated.
    """
    steps = torch.arange(size, device=stacks.device)
    last = stacks.shape[-1] - 1
    rows, columns = ((place[:, i, None].clamp(min=-pad) + steps).clamp(0, last) for i in (0, 1))  # [R, size]
    r, c = len(stacks), stacks.shape[1]
    picked = stacks.gather(2, rows[:, None, :, None].expand(r, c, size, stacks.shape[-1]))
    return picked.gather(3, columns[:, None, None].expand(r, c, size, size))


def near(moments: list[tuple[int, int]], gap: int, span: int) -> Tensor:
    """Groups in which frames are not negatives of each other, int64 [B, 2]: equal in either column means near.

    The columns are windows of twice the reach (gap and span of the views), one moved by half: any two frames of an
    episode closer than the reach share a window of one of them. gap < 0: the episode is one group.
    """
    episode, t = torch.tensor(moments).T  # [B]
    if gap < 0:
        return episode[:, None].expand(-1, 2).contiguous()
    reach = gap + span
    windows = torch.stack([t, t + reach], 1) // (2 * reach)  # [B, 2]
    return episode[:, None] * 2**32 + windows


def statistics_of(seen: np.ndarray, columns: Sequence[str]) -> dict[str, Any]:
    """Return mean and deviation of pixels, or of each number of rows float32 [S, N] with the names of their columns."""
    if columns:
        return {**measured(seen), "columns": list(columns)}
    pixels = seen / 255
    return {"mean": float(pixels.mean()), "std": max(float(pixels.std()), 1e-3)}


def picture_views(
    raw: Mapping[str, Any], plan: ViewPlan, cfg: Any, fitted: Mapping[str, Any], rng: RowRandom
) -> Batch:
    """Shift, crop, intensity and normalization of stacks [R, C, F, F]; draws go to their device in one copy."""
    sides: dict[Role, int] = {"clean": cfg.size, "global": cfg.size, "local": cfg.local_size}

    def draw(role: Role, count: int, rng: RowRandom) -> dict[str, Tensor]:
        """Where so many views of a role are cut from their stacks, and how bright they become."""
        rows, room = len(raw[role]), raw[role].shape[-1] - sides[role]
        return still(rows, room) if role == "clean" else draw_moves(cfg, count, room, rng)

    batch: list[Views] = []
    for role, drawn in draw_roles(plan, raw, rng, draw).items():
        stacks, size = raw[role], sides[role]
        place, factor = drawn["place"], drawn["factor"]
        x = cut(stacks, place, size, cfg.shift).float() / 255
        x = (x * factor[:, None, None, None] - fitted["mean"]) / fitted["std"]
        views = build_views(x, "rl", role, raw)
        if plan.coords and role != "clean":
            side = torch.full_like(place, size)
            boxes = torch.cat([place, side], 1) / stacks.shape[-1]
            flipped = torch.zeros_like(factor, dtype=torch.bool)
            views.coords = token_centers(boxes, pair(size // cfg.patch), flipped)
        if role == "global":
            views.condition = raw.get("condition")
            views.target = patchify(x, cfg.patch) if plan.target else None
        batch.append(views)
    return Batch(batch)


def number_views(
    raw: Mapping[str, Any], plan: ViewPlan, cfg: Any, fitted: Mapping[str, Any], rng: RowRandom
) -> Batch:
    """Standardize stacks of numbers [R, k*N] and multiply each view by a factor of its own."""

    def draw(role: Role, count: int, rng: RowRandom) -> dict[str, Tensor]:
        """By what so many views of a role are multiplied."""
        return {"factor": torch.ones(len(raw[role]))} if role == "clean" else draw_light(cfg, count, rng)

    batch: list[Views] = []
    for role, drawn in draw_roles(plan, raw, rng, draw).items():
        mean, std = (torch.tensor(fitted[name], device=raw[role].device) for name in ("mean", "std"))
        x = (raw[role].unflatten(1, (-1, len(mean))) - mean) / std
        x = x.flatten(1) * drawn["factor"][:, None]  # [R, k*N]
        views = build_views(x, "rl", role, raw)
        if role == "global":
            views.condition = raw.get("condition")
            views.target = x[..., None] if plan.target else None
        batch.append(views)
    return Batch(batch)
