"""The corruptions of ImageNet-C that need no files and no other program (Hendrycks, Dietterich 2019, arXiv 1903.12261).

Constants of five severities are those of `ImageNet-C/create_c/make_imagenet_c.py`, which are for pictures of 224
pixels: lengths (the sigma of a blur, the radius of a disk) are scaled by the shorter side over 224, so that a small
picture loses as much as a large one; the weakest blurs of pictures of 32 pixels leave them as they are. A disk is drawn
by how much of each pixel it covers, as its radius may be below one.
Not made: frost (pictures of ice), motion blur and snow (ImageMagick), fog, glass blur, elastic transform and spatter.
Draws are made from the picture's own bytes, so that it is corrupted alike in any batch.
Shapes: C channels, H, W pixels; values 0 to 1.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 224
"""Pixels of the pictures that the constants are for."""
SUBPIXELS = 5
"""Points of a pixel, along each axis, that tell how much of it a disk covers."""
SEVERITIES = (1, 2, 3, 4, 5)
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


def gaussian_blur(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Blur by a Gaussian."""
    return smoothed(x, (1, 2, 3, 4, 6)[severity - 1] * scale_of(x))


def defocus_blur(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Blur by a disk, whose edge is smoothed."""
    radius, edge = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    kernel = disk(radius * scale_of(x), edge * scale_of(x))
    side = len(kernel) // 2
    padded = F.pad(x[None], (side,) * 4, mode="replicate")[0]
    return F.conv2d(padded[:, None], kernel[None, None])[:, 0]


def zoom_blur(x: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Return the mean of a picture and of larger and larger ones of its center."""
    last, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    zooms = np.arange(1, last, step).tolist()
    return (x + sum(zoomed(x, zoom) for zoom in zooms)) / (len(zooms) + 1)


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


CORRUPTIONS: dict[str, Corruption] = {
    each.__name__: each
    for each in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, zoom_blur, brightness, contrast, pixelate,
        jpeg_compression, speckle_noise, gaussian_blur, saturate,
    )
}  # fmt: skip
"""By name; the first nine are among the fifteen of the published figure, the others among its four extra ones."""


def scale_of(x: Tensor) -> float:
    """Return by what lengths are multiplied."""
    return min(x.shape[1:]) / SIDE


def smoothed(x: Tensor, sigma: float) -> Tensor:
    """Return x [C, H, W] under a Gaussian of four deviations each way; the border is repeated."""
    side = int(4 * sigma + 0.5)
    if not side:
        return x
    at = torch.arange(-side, side + 1)
    weights = torch.exp(-0.5 * (at / sigma) ** 2)
    weights = weights / weights.sum()
    x = F.pad(x[None], (side,) * 4, mode="replicate")[0][:, None]
    return F.conv2d(F.conv2d(x, weights[None, None, :, None]), weights[None, None, None])[:, 0]


def disk(radius: float, edge: float) -> Tensor:
    """Return a disk [n, n] whose sum is 1, smoothed by a Gaussian of sigma `edge`."""
    side = math.ceil(radius) + 1
    points = (torch.arange((2 * side + 1) * SUBPIXELS) + 0.5) / SUBPIXELS - side - 0.5
    inside = (points[:, None] ** 2 + points**2 <= radius * radius).float()
    cover = smoothed(F.avg_pool2d(inside[None], SUBPIXELS), edge)[0]
    return cover / cover.sum()


def zoomed(x: Tensor, zoom: float) -> Tensor:
    """Return the center of x [C, H, W], enlarged to its size."""
    high, wide = x.shape[1:]
    h, w = math.ceil(high / zoom), math.ceil(wide / zoom)
    top, left = (high - h) // 2, (wide - w) // 2
    size = (max(high, round(h * zoom)), max(wide, round(w * zoom)))
    part = x[None, :, top : top + h, left : left + w]
    large = F.interpolate(part, size, mode="bilinear", align_corners=True)[0]
    down, right = (size[0] - high) // 2, (size[1] - wide) // 2
    return large[:, down : down + high, right : right + wide]


def _picture(x: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _values(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1) / 255
