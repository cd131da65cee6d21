"""What the numbers of a picture mean: their order, their channels, their range, what is transparent.

A picture of 8 bits is what it is. Of others the range is given (`modality.range`) or measured over the training set:
12 bits in 16, floats of 0 to 1, Hounsfield units. A measured range is widened to the one that such numbers usually
have.
Shapes: C channels, H, W pixels.  State: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

WHITE = {torch.uint8: 255, torch.uint16: 65535}
"""The largest value of each type."""
TOPS = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)
"""Largest values that numbers usually have: shares, and 8, 10, 12, 14 and 16 bits."""
QUANTILES = (0.001, 0.999)
"""Shares of the values of a set between which the others lie; what is beyond is cut."""
TURNS: dict[int, tuple[bool, int]] = {
    2: (True, 0), 3: (False, 2), 4: (True, 2), 5: (True, 1), 6: (False, 3), 7: (True, 3), 8: (False, 1),
}  # fmt: skip
"""By EXIF orientation: whether a picture is mirrored, and how many quarters it is then turned against the clock."""


class Reading(NamedTuple):
    """How the values of pictures become 0 to 255."""

    low: float = 0.0
    high: float = 0.0
    """What is black and what is white in pictures that do not have 8 bits; both 0: not known."""
    background: float = 1.0
    """Brightness, 0 to 1, behind what is transparent."""
    given: bool = False
    """Whether black and white are the user's, before what a file says."""


USUAL = Reading()


def from_array(array: np.ndarray, channels: int) -> Tensor:
    """Return an array [H, W], [H, W, C] or [C, H, W] as [C, H, W]: uint8, uint16, or the values as float32."""
    kind = array.dtype.newbyteorder("=")
    if kind.kind not in "buif" or array.ndim not in (2, 3) or not array.size:
        raise ValueError(
            f"{array.dtype} array of shape {array.shape}: want numbers [H, W], [H, W, C] or [C, H, W]"
        )
    if kind.kind == "b":
        array = array.astype(np.uint8) * 255
    elif kind.kind in "iu" and kind.itemsize > 2 and array.min() >= 0 and array.max() <= WHITE[torch.uint16]:
        array = array.astype(np.uint16)  # how Pillow hands out some 16-bit files
    elif kind not in (np.uint8, np.uint16):
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError(
                f"{int((~np.isfinite(array)).sum())} of its {array.size} values are no finite numbers"
            )
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    image = torch.from_numpy(array if array.flags.writeable else array.copy())
    if image.dim() == 2:
        return image[None]
    return image if _channels_first(image.shape, channels) else image.permute(2, 0, 1)


def _channels_first(shape: Sequence[int], channels: int) -> bool:
    """Return whether the first side of three is the channels: the last is then none of the usual numbers, or larger."""
    usual = {1, 2, 3, 4, channels}
    if shape[0] == channels != shape[-1]:
        return shape[-1] not in usual
    return shape[0] in usual and shape[-1] not in usual


def fit_channels(image: Tensor, channels: int, background: float = 1.0) -> Tensor:
    """Return [C, H, W] with a number of channels: gray repeated, color averaged by brightness, alpha composed."""
    have = image.shape[0]
    if have == channels:
        return image
    if channels in (1, 3) and have in (2, 4):
        return fit_channels(_composed(image, background), channels)
    if channels == 3 and have == 1:
        return image.expand(3, -1, -1)
    if channels == 1 and have == 3:
        weights = torch.tensor([0.299, 0.587, 0.114])
        gray = (weights[:, None, None] * image.float()).sum(0, keepdim=True)
        return gray if image.is_floating_point() else gray.round().to(image.dtype)
    raise ValueError(f"{have} channels, modality.channels={channels}: set it to what the files hold")


def _composed(image: Tensor, background: float) -> Tensor:
    """Return the colors [C-1, H, W] of a picture over a background of one brightness; its last channel is the alpha."""
    white = WHITE.get(image.dtype) or (1.0 if float(image.max()) <= 1 else 255.0)
    alpha = image[-1:].float() / white
    over = image[:-1].float() * alpha + background * white * (1 - alpha)
    return over if image.is_floating_point() else over.round().to(image.dtype)


def turned(image: Tensor, orientation: int) -> Tensor:
    """Return a picture [C, H, W] as its EXIF orientation says that it is seen."""
    if orientation not in TURNS:
        return image
    mirrored, quarters = TURNS[orientation]
    image = image.flip(2) if mirrored else image
    return image.rot90(quarters, (1, 2)).contiguous()


def scaled(image: Tensor, reading: Reading) -> Tensor:
    """Return a picture [C, H, W] with values 0 to 255: uint8 as it is, others as float32 by the range."""
    if image.dtype == torch.uint8:
        return image
    if reading.low < reading.high:
        return ((image.float() - reading.low) * (255 / (reading.high - reading.low))).clamp(0, 255)
    if image.dtype == torch.uint16:
        return image.float() / 257
    low, high = float(image.min()), float(image.max())
    raise ValueError(
        f"its values are {low:g} to {high:g} and no 8 or 16 bits: say what is black and white by modality.range, as "
        f"--modality.range {low:g} {high:g}"
    )


def measured_range(pictures: Sequence[Tensor]) -> tuple[float, float]:
    """Return what is black and white in pictures [C, H, W] that do not have 8 bits.

    Values from near 0 on begin there, and the largest is the usual one above where more than half of that is used.
    """
    values = np.concatenate([picture.float().flatten().numpy() for picture in pictures])
    low, high = (float(v) for v in np.quantile(values, QUANTILES))
    if low >= 0 and low < 0.1 * high:
        low = 0.0
    top = next((t for t in TOPS if high <= t * (1 + 1e-6)), high)
    if low == 0 and high > top / 2:
        high = top
    return (low, high) if low < high else (low, low + 1)
