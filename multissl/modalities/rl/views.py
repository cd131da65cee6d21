"""What is drawn on the host for views of frames, and how they are cut on their device.

Shapes: V views, R = V*B rows stacked view-major, C channels, F pixels per side of a frame.  State: none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multissl.modalities.views import rand_rows, view_major
from multissl.random import RowRandom


def draw_moves(cfg: Any, views: int, room: int, rng: RowRandom) -> dict[str, Tensor]:
    """Return where views are cut and how bright they become: "place" int64 [R, 2] and "factor" float32 [R].

    `room` is by how much a frame's side exceeds a view's; a place is its top and left, less than 0 outside.
    """
    reach = room + 2 * cfg.shift + 1
    place = (rand_rows(rng.fork("shift"), views, 2) * reach).long().clamp(max=reach - 1) - cfg.shift
    moved = view_major(rng.fork("shift chance").hit(cfg.shift_chance, views))
    light = view_major(rng.fork("intensity").randn(views)).clamp(-2, 2)
    return {"place": torch.where(moved[:, None], place, room // 2), "factor": 1 + cfg.intensity * light}


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
