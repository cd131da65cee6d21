"""The picture of a batch of clips for the report: a strip of frames for each view, hidden tubes grayed.

Shapes: B samples, V views, R = V*B rows, C channels, T frames, S pixels per side.  State: none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.learning import Figure
from multissl.modalities.image.figures import to_bytes

SAMPLES, FRAMES, TILE, GAP = 3, 8, 64, 3
CAPTION = {
    "clean": "the untouched clip",
    "global": "long clips as the encoder sees them",
    "local": "short clips of a detail",
}


def clip_panel(
    batch: Sequence[Views], mean: Sequence[float], std: Sequence[float], patch: Sequence[int]
) -> list[Figure]:
    """One figure: for each of some samples the strips of all its views, time from left to right."""
    views = [v for v in batch if v.x.dim() == 5]
    if not views:
        return []
    width = FRAMES * (TILE + 2 * GAP)
    lines = []
    for b in range(min(SAMPLES, views[0].batch)):
        for v in views:
            for number in range(v.num_views):
                strip = _strip(v, number * v.batch + b, mean, std, patch)
                lines.append(F.pad(strip, (0, width - strip.shape[-1]), value=1.0))
        lines.append(torch.ones(3, 4 * GAP, width))
    roles = ", then ".join(CAPTION[v.role] for v in views)
    text = f"Each block is one video, each line one clip of it, time runs to the right: {roles}."
    if any(v.mask is not None for v in views):
        text += " Grayed places are hidden from the encoder that learns; where they stay over time they are tubes."
    return [Figure("What the encoder is shown", to_bytes(torch.cat(lines[:-1], 1)), text)]


def _strip(v: Views, row: int, mean: Sequence[float], std: Sequence[float], patch: Sequence[int]) -> Tensor:
    """One clip as a line of frames, values 0 to 1, [3, TILE + 2*GAP, W]."""
    x = pixels(v.x[row : row + 1], mean, std)[0]  # [3, T, S, S]
    if v.mask is not None:
        grid = [n // p for n, p in zip(x.shape[1:], patch, strict=True)]
        hidden = v.mask.hidden[row].cpu().reshape(grid)
        for axis, size in enumerate(patch):
            hidden = hidden.repeat_interleave(size, axis)
        x = torch.where(hidden, 0.5 + 0.15 * (x - 0.5), x)
    at = torch.linspace(0, x.shape[1] - 1, min(FRAMES, x.shape[1])).round().long()
    frames = x[:, at].movedim(1, 0)  # [T, 3, S, S]
    frames = F.interpolate(frames, (TILE, TILE), mode="area" if frames.shape[-1] > TILE else "nearest")
    return torch.cat([*F.pad(frames, (GAP, GAP, GAP, GAP), value=1.0)], -1)


def pixels(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalized clips [R, 3, T, S, S] as colors 0 to 1, on the CPU."""
    x = x.detach().float().cpu()
    scale, shift = (torch.tensor(v)[:, None, None, None] for v in (std, mean))
    return (x * scale + shift).clamp(0, 1)
