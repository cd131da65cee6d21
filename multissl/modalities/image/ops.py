"""Photometric augmentation of whole batches on their device: flip, jitter, grayscale, blur, solarize, normalize.

Each operation is torchvision's (float images, values 0 to 1) with parameters of its own for every row. On a processor
the rows that an operation changes are computed alone. Elsewhere, and where it is compiled, all rows are computed and
the changed ones chosen, so nothing depends on the data and a GPU is never waited for; what mixes colors then takes the
channels apart, as tensors [R, 1, H, W], since a compiler joins a chain of such operations to one kernel.
Grayscale, saturation and hue are about RGB: images of another number of channels pass through them unchanged.
Shapes: R rows, C channels, H, W pixels.  State: none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.devices import constant
from multissl.parallel.compiling import Whole, compiles

GRAY = (0.2989, 0.587, 0.114)
SOLARIZED_FROM = 128 / 255
BLUR_SIGMA = (0.1, 2.0)
NEUTRAL = (1.0, 1.0, 1.0, 0.0)
"""Factors of brightness, contrast, saturation and hue that change nothing."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""The numbers of the operations of `jitter`."""

Channels = tuple[Tensor, ...]
Images = TypeVar("Images", Tensor, Channels)
"""Images [R, C, H, W], or their channels apart."""


def photometric(x: Tensor, drawn: Mapping[str, Tensor], mean: Tensor, std: Tensor, kernel: int = 9) -> Tensor:
    """Return images, bytes or floats of 0 to 255, changed as drawn and normalized by channel: float [R, C, H, W].

    `drawn` holds for each row whether to flip, jitter, make gray, blur and solarize it, the order and the strength of
    the jitter, as `jitter` takes them, and the blur's sigma; without "blur" none is blurred. On a GPU this is one
    compiled function; a processor, which is the slower for every row it computes, never compiles it.
    """
    compiled = x.is_cuda and compiles(x.device)
    return (WHOLE if compiled else photometric_as_written)(x, drawn, mean, std, kernel)


def photometric_as_written(
    x: Tensor, drawn: Mapping[str, Tensor], mean: Tensor, std: Tensor, kernel: int
) -> Tensor:
    """Return what `photometric` does, uncompiled."""
    x = apply_to(torch.div(x.contiguous(), 255), drawn["flip"], flip)
    x = recolor(x, drawn) if by_rows(x) else torch.cat(recolor(x.split(1, 1), drawn), 1)
    if "blur" in drawn:
        x = apply_to(x, drawn["blur"], functools.partial(blur, kernel=kernel), drawn["blur sigma"])
    x = apply_to(x, drawn["solarize"], solarize)
    return normalize(x, mean, std)


WHOLE = Whole(photometric_as_written, realize_opcount_threshold=200)
"""The whole chain compiled. Under inductor's own threshold, flags of rows would become kernels of their own."""


def recolor(x: Images, drawn: Mapping[str, Tensor]) -> Images:
    """Return images, values 0 to 1, jittered and made gray as drawn."""
    x = jitter(x, drawn["jitter"], drawn["jitter order"], drawn["jitter strength"])
    return apply_to(x, drawn["grayscale"], grayscale)


def by_rows(x: Tensor) -> bool:
    """Return whether the rows that an operation changes are computed alone: on a processor, as nothing is compiled."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def apply_to(x: Images, hit: Tensor, op: Callable[..., Any], *parameters: Tensor) -> Images:
    """Return images with `op` applied to the rows that are hit, bool [R]; may write into a tensor.

    `op` gets images and parameters [R, ...], of the rows hit or of all rows.
    """
    if isinstance(x, tuple):
        pairs = zip(op(x, *parameters), x, strict=True)
        return tuple(torch.where(_column(hit), changed, channel) for changed, channel in pairs)
    if not by_rows(x):
        return torch.where(_column(hit), op(x, *parameters), x)
    if hit.all():
        return op(x, *parameters)
    rows = hit.nonzero().flatten()
    if len(rows):
        x[rows] = op(x[rows], *(p[rows] for p in parameters))
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


def jitter(x: Images, hit: Tensor, order: Tensor, factors: Tensor) -> Images:
    """Return images with brightness, contrast, saturation and hue changed, in an order of its own for each row hit.

    order int64 [R, 4] holds the operations in turn, factors [R, 4] the factor of each operation (hue: a shift).
    Contrast alone looks at the whole image. It is done for all rows at once, after what comes before it in a row's
    order and before the rest, so an image is averaged once.
    """
    changed = [hit & (factors[:, number] != NEUTRAL[number]) for number in range(4)]
    early = [(order[:, :turn] != CONTRAST).all(1) for turn in range(4)]  # whether contrast is still to come
    others = ((BRIGHTNESS, brightness), (SATURATION, saturation), (HUE, hue))
    for turn in range(3):
        for number, op in others:
            due = changed[number] & early[turn] & (order[:, turn] == number)
            x = apply_to(x, due, op, factors[:, number])
    x = apply_to(x, changed[CONTRAST], contrast, factors[:, CONTRAST])
    for turn in range(1, 4):
        for number, op in others:
            due = changed[number] & ~early[turn] & (order[:, turn] == number)
            x = apply_to(x, due, op, factors[:, number])
    return x


def luminance(x: Tensor | Channels) -> Tensor:
    """Return brightness as seen, [R, 1, H, W]; the plain mean of the channels unless there are three."""
    channels = _channels(x)
    if len(channels) != 3:
        return (x if isinstance(x, Tensor) else torch.cat(x, 1)).mean(1, keepdim=True)
    red, green, blue = channels
    return torch.mul(red, GRAY[0]).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])


def grayscale(x: Images) -> Images:
    """Return RGB as gray in all three channels."""
    if len(_channels(x)) != 3:
        return x
    gray = luminance(x)
    return _each(x, lambda channel: gray.expand_as(channel).clone())


def brightness(x: Images, factor: Tensor) -> Images:
    """Return values times factor [R]."""
    return _each(x, lambda channel: (channel * _column(factor)).clamp_(0, 1))


def contrast(x: Images, factor: Tensor) -> Images:
    """Return images moved towards (or away from) their mean luminance by factor [R]."""
    mean = luminance(x).mean((1, 2, 3), keepdim=True)
    return _each(x, lambda channel: _blend(channel, mean, factor))


def saturation(x: Images, factor: Tensor) -> Images:
    """Return images moved towards (or away from) their own grayscale by factor [R]."""
    if len(_channels(x)) != 3:
        return x
    gray = luminance(x)
    return _each(x, lambda channel: _blend(channel, gray, factor))


def hue(x: Images, shift: Tensor) -> Images:
    """Return images with the hue turned by shift [R], in turns; value and saturation (HSV) stay."""
    if isinstance(x, Tensor):
        return torch.cat(hue(x.split(1, 1), shift), 1)
    if len(x) != 3:
        return x
    red, green, blue = x
    top = torch.maximum(torch.maximum(red, green), blue)
    chroma = top - torch.minimum(torch.minimum(red, green), blue)
    safe = torch.where(chroma > 0, chroma, 1)
    sector = torch.where(
        top == red,
        (green - blue) / safe,
        torch.where(top == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sector = sector + 6 * _column(shift)
    steps = [(sector + start) % 6 for start in (5, 3, 1)]  # since where red, green, blue begin to fall
    return tuple(top - chroma * torch.minimum(step, 4 - step).clamp_(0, 1) for step in steps)


def solarize(x: Tensor) -> Tensor:
    """Return images with the values from 128 of 255 on inverted."""
    return torch.where(x >= SOLARIZED_FROM, 1 - x, x)


def blur(x: Tensor, sigma: Tensor, kernel: int = 9) -> Tensor:
    """Return images under a Gaussian blur with sigma [R] pixels over `kernel` pixels, reflected at the border."""
    r, c, h, w = x.shape
    side = kernel // 2
    at = torch.arange(kernel, device=x.device) - side
    weights = torch.exp(-0.5 * (at / sigma[:, None]) ** 2)  # [R, kernel]
    weights = (weights / weights.sum(1, keepdim=True)).to(x.dtype)
    x = F.pad(x, (side, side, side, side), mode="reflect")
    if not by_rows(x):  # sums, which a compiler joins with what follows
        taps = [_column(weight) for weight in weights.unbind(1)]
        x = functools.reduce(torch.add, [tap * x[:, :, i : i + h] for i, tap in enumerate(taps)])
        return functools.reduce(torch.add, [tap * x[..., i : i + w] for i, tap in enumerate(taps)])
    weights = weights.repeat_interleave(c, 0)[:, None]
    x = F.conv2d(x.reshape(1, r * c, *x.shape[2:]), weights[:, :, None], groups=r * c)
    return F.conv2d(x, weights[..., None], groups=r * c).view(r, c, h, w)


def flip(x: Tensor) -> Tensor:
    """Return images left to right."""
    return x.flip(-1)


def normalize(x: Tensor, mean: Tensor | tuple[float, ...], std: Tensor | tuple[float, ...]) -> Tensor:
    """Return (x - mean) / std by channel."""
    center, scale = (v if isinstance(v, Tensor) else constant(v, x.device, x.dtype) for v in (mean, std))
    return (x - center[:, None, None]).div_(scale[:, None, None])


def _channels(x: Tensor | Channels) -> Channels:
    return x.split(1, 1) if isinstance(x, Tensor) else x


def _each(x: Images, op: Callable[[Tensor], Tensor]) -> Images:
    """Return images changed by what treats all channels alike."""
    if isinstance(x, Tensor):
        return op(x)
    return tuple(op(channel) for channel in x)


def _column(factor: Tensor) -> Tensor:
    return factor[:, None, None, None]


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other, x, _column(factor)).clamp_(0, 1)
