"""From grids to tokens: patches by one linear, or a convolutional stem in its place.

Patches: Dosovitskiy et al., arXiv 2010.11929; the stem: Xiao et al., arXiv 2106.14881.
Shapes: R rows, C channels, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""By the number of axes of a grid, less one."""


class Patches(nn.Module):
    """Patches by one linear, held as the convolution that published weights are stored as."""

    def __init__(self, channels: int, dim: int, patch: Sequence[int], stride: Sequence[int] = ()) -> None:
        super().__init__()
        self.patch, self.overlap = tuple(patch), bool(stride)
        self.proj = CONVOLUTIONS[len(patch) - 1](channels, dim, self.patch, tuple(stride) or self.patch)

    def forward(self, x: Tensor) -> Tensor:
        """[R, C, *space] to [R, *grid, D]."""
        if self.overlap:
            return self.proj(x).movedim(1, -1)
        # One matrix product over cut patches: a convolution with stride = kernel is slow for few channels.
        for axis, size in enumerate(self.patch):
            x = x.unflatten(2 + 2 * axis, (-1, size))  # [R, C, n1, p1, n2, p2, ...]
        axes = len(self.patch)
        grid, inside = [2 + 2 * a for a in range(axes)], [3 + 2 * a for a in range(axes)]
        x = x.permute(0, *grid, 1, *inside).flatten(1 + axes)  # [R, *grid, C * p1 * p2 ...]
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class ConvStem(nn.Module):
    """3-wide convolutions of stride 2 with norm and GELU, then one over what is left of the patch."""

    def __init__(self, channels: int, dim: int, patch: Sequence[int]) -> None:
        super().__init__()
        convolution, strides, left = CONVOLUTIONS[len(patch) - 1], [], tuple(patch)
        while any(n % 2 == 0 for n in left):
            strides.append(tuple(2 - n % 2 for n in left))
            left = tuple(n // s for n, s in zip(left, strides[-1], strict=True))
        if not strides:
            raise ValueError(
                f"conv_stem=True halves even patches, this stream's is {tuple(patch)}: leave it off"
            )
        self.stem = nn.Sequential()
        for stage, stride in enumerate(strides, start=1):
            width = max(dim >> (len(strides) - stage), 8)
            self.stem.add_module(f"conv{stage}", convolution(channels, width, 3, stride, 1, bias=False))
            self.stem.add_module(f"norm{stage}", nn.GroupNorm(1, width))
            self.stem.add_module(f"gelu{stage}", nn.GELU())
            channels = width
        self.proj = convolution(channels, dim, left, left)

    def forward(self, x: Tensor) -> Tensor:
        """[R, C, *space] to [R, *grid, D]."""
        return self.proj(self.stem(x)).movedim(1, -1)
