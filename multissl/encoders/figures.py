"""Pictures of what a transformer sees: its tokens as colors, its attention as light.

The colors are the first three principal components of the tokens of all pictures together, as in DINOv2
(arXiv 2304.07193, figure 1).
Shapes: R pictures, C channels of 1 or 3, N tokens on a grid h x w, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.learning import Figure

SIDE = 112
"""Pictures are enlarged to about this many pixels."""


def draw(x: Tensor, tokens: Tensor, weights: Tensor, patch: Sequence[int]) -> list[Figure]:
    """Both figures of pictures [R, C, *space], their tokens [R, N, D] and attention [R, H, N].

    A grid that is not square is no photograph but has time as its first axis: it is turned to run to the right.
    """
    if x.shape[2] != x.shape[3]:
        grid = [n // p for n, p in zip(x.shape[2:], patch, strict=True)]
        tokens = tokens.unflatten(1, grid).rot90(1, (1, 2)).flatten(1, 2)
        weights = weights.unflatten(2, grid).rot90(1, (2, 3)).flatten(2)
        x, patch = x.rot90(1, (2, 3)), patch[::-1]
    return [token_panel(x, tokens, patch), attention_panel(x, weights, patch)]


def token_panel(x: Tensor, tokens: Tensor, patch: Sequence[int]) -> Figure:
    """Pictures [R, C, *space] above the principal components of their tokens [R, N, D]."""
    flat = tokens.float().flatten(0, 1)
    flat = flat - flat.mean(0)
    _, axes = torch.linalg.eigh(flat.T @ flat)  # ascending
    axes = axes[:, -3:].flip(1)  # [D, up to 3]
    # The sign of a component is arbitrary: fix it, so that reports of one run can be compared.
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    colors = F.pad(flat @ axes, (0, 3 - axes.shape[1])).unflatten(0, tokens.shape[:2])  # [R, N, 3]
    low, high = colors.flatten(0, 1).quantile(torch.tensor([0.02, 0.98], device=x.device), dim=0)
    colors = (colors - low) / (high - low).clamp(min=1e-6)
    image = _tiles([_pictures(x), _enlarge(_on_grid(colors.mT, x, patch), x.shape[2:])])
    return Figure(
        "Patch tokens", image, "The first three principal components of the tokens, joint over the pictures."
    )


def attention_panel(x: Tensor, weights: Tensor, patch: Sequence[int]) -> Figure:
    """Pictures [R, C, *space] above the class token's attention [R, H, N], one row per head."""
    light = weights.float() / weights.float().amax(2, keepdim=True).clamp(min=1e-12)  # [R, H, N]
    heads = _on_grid(light, x, patch).unbind(1)  # H times [R, h, w]
    image = _tiles([_pictures(x), *(_enlarge(h[:, None].expand(-1, 3, -1, -1), x.shape[2:]) for h in heads)])
    return Figure("Attention of the class token", image, "Last block, one row per head, brightest token = 1.")


def _on_grid(values: Tensor, x: Tensor, patch: Sequence[int]) -> Tensor:
    """[R, K, N] to [R, K, h, w], the grid of the tokens of pictures [R, C, *space]."""
    return values.unflatten(2, [n // p for n, p in zip(x.shape[2:], patch, strict=True)])


def _pictures(x: Tensor) -> Tensor:
    """Normalized pictures to [0, 1], each by its own range, in three channels and enlarged."""
    flat = x.float().flatten(1)
    low, high = flat.amin(1)[:, None, None, None], flat.amax(1)[:, None, None, None]
    return _enlarge(((x.float() - low) / (high - low).clamp(min=1e-6)).expand(-1, 3, -1, -1), x.shape[2:])


def _enlarge(pictures: Tensor, size: Sequence[int]) -> Tensor:
    """[R, 3, h, w] to a whole multiple of `size` without smoothing."""
    factor = max(1, SIDE // max(size))
    return F.interpolate(pictures, size=[n * factor for n in size], mode="nearest")


def _tiles(rows: Sequence[Tensor]) -> np.ndarray:
    """Rows of pictures [R, 3, h, w] in [0, 1] as one uint8 picture with white gaps."""
    padded = [F.pad(row, (1, 1, 1, 1), value=1.0) for row in rows]
    image = torch.cat([torch.cat(list(row), dim=2) for row in padded], dim=1)  # [3, H, W]
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
