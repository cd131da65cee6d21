"""Photometric augmentation of whole batches on their device: jitter, grayscale, blur, solarize, flip.

Each operation is torchvision's (float images, values 0 to 1) with parameters of its own for every row; the
rows an operation leaves alone are not computed. Which rows those are is decided on the CPU, so a GPU is never
waited for. Grayscale, saturation and hue are about RGB: images of another number of channels pass through
them unchanged.
Shapes: R rows, C channels, H, W pixels.  State: none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

GRAY = (0.2989, 0.587, 0.114)
SOLARIZED_FROM = 128 / 255
BLUR_SIGMA = (0.1, 2.0)
NEUTRAL = (1.0, 1.0, 1.0, 0.0)
"""Factors of brightness, contrast, saturation and hue that change nothing."""


def apply_to(x: Tensor, hit: Tensor, op: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """x [R, C, H, W] with `op` applied to the rows that are hit; writes into x.

    `hit` bool [R] and `parameters` [R, ...] lie on the CPU; op gets the rows hit and their parameters.
    """
    if hit.all():
        return op(x, *(p.to(x.device, non_blocking=True) for p in parameters))
    rows = hit.nonzero().flatten()
    if len(rows):
        there = rows.to(x.device, non_blocking=True)
        x[there] = op(x[there], *(p[rows].to(x.device, non_blocking=True) for p in parameters))
    return x


def jitter_factors(uniform: Tensor, widths: Sequence[float]) -> Tensor:
    """Return uniform numbers in [0, 1), [R, 4], as the factors of `jitter`.

    `widths` are the largest changes of brightness, contrast and saturation, whose factors lie around 1 and are not
    below 0, and of hue, whose shifts lie around 0.
    """
    width = torch.tensor(widths)
    low = torch.cat([(1 - width[:3]).clamp(min=0), -width[3:]])
    high = torch.cat([1 + width[:3], width[3:]])
    return low + (high - low) * uniform


def jitter(x: Tensor, hit: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue in an order of its own for each row hit.

    order int64 [R, 4] holds the operations in turn, factors [R, 4] the factor of each operation (hue: a
    shift).
    """
    changed = hit[:, None] & (factors != torch.tensor(NEUTRAL))  # [R, 4]
    for turn in range(4):
        for number, op in enumerate((brightness, contrast, saturation, hue)):
            x = apply_to(x, changed[:, number] & (order[:, turn] == number), op, factors[:, number])
    return x


def luminance(x: Tensor) -> Tensor:
    """Brightness as seen, [R, 1, H, W]; the plain mean of the channels unless there are three."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = x.split(1, 1)
    return torch.mul(red, GRAY[0]).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])


def grayscale(x: Tensor) -> Tensor:
    """RGB to gray in all three channels."""
    return luminance(x).expand_as(x).clone() if x.shape[1] == 3 else x


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Values times factor [R]."""
    return (x * _column(factor)).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Towards (or away from) the image's mean luminance by factor [R]."""
    return _blend(x, luminance(x).mean((1, 2, 3), keepdim=True), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Towards (or away from) its own grayscale by factor [R]."""
    return _blend(x, luminance(x), factor) if x.shape[1] == 3 else x


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """The hue turned by shift [R], in turns; value and saturation (HSV) stay."""
    if x.shape[1] != 3:
        return x
    red, green, blue = x.unbind(1)  # [R, H, W]
    top, bottom = x.amax(1), x.amin(1)
    chroma = top - bottom
    safe = torch.where(chroma > 0, chroma, 1)
    sector = torch.where(
        top == red,
        (green - blue) / safe,
        torch.where(top == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sector = sector + 6 * shift[:, None, None]
    start = torch.tensor([5.0, 3.0, 1.0], device=x.device)[
        :, None, None
    ]  # where red, green, blue begin to fall
    k = (sector[:, None] + start) % 6  # [R, 3, H, W]
    return top[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def solarize(x: Tensor) -> Tensor:
    """Values from 128 of 255 on are inverted."""
    return torch.where(x >= SOLARIZED_FROM, 1 - x, x)


def blur(x: Tensor, sigma: Tensor, kernel: int = 9) -> Tensor:
    """Gaussian blur with sigma [R] pixels over `kernel` pixels, reflected at the border."""
    r, c, h, w = x.shape
    at = torch.arange(kernel, device=x.device) - kernel // 2
    weights = torch.exp(-0.5 * (at / sigma[:, None]) ** 2)  # [R, kernel]
    weights = (weights / weights.sum(1, keepdim=True)).to(x.dtype).repeat_interleave(c, 0)[:, None]
    side = kernel // 2
    x = F.pad(x, (side, side, side, side), mode="reflect").reshape(1, r * c, h + 2 * side, w + 2 * side)
    x = F.conv2d(x, weights[:, :, None], groups=r * c)
    return F.conv2d(x, weights[..., None], groups=r * c).view(r, c, h, w)


def flip(x: Tensor) -> Tensor:
    """Left to right."""
    return x.flip(-1)


def normalize(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x - mean) / std by channel."""
    as_channels: dict[str, Any] = {"device": x.device, "dtype": x.dtype}
    center = torch.tensor(mean, **as_channels)[:, None, None]
    return (x - center).div_(torch.tensor(std, **as_channels)[:, None, None])


def _column(factor: Tensor) -> Tensor:
    return factor[:, None, None, None]


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other, x, _column(factor)).clamp_(0, 1)
