"""Masks carried through a film by the likeness of patches (DAVIS).

DINO's `eval_video_segmentation.py` (Caron et al. 2021, arXiv 2104.14294, section 4.2.2, after Jabri et al. 2020, arXiv
2006.14613): each patch of a frame takes the masks of its most similar patches in the first frame and the last few.
Shapes: T frames of a grid h x w, N = h*w patches, D width, C objects (the background is one), M frames of context.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def propagate(
    features: Tensor,
    first: Tensor,
    *,
    frames: int = 7,
    radius: int = 12,
    neighbors: int = 5,
    temperature: float = 0.1,
) -> Iterator[Tensor]:
    """Yield soft masks [C, h, w] of every later frame, from features [T, N, D] and those of the first one.

    Context is the first frame and the last `frames` ones, whose masks stay soft; a patch looks `radius` patches far in
    each direction (0: everywhere).
    """
    _, height, width = first.shape
    unit = F.normalize(features, dim=2)
    window = neighborhood(height, width, radius, features.device) if radius else None
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=frames)
    for target in unit[1:]:
        context = [(unit[0], first), *recent]
        sources, masks = torch.stack([f for f, _ in context]), torch.stack([m for _, m in context])
        mask = spread_masks(target, sources, masks, window, neighbors, temperature)
        recent.append((target, mask))
        yield mask


def neighborhood(height: int, width: int, radius: int, device: torch.device) -> Tensor:
    """Return whether two patches lie at most `radius` rows and columns apart: bool [N, N]."""
    row, column = (
        t.flatten()
        for t in torch.meshgrid(
            torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
        )
    )
    near_rows = (row[:, None] - row).abs() <= radius
    return near_rows & ((column[:, None] - column).abs() <= radius)


def spread_masks(
    target: Tensor, sources: Tensor, masks: Tensor, window: Tensor | None, neighbors: int, temperature: float
) -> Tensor:
    """Return masks [C, h, w] of a frame [N, D] from those [M, C, h, w] of its context [M, N, D], unit features."""
    weight = (sources @ target.T / temperature).exp()  # [M, N of the source, N of the target]
    if window is not None:
        weight = weight * window
    weight = weight.flatten(0, 1)
    least = weight.topk(min(neighbors, len(weight)), dim=0).values[-1]
    weight = weight.masked_fill(weight < least, 0)
    weight = weight / weight.sum(0)
    flat = masks.transpose(0, 1).flatten(1)  # [C, M * N]
    return (flat @ weight).unflatten(1, masks.shape[2:])


def sharpen(mask: Tensor, patch: int) -> Tensor:
    """Return the object of every pixel, int64 [patch * h, patch * w], from a soft mask [C, h, w].

    Channels are enlarged bilinearly and stretched to 0..1 each, where they are not empty.
    """
    large = F.interpolate(mask[None], scale_factor=patch, mode="bilinear", align_corners=False)[0]
    low = large.amin((1, 2), keepdim=True)
    high = large.amax((1, 2), keepdim=True)
    stretched = (large - low) / (high - low).clamp(min=torch.finfo(large.dtype).tiny)
    return torch.where(high > 0, stretched, large).argmax(0)
