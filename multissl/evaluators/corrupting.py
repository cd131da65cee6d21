"""The corruptions of ImageNet-C (Hendrycks, Dietterich 2019, arXiv 1903.12261), made without files and other programs.

Constants of five severities are those of `ImageNet-C/create_c/make_imagenet_c.py`, which are for pictures of 224
pixels: lengths (the sigma of a blur, the radius of a disk) are scaled by the shorter side over 224, so that a small
picture loses as much as a large one; the weakest blurs of pictures of 32 pixels leave them as they are. Four of the
nineteen cannot be made so and are likenesses: motion blur, frost, snow and spatter (`blurring`, `weather`).
Draws are made from the picture's own bytes, so that it is corrupted alike in any batch.
Shapes: C channels, H, W pixels; values 0 to 1.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.evaluators.blurring import (
    defocus_blur,
    gaussian_blur,
    glass_blur,
    motion_blur_like,
    pixels,
    sampled,
    scale_of,
    smoothed_by_mirrors,
    zoom_blur,
)
from multissl.evaluators.weather import fog, frost_like, layer_shape, snow_like, spatter_like

SEVERITIES = (1, 2, 3, 4, 5)
ELASTIC = 244
"""What the lengths of the elastic transform are shares of, which should have been 224 in the original, too."""
Corruption = Callable[[Tensor, int, torch.Generator], Tensor]
"""From a picture [3, H, W], a severity from 1 on and a generator to a picture, before it is clipped."""


def corrupt(picture: Tensor, name: str, severity: int) -> Tensor:
    """Return a picture uint8 [3, H, W] under a corruption, of severity 1 to 5."""
    seed = zlib.crc32(f"{name} {severity} ".encode() + picture.numpy().tobytes())
    draw = torch.Generator().manual_seed(seed)
    made = CORRUPTIONS[name](picture.float() / 255, severity, draw)
    return (made.clamp(0, 1) * 255).to(torch.uint8)


def gaussian_noise(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Add noise."""
    return x + (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1] * torch.randn(x.shape, generator=draw)


def shot_noise(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Count so many photons."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return torch.poisson(x * photons, generator=draw) / photons


def impulse_noise(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Make some values 0 or 1."""
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    hit, high = torch.rand(x.shape, generator=draw) < amount, torch.rand(x.shape, generator=draw) < 0.5
    return torch.where(hit, high.float(), x)


def speckle_noise(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Add noise in proportion to the values."""
    return x + x * (0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1] * torch.randn(x.shape, generator=draw)


def contrast(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Move values to the mean of their channel."""
    mean = x.mean((1, 2), keepdim=True)
    return (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1] + mean


def brightness(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Raise the value of HSV; hue and saturation stay."""
    value = x.amax(0)
    raised = (value + 0.1 * severity).clamp(max=1)
    return torch.where(value > 0, x * raised / value.clamp(min=1e-12), raised)


def saturate(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Change the saturation of HSV; hue and value stay. What is gray has the hue of red, as in the original."""
    factor, more = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[severity - 1]
    value, least = x.amax(0), x.amin(0)
    before = (value - least) / value.clamp(min=1e-12)
    after = (before * factor + more).clamp(0, 1)
    red = torch.stack([value, value * (1 - after), value * (1 - after)])
    return torch.where(before > 0, value - (value - x) * after / before.clamp(min=1e-12), red)


def jpeg_compression(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Save it as JPEG of low quality."""
    from PIL import Image

    file = io.BytesIO()
    _picture(x).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    with Image.open(file) as read:
        return _values(np.asarray(read))


def pixelate(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Make it smaller by means, and large again."""
    from PIL import Image

    high, wide = x.shape[1:]
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    small = _picture(x).resize((max(1, int(wide * share)), max(1, int(high * share))), Image.Resampling.BOX)
    return _values(np.asarray(small.resize((wide, high), Image.Resampling.BOX)))


def elastic_transform(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Move three points of the picture, and every pixel a little on its own."""
    strength, sigma, shift = (
        (2.0, 0.7, 0.1), (2.0, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02),
    )[severity - 1]  # fmt: skip
    high, wide = x.shape[1:]
    noise = 2 * torch.rand(2, *layer_shape(x), generator=draw) - 1
    moves = strength * ELASTIC * smoothed_by_mirrors(noise, sigma * ELASTIC)  # in pixels of the layer
    moves = F.interpolate(moves[None], (high, wide), mode="bilinear", align_corners=False, antialias=True)[0]
    center, third = torch.tensor([wide, high]) / 2, min(high, wide) / 3
    points = center + third * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    moved = points + shift * ELASTIC * scale_of(x) * (2 * torch.rand(3, 2, generator=draw) - 1)
    back = torch.linalg.solve(
        F.pad(moved, (0, 1), value=1.0), points
    )  # [3, 2], from where points are to where from
    at = F.pad(pixels(high, wide) + moves.movedim(0, 2) * scale_of(x), (0, 1), value=1.0) @ back
    return sampled(x, at, "reflection")


STANDARD = (
    gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur_like, zoom_blur, snow_like,
    frost_like, fog, brightness, contrast, elastic_transform, pixelate, jpeg_compression,
)  # fmt: skip
"""The fifteen of the published figure, three of them as likenesses."""
EXTRA = (speckle_noise, gaussian_blur, spatter_like, saturate)
"""The four that the original keeps for validation, one of them as a likeness: with them it is another figure."""
FIFTEEN = tuple(each.__name__ for each in STANDARD)
NINETEEN = (*FIFTEEN, *(each.__name__ for each in EXTRA))
CORRUPTIONS: dict[str, Corruption] = {each.__name__: each for each in (*STANDARD, *EXTRA)}


def _picture(x: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _values(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1) / 255
