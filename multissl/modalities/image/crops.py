"""What an image shows, and how it is cut: random resized crops, the canonical center, patches.

Resizing is bicubic with antialias on uint8, equal to Pillow's up to rounding; a box is cut out before it is
resized.
Shapes: R rows, C channels, H, W pixels, N patches, T = C*p*p floats of a patch.  State:
none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.plans import ViewPlan

TRIES = 10
"""Draws of a random resized crop before the largest centered one is taken."""


def crop_box(
    height: int, width: int, draws: list[list[float]], scale: Sequence[float], ratio: Sequence[float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random resized crop; draws are up to ten tries of four uniform numbers.

    Where no try fits in the image, the largest centered crop of an allowed ratio.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area_draw, ratio_draw, top_draw, left_draw in draws:
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
        aspect = math.exp(low + (high - low) * ratio_draw)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1)), h, w
    h = min(height, max(1, round(width / ratio[0])))
    w = min(width, max(1, round(height * ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """A box of an image [C, H, W] at another size, bicubic with antialias, as Pillow would do it."""
    top, left, h, w = box
    part = image[None, :, top : top + h, left : left + w].contiguous(memory_format=torch.channels_last)
    if (h, w) == size:
        return part[0]
    resized = F.interpolate(part, size=size, mode="bicubic", antialias=True)[0]
    return resized.clamp_(0, 255) if image.is_floating_point() else resized


def put(raw: dict[str, Any], name: str, crop: Tensor, row: int, rows: int) -> None:
    """Put a crop [C, H, W] into a row of the tensor of a name, made with the first; one of floats makes it floats."""
    channels, *size = crop.shape
    if name not in raw:
        raw[name] = crop.new_empty(rows, *size, channels).permute(0, 3, 1, 2)
    if crop.is_floating_point() and not raw[name].is_floating_point():
        raw[name] = raw[name].float()
    raw[name][row] = crop


def size_of_plan(plan: ViewPlan, size: tuple[int, int], square: int) -> tuple[int, int]:
    """Return height and width of clean and global views in pixels: the plan's, where it asks, else the modality's."""
    if not plan.size:
        return size
    if len(plan.size) != 2 or any(side < square or side % square for side in plan.size):
        raise ValueError(
            f"a plan asks for images of size={plan.size}: want a height and a width that are multiples of the"
            f" {square} pixels of a token or mask square, such as {size}"
        )
    return (plan.size[0], plan.size[1])


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width of views whose side, or both, an option says."""
    return (size, size) if isinstance(size, int) else size


class Cut(NamedTuple):
    """How a clean view is made of an image: a box of it, at another size, and what is cut out of that."""

    box: tuple[int, int, int, int]
    """Top, left, height and width in pixels of the image."""
    resized: tuple[int, int]
    """What the box becomes."""
    corner: tuple[int, int]
    """Top and left of the view in it."""


def center_cut(height: int, width: int, size: tuple[int, int], zoom: float) -> Cut:
    """Return how the canonical view is made: as small as covers size * zoom, then the center."""
    if (height, width) == size:
        return Cut((0, 0, height, width), size, (0, 0))
    short = min(height, width)
    # a panorama is cut to 8:1 first: resized as a whole it could fill the memory
    h, w = min(height, 8 * short), min(width, 8 * short)
    high, wide = (round(side * zoom) for side in size)
    new = (high, high * w // h) if high * w >= wide * h else (wide * h // w, wide)
    corner = round((new[0] - size[0]) / 2), round((new[1] - size[1]) / 2)
    return Cut(((height - h) // 2, (width - w) // 2, h, w), new, corner)


def center(image: Tensor, size: tuple[int, int], zoom: float) -> Tensor:
    """The canonical view [C, *size] of an image [C, H, W]; one that has the size stays as it is."""
    _, height, width = image.shape
    if (height, width) == size:
        return image
    box, new, (top, left) = center_cut(height, width, size, zoom)
    return resize(image, box, new)[:, top : top + size[0], left : left + size[1]]


def cut_nearest(labels: Tensor, cut: Cut, size: tuple[int, int]) -> Tensor:
    """Return the labels [*size] of a view's pixels: each the one of [H, W] that its center lies on, never a mixture."""
    low, length, whole, first = cut.box[:2], cut.box[2:], cut.resized, cut.corner
    rows, columns = (
        low[i] + (torch.arange(first[i], first[i] + size[i]) * 2 + 1) * length[i] // (2 * whole[i])
        for i in (0, 1)
    )
    return labels[rows[:, None], columns]


def patchify(x: Tensor, patch: int) -> Tensor:
    """Images [R, C, H, W] as the values of their patches [R, N, T], in the order row, column, channel."""
    r, c, h, w = x.shape
    cut = x.reshape(r, c, h // patch, patch, w // patch, patch).permute(0, 2, 4, 3, 5, 1)
    return cut.reshape(r, (h // patch) * (w // patch), patch * patch * c)


def share_of(box: tuple[int, int, int, int], height: int, width: int) -> Tensor:
    """A box (top, left, height, width in pixels) in shares of its image, [4]."""
    top, left, h, w = box
    return torch.tensor([top / height, left / width, h / height, w / width])


def token_centers(boxes: Tensor, grid: tuple[int, int], flipped: Tensor) -> Tensor:
    """Where the centers of a grid of patches lie in the image, (row, column) in shares of it: [R, N, 2].

    boxes [R, 4] as from `share_of`; flipped bool [R], mirrored left to right after the cut.
    """
    high, wide = grid
    down, across = ((torch.arange(side, device=boxes.device) + 0.5) / side for side in grid)
    across = torch.where(flipped[:, None], 1 - across, across)  # [R, wide]
    rows = boxes[:, 0, None] + boxes[:, 2, None] * down  # [R, high]
    columns = boxes[:, 1, None] + boxes[:, 3, None] * across
    places = torch.stack(
        [rows[:, :, None].expand(-1, -1, wide), columns[:, None].expand(-1, high, -1)], dim=-1
    )  # [R, high, wide, 2]
    return places.flatten(1, 2)
