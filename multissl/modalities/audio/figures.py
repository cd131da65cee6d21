"""Pictures of sound for the report, and the classical features that learning has to beat.

Shapes: R rows, B samples, V views, T frames, F mel bins.  State: none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.learning import Figure

SAMPLES, WIDTH, HEIGHT, GAP = 6, 160, 80, 4
SCALE = ((0.05, 0.04, 0.20), (0.50, 0.12, 0.48), (0.93, 0.41, 0.30), (0.99, 0.90, 0.64))
"""Colors from soft to loud."""
HIDDEN, PADDING = (0.62, 0.66, 0.70), (1.0, 1.0, 1.0)
STEPS = 32
Grid = Callable[[int], tuple[int, int]]
"""From the frames of a view to its tokens along time and frequency."""


def colored(x: Tensor, padding: Tensor | None = None) -> Tensor:
    """Normalized log-mel [..., T, F] as colors 0 to 1, [..., 3, F, T], low sounds below; each row its own range.

    What is `padding`, bool [..., T, F], does not count for the range.
    """
    x = x.detach().float().cpu()
    real = x if padding is None else x.masked_fill(padding, torch.nan)
    low = real.flatten(-2).nanquantile(0.02, -1)[..., None, None]
    high = real.flatten(-2).nanquantile(0.995, -1)[..., None, None]
    level = ((x - low) / (high - low).clamp(min=1e-6)).clamp(0, 1) * (len(SCALE) - 1)
    first = level.long().clamp(max=len(SCALE) - 2)
    table = torch.tensor(SCALE)
    colors = table[first] + (level - first)[..., None] * (table[first + 1] - table[first])
    return colors.movedim(-1, -3).transpose(-1, -2).flip(-2)


def drawn(x: Tensor) -> np.ndarray:
    """Spectrograms [R, T, F] as pictures, uint8 [R, F, T, 3]."""
    return _bytes(colored(x))


def sound_panel(batch: Sequence[Views], grid: Grid) -> list[Figure]:
    """One figure with the views of the first samples, or none without views."""
    if not batch:
        return []
    whole = [replace(v, masks=()) for v in batch if v.mask is not None]  # beside what is left of them
    columns = [tile for views in [*whole, *batch] for tile in _tiles(views, grid)]
    framed = [F.pad(c, (GAP, GAP, GAP, GAP), value=1.0) for c in columns]
    page = torch.cat([torch.cat(list(line), 2) for line in zip(*framed, strict=True)], 1)  # [3, H, W]
    parts = [
        "Each line is one recording: time runs to the right, low sounds lie below, bright is loud.",
    ]
    names = {"clean": "the recording as it is", "global": "changed view", "local": "short changed view"}
    shown = [f"{v.num_views} x {names[v.role]}" if v.num_views > 1 else names[v.role] for v in batch]
    before = ["the sound as a whole"] if whole else []
    parts.append(f"From left to right: {', '.join(before + shown)}.")
    if any(v.role != "clean" for v in batch):
        parts.append("Views are cut, shifted, made noisier; flat stripes, if any, were wiped out.")
    if any(v.mask is not None for v in batch):
        parts.append("Gray tiles are hidden from the encoder that learns; it has to say what belongs there.")
    if any(v.valid is not None and not bool(v.valid.all()) for v in batch):
        parts.append("White ends are padding of short recordings, which nothing looks at.")
    return [Figure("What the encoder is shown", _bytes(page), " ".join(parts))]


def _tiles(views: Views, grid: Grid) -> list[Tensor]:
    """Views of the first samples, by view [b, 3, HEIGHT, width]; local views are narrower."""
    x = views.x[:, 0].unflatten(0, (views.num_views, -1))[:, :SAMPLES]  # [V, b, T, F]
    frames, bins = x.shape[2:]

    def fine(tokens: Tensor) -> Tensor:  # [R, N] to [V, b, T, F], each place by the token that is nearest
        some = tokens.cpu().unflatten(0, (views.num_views, -1))[:, :SAMPLES].unflatten(-1, grid(frames))
        return F.interpolate(some.float(), size=(frames, bins), mode="nearest").bool()

    padding = None if views.valid is None else fine(~views.valid)
    shown = colored(x, padding)
    for tiles, color in ((fine(views.mask.hidden) if views.mask else None, HIDDEN), (padding, PADDING)):
        if tiles is not None:
            turned = tiles.transpose(-1, -2).flip(-2)[:, :, None]  # [V, b, 1, F, T]
            shown = torch.where(turned, torch.tensor(color)[:, None, None], shown)
    width = WIDTH if views.role != "local" else WIDTH // 2
    return [F.interpolate(v, size=(HEIGHT, width), mode="nearest") for v in shown]


def _bytes(x: Tensor) -> np.ndarray:
    return (x.movedim(-3, -1) * 255).round().to(torch.uint8).numpy()


def mel_floor(views: Views) -> Tensor:
    """The spectrogram averaged to at most 32 steps of time, [R, 32*F]."""
    x = views.x[:, 0].float()  # [R, T, F]
    return (F.adaptive_avg_pool2d(x, (STEPS, x.shape[2])) if x.shape[1] > STEPS else x).flatten(1)


def statistics_floor(views: Views, grid: Grid) -> Tensor:
    """Mean and deviation of each mel bin over the real frames, [R, 2*F]."""
    x = views.x[:, 0].float()  # [R, T, F]
    weight = torch.ones_like(x[:, :, :1])
    if views.valid is not None:
        columns = views.valid.unflatten(1, grid(x.shape[1]))[:, None, :, 0].float()  # [R, 1, T']
        weight = F.interpolate(columns, size=x.shape[1], mode="nearest").mT  # [R, T, 1]
    weight = weight / weight.sum(1, keepdim=True)
    mean = (x * weight).sum(1)
    return torch.cat([mean, ((x - mean[:, None]).pow(2) * weight).sum(1).sqrt()], 1)
