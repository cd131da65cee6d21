"""Tables resampled by matrices: what `torch.nn.functional.interpolate` gives, without a branch on sizes.

An exported program has one path for all sizes, and other runtimes interpolate by conventions of their own. Here the
weights of the old places for each new one are computed in the program, along one axis after another; a table that keeps
its grid has weights of 0 and 1, so it stays what it is. Coordinates are torch's for align_corners=False; the cubic's
constant is -0.75, with antialias -0.5 as Pillow's.
Shapes: N tokens of a grid, row-major, D width, o old and n new places along an axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SHARP, SMOOTH = -0.75, -0.5
"""Constants of the cubic without and with antialias."""


def resample_any(
    table: Tensor,
    old: Sequence[int],
    new: Sequence[int],
    offset: float,
    antialias: bool,
    prefix: int,
    mode: str,
) -> Tensor:
    """Return a table [1, prefix+prod(old), D] on another grid, as `positions.resample` does."""
    places = [torch.arange(n, dtype=torch.float32, device=table.device) for n in new]
    counts = [torch.ones_like(place).sum() for place in places]
    same = [count == o for count, o in zip(counts, old, strict=True)]
    if (
        mode == "bicubic" and not antialias
    ):  # it alone moves an axis that keeps its length beside one that does not
        same = [torch.stack(same).all()] * len(same)
    grid = table[0, prefix:].float().unflatten(0, tuple(old))  # [*old, D]
    for axis, (place, count, o, kept) in enumerate(zip(places, counts, old, same, strict=True)):
        ratio = torch.where(kept, torch.ones_like(count), o / (count + offset))
        weights = weights_along(place, ratio, o, mode, antialias)  # [n, o]
        grid = (weights @ grid.movedim(axis, -2)).movedim(-2, axis)
    return torch.cat([table[:, :prefix], grid.flatten(0, -2)[None].to(table.dtype)], dim=1)


def weights_along(place: Tensor, ratio: Tensor, old: int, mode: str, antialias: bool) -> Tensor:
    """Return the weights [n, o] of `old` places for new ones [n], each `ratio` old ones apart."""
    at = torch.arange(old, dtype=torch.float32, device=place.device)  # [o]
    cubic = mode == "bicubic"
    if antialias:
        apart = (at + 0.5 - ratio * (place[:, None] + 0.5)) / ratio.clamp(min=1)
        weights = cubic_weight(apart, SMOOTH) if cubic else (1 - apart.abs()).clamp(min=0)
        return weights / weights.sum(1, keepdim=True)
    source = ratio * (place + 0.5) - 0.5  # [n]
    source = source if cubic else source.clamp(min=0)
    first = source.floor()
    weights = torch.zeros_like(place)[:, None] * at
    for step in (-1, 0, 1, 2) if cubic else (0, 1):
        apart = source - (first + step)
        weight = cubic_weight(apart, SHARP) if cubic else 1 - apart.abs()
        beyond = (first + step).clamp(0, old - 1)  # edges are repeated
        weights = weights + weight[:, None] * (beyond[:, None] == at)
    return weights


def cubic_weight(apart: Tensor, constant: float) -> Tensor:
    """Return the weight of a place so far from where a value is wanted (Keys 1981)."""
    x, a = apart.abs(), constant
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
