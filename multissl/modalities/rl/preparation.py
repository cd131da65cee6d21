"""Stacks of frames in memory as clean views: their middle, normalized; or stacks of numbers, standardized.

Shapes: B stacks, k frames of a stack, C = k or 3k channels, F pixels of a frame's side, N numbers of an observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multissl.contract.preparation import Constants, Preparation
from multissl.modalities.image.preparation import WHITE, check_shape, pattern, shares


@dataclass(kw_only=True)
class StackPreparation(Preparation):
    """Stacks [B, C, F, F] of any side from that of a view on, of which the middle is read."""

    stack: int
    channels: int
    """C."""
    size: int
    side: int
    """F of the frames that the run was trained on."""
    subtract: bool = False
    """Whether the mean frame is subtracted: that of the stack, as a stack alone has no other."""

    def __call__(self, x: Tensor, mask: Tensor | None, constants: Constants) -> tuple[Tensor, Tensor | None]:
        """Cut the middle and normalize."""
        check_shape(x, 4, self.channels, self.reads)
        if self.subtract:
            frames = x.float() if x.dtype == torch.uint8 else (x * WHITE).round()
            frames = frames.unflatten(1, (self.stack, -1))
            mean = frames.mean(1, keepdim=True).trunc()
            x = torch.div(frames - mean + WHITE, 2, rounding_mode="floor").flatten(1, 2) / WHITE
        top, left = ((side - self.size) // 2 for side in x.shape[2:])
        x = shares(x)[:, :, top : top + self.size, left : left + self.size]
        return (x - constants["mean"]) / constants["std"], None

    def example(self, rows: int, other: bool = False) -> tuple[Tensor, ...]:
        """Return a pattern."""
        return (pattern((rows, self.channels, self.side, self.side)),)


@dataclass(kw_only=True)
class NumbersPreparation(Preparation):
    """Stacks of observations that are numbers [B, k, N]."""

    stack: int
    columns: tuple[str, ...]
    """Names of the N numbers."""
    subtract: bool = False
    """Whether the mean of the stack is subtracted."""

    def __call__(self, x: Tensor, mask: Tensor | None, constants: Constants) -> tuple[Tensor, Tensor | None]:
        """Standardize each number; the oldest observation comes first."""
        if tuple(x.shape[1:]) != (self.stack, len(self.columns)):
            raise ValueError(f"got a tensor of shape {tuple(x.shape)}: want {self.reads}")
        x = x.to(constants["mean"].dtype)
        if self.subtract:
            x = x - x.mean(1, keepdim=True)
        return ((x - constants["mean"]) / constants["std"]).flatten(1), None

    def example(self, rows: int, other: bool = False) -> tuple[Tensor, ...]:
        """Return a pattern."""
        return (pattern((rows, self.stack, len(self.columns))).float(),)

    def describe(self) -> dict[str, Any]:
        """Return what the input is, and the name of each number."""
        return {"input": self.reads, "columns": list(self.columns)}


def preparation_of(cfg: Any, fitted: Mapping[str, Any]) -> StackPreparation | NumbersPreparation:
    """Return the preparation of stacks under the options of `RL`, by what was measured of the training data."""
    if "columns" in fitted:
        columns = tuple(fitted["columns"])
        return NumbersPreparation(
            reads=f"stacks of observations [B, {cfg.stack}, {len(columns)}], the oldest first: {', '.join(columns)}",
            constants={name: torch.tensor(fitted[name]) for name in ("mean", "std")},
            stack=cfg.stack,
            columns=columns,
            subtract=cfg.subtract == "episode",
        )
    channels, side = cfg.stack * cfg.channels, cfg.frame or cfg.size
    return StackPreparation(
        reads=f"stacks of frames [B, {channels}, {side}, {side}], the oldest first, uint8 or values 0 to 1",
        constants={name: torch.tensor(float(fitted[name])) for name in ("mean", "std")},
        stack=cfg.stack,
        channels=channels,
        size=cfg.size,
        side=side,
        subtract=cfg.subtract == "episode",
    )
