"""Pictures in memory as clean views: values 0 to 1, normalized by channel. Video and RL frames begin the same way.

A picture that has the size of the modality is read as `Image.collate` reads it; others are the caller's to resize, as
encoders read several sizes.
Shapes: B pictures, C channels, H, W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multissl.contract.preparation import Constants, FreeAxis, Preparation
from multissl.modalities.image.crops import pair

WHITE = 255


def check_shape(x: Tensor, axes: int, channels: int, reads: str) -> None:
    """Raise a ValueError where a tensor has other axes or channels than the module reads."""
    if x.ndim != axes or x.shape[1] != channels:
        raise ValueError(f"a tensor of shape {tuple(x.shape)}: this module reads {reads}")


def shares(x: Tensor) -> Tensor:
    """Return bytes as shares of white, 0 to 1; floats are shares already."""
    return torch.div(x, WHITE) if x.dtype == torch.uint8 else x.float()


def pattern(shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of values 0 to 1 that repeat late, float32 of a shape; the same every time."""
    return (torch.arange(math.prod(shape), dtype=torch.float64) * 0.61803398875 % 1).float().view(shape)


@dataclass(kw_only=True)
class PixelPreparation(Preparation):
    """Pictures [B, C, H, W] or clips [B, C, T, H, W]."""

    shape: tuple[int, ...]
    """(C, *space) of the stream."""

    def __call__(self, x: Tensor, mask: Tensor | None, constants: Constants) -> tuple[Tensor, Tensor | None]:
        """Normalize."""
        check_shape(x, 1 + len(self.shape), self.shape[0], self.reads)
        each = (-1, *[1] * (len(self.shape) - 1))
        x = (shares(x) - constants["mean"].view(each)) / constants["std"].view(each)
        return x, None

    def example(self, rows: int, other: bool = False) -> tuple[Tensor, ...]:
        """Return a pattern; the other size is larger, and no square."""
        longer = {a.axis: (number + 1) * a.step for number, a in enumerate(self.free_axes)} if other else {}
        return (pattern((rows, *(n + longer.get(i, 0) for i, n in enumerate(self.shape, start=1)))),)


def preparation_of(cfg: Any, mean: Sequence[float], std: Sequence[float]) -> PixelPreparation:
    """Return the preparation of pictures under the options of `Image`."""
    height, width = pair(cfg.size)
    return PixelPreparation(
        reads=f"pictures [B, {cfg.channels}, {height}, {width}], uint8 or values 0 to 1",
        constants={"mean": torch.tensor(mean), "std": torch.tensor(std)},
        free_axes=(
            FreeAxis(axis=2, name="height", step=cfg.patch, least=cfg.patch),
            FreeAxis(axis=3, name="width", step=cfg.patch, least=cfg.patch),
        ),
        shape=(cfg.channels, height, width),
    )
