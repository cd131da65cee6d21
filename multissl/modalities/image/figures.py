"""The picture of a batch of image views for the report: one line per sample, hidden patches grayed.

Shapes: B samples, V views, C channels, H, W pixels.  State: none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.learning import Figure

SAMPLES, TILE, GAP = 6, 96, 4


def crop_panel(
    batch: Sequence[Views], mean: tuple[float, ...], std: tuple[float, ...], patch: int
) -> list[Figure]:
    """One figure with the views of the first samples, or none without views."""
    views = [v for v in batch if v.x.dim() == 4]
    if not views:
        return []
    columns = [tile for v in views for tile in _tiles(v, mean, std, patch)]  # each [b, 3, TILE, TILE]
    framed = [F.pad(c, (GAP, GAP, GAP, GAP), value=1.0) for c in columns]
    page = torch.cat([torch.cat(list(line), 2) for line in torch.stack(framed, 1)], 1)  # [3, H, W]
    return [Figure("What the encoder is shown", to_bytes(page), _caption(views))]


def _tiles(views: Views, mean: tuple[float, ...], std: tuple[float, ...], patch: int) -> list[Tensor]:
    """The views of the first samples as colors 0 to 1, by view [b, 3, TILE, TILE]; small crops stay smaller."""
    x = colors(views.x, mean, std).unflatten(0, (views.num_views, -1))[:, :SAMPLES]  # [V, b, 3, H, W]
    if views.mask is not None:
        grid = (x.shape[-2] // patch, x.shape[-1] // patch)
        hidden = views.mask.hidden.cpu().unflatten(0, (views.num_views, -1))[:, :SAMPLES]
        hidden = hidden.unflatten(-1, grid).repeat_interleave(patch, -1).repeat_interleave(patch, -2)
        x = torch.where(hidden[:, :, None], 0.5 + 0.15 * (x - 0.5), x)
    side = TILE if views.role != "local" else TILE * 7 // 10
    longest = max(x.shape[-2:])
    high, wide = (max(side * n // longest, 1) for n in x.shape[-2:])
    resized = [F.interpolate(v, size=(high, wide), mode="area" if longest > side else "nearest") for v in x]
    below = (TILE - high) // 2
    return [F.pad(v, (0, TILE - wide, below, TILE - high - below), value=1.0) for v in resized]


def colors(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalized images [R, C, H, W] as RGB, values 0 to 1, on the CPU; three channels or one are shown."""
    x = x.detach().float().cpu()
    x = (x * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]).clamp(0, 1)
    return x[:, :3] if x.shape[1] >= 3 else x[:, :1].expand(-1, 3, -1, -1)


def to_bytes(x: Tensor) -> np.ndarray:
    """RGB [..., 3, H, W], values 0 to 1, as uint8 [..., H, W, 3]."""
    return (x.movedim(-3, -1) * 255).round().to(torch.uint8).numpy()


def _caption(views: Sequence[Views]) -> str:
    parts = ["Each line is one picture of the training set, seen several times."]
    roles = {v.role: v for v in views}
    if "clean" in roles:
        parts.append("The untouched picture stands first.")
    if "global" in roles:
        parts.append(
            "Large tiles are cut from most of the picture, with colors, blur and mirror image drawn at random."
        )
        if roles["global"].mask is not None:
            parts.append(
                "Grayed squares are hidden from the encoder that learns; it has to say what belongs there."
            )
    if "local" in roles:
        parts.append("Small tiles show a detail, which has to be recognized as part of the same picture.")
    return " ".join(parts)
