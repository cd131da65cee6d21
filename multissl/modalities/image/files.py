"""Image files to tensors: JPEG, PNG, WebP and GIF by torchvision, the rest by Pillow, arrays by numpy.

The decoder is behind one function because torchvision's is going to be replaced. Pixels keep 8 or 16 bits. EXIF
orientation is ignored, as in the reference pipelines. The pages of a TIFF become channels where they are gray.
Shapes: C channels, H, W pixels.  State: none.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multissl import registry
from multissl.contract.data import Sample, Samples, Unreadable
from multissl.modalities.image.headers import check_pixels, check_size
from multissl.sources.payloads import Slice
from multissl.sources.reading import read_array, read_file, unreadable_errors
from multissl.waiting import followed

MEASURED = 1000
"""Images that channel statistics are taken from."""
SMALL, LARGE = 8, 10_000
"""Sides in pixels beyond which an image is worth a notice."""
ALWAYS = (
    ".jpg", ".jpeg", ".webp", ".png", ".tif", ".tiff", ".bmp", ".gif", ".npy", ".jfif", ".jpe", ".pjpeg", ".apng",
    ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".mpo",
)  # fmt: skip
"""What torchvision, Pillow and numpy read wherever they are installed."""
log = logging.getLogger("multissl")


def _suffixes() -> tuple[str, ...]:
    """Return the file types that the decoders at hand can read."""
    from PIL import features

    more: tuple[str, ...] = ()
    if "avif" in features.modules and features.check("avif"):
        more += (".avif",)
    if features.check("jpg_2000"):
        more += (".jp2", ".j2k", ".jpx", ".j2c", ".jpf")
    if importlib.util.find_spec("pillow_heif"):
        more += (".heic", ".heif", ".hif")
    return ALWAYS + more


SUFFIXES = _suffixes()


def load(sample: Sample, channels: int) -> Tensor:
    """Return the pixels of a sample [C, H, W], values 0 to 255: uint8, or float32 where the file has 16 bits.

    Raise `Unreadable` with the name of a file that cannot be read; odd sizes are read, with a notice.
    """
    data = sample.data
    file = isinstance(data, str | Path)
    name = str(data) if file else data.name if isinstance(data, Slice) else f"sample {sample.index}"
    with unreadable_errors(sample.index, name):
        if isinstance(data, Slice):
            data = data.read()
        elif file:
            data = read_file(data)
        image = decode(data, channels)
    _, height, width = image.shape
    small, large = min(height, width), max(height, width)
    if small < SMALL or large > max(LARGE, 32 * small):
        kind = "small" if small < SMALL else "large"
        say_once(kind, f"{name} is {width} x {height} pixels; it is used all the same")
    return image.float() / 257 if image.dtype == torch.uint16 else image


_said: set[str] = set()


def say_once(kind: str, text: str) -> None:
    """Log a text about the first image of a kind (very small, very large, long) in a process and no later one."""
    if kind not in _said:
        log.warning("%s (said once for images of this kind)", text)
    _said.add(kind)


def decode(data: Any, channels: int) -> Tensor:
    """Return an image as uint8 or uint16 [C, H, W] from the bytes of a file, an array [H, W, C] or a Pillow image.

    Gray becomes color and color gray where 3 or 1 channels are wanted; any other number has to be there.
    """
    if data is None:
        raise ValueError("the cell is empty")
    if isinstance(data, bytes | bytearray | memoryview):
        data = _from_bytes(bytes(data), channels)
    if isinstance(data, Tensor):
        if data.dtype not in (torch.uint8, torch.uint16) or data.dim() != 3:
            raise ValueError(
                f"{data.dtype} tensor of shape {tuple(data.shape)}: want uint8 or uint16 [C, H, W]"
            )
        return fit_channels(data, channels)
    return fit_channels(_from_array(data if isinstance(data, np.ndarray) else _pages(data)), channels)


def _from_bytes(data: bytes, channels: int) -> Tensor | np.ndarray:
    from torchvision.io import ImageReadMode, decode_image

    if not data:
        raise ValueError("the file is empty")
    if data.startswith(b"\x93NUMPY"):
        return read_array(data)
    if data.startswith((b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8")):
        check_pixels(data)
        mode = {1: ImageReadMode.GRAY, 3: ImageReadMode.RGB}.get(channels, ImageReadMode.UNCHANGED)
        image = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode)
        return image[0] if image.dim() == 4 else image  # the first frame of a GIF
    from PIL import Image, UnidentifiedImageError

    if data[4:8] == b"ftyp":
        _register_heif()
    try:
        with _without_limit(Image), Image.open(io.BytesIO(data)) as image:
            check_size(*image.size)
            return _pages(image)
    except UnidentifiedImageError:
        raise ValueError(f"not an image (it starts with {data[:12]!r})") from None
    except Exception as error:  # a damaged file makes Pillow's parsers raise almost anything
        raise ValueError(str(error) or type(error).__name__) from None


@functools.cache
def _register_heif() -> None:
    """Have Pillow read HEIC, where its plugin is installed."""
    if importlib.util.find_spec("pillow_heif"):
        registry.require("pillow_heif").register_heif_opener()


@contextlib.contextmanager
def _without_limit(module: Any) -> Iterator[None]:
    """Leave out Pillow's own limit of pixels, which no message says how to lift: ours is asked instead."""
    before = module.MAX_IMAGE_PIXELS
    module.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        module.MAX_IMAGE_PIXELS = before


def _pages(image: Any) -> np.ndarray:
    """Return a Pillow image as an array [H, W] or [H, W, C]; gray pages of a TIFF become channels."""
    if image.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    pages = getattr(image, "n_frames", 1)
    if pages == 1 or image.format != "TIFF" or len(image.getbands()) > 1:
        return np.asarray(image)
    width, height = image.size
    check_size(width, height, pages)
    stack = []
    for page in range(pages):
        image.seek(page)
        stack.append(np.asarray(image))
    return np.stack(stack, -1)


def _from_array(array: np.ndarray) -> Tensor:
    """Return an array [H, W] or [H, W, C] as [C, H, W]: of 8 or 16 bits, or of 32 where the numbers fit into 16."""
    if array.dtype == np.int32 and array.min() >= 0 and array.max() < 1 << 16:
        array = array.astype(np.uint16)  # how Pillow hands out some 16-bit files
    if (
        array.dtype.newbyteorder("=") not in (np.uint8, np.uint16)
        or array.ndim not in (2, 3)
        or not array.size
    ):
        raise ValueError(
            f"{array.dtype} array of shape {array.shape}: want uint8 or uint16 [H, W] or [H, W, C]"
        )
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    image = torch.from_numpy(array if array.flags.writeable else array.copy())
    return (image if image.dim() == 3 else image[..., None]).permute(2, 0, 1)


def fit_channels(image: Tensor, channels: int) -> Tensor:
    """Return [C, H, W] with a number of channels: gray repeated, color averaged by brightness, alpha dropped."""
    have = image.shape[0]
    if have == channels:
        return image
    if channels == 3 and have in (1, 2):
        return image[:1].expand(3, -1, -1)
    if channels == 3 and have == 4:
        return image[:3]
    if channels == 1 and have == 2:
        return image[:1]
    if channels == 1 and have in (3, 4):
        weights = torch.tensor([0.299, 0.587, 0.114])
        return (weights[:, None, None] * image[:3].float()).sum(0, keepdim=True).round().to(image.dtype)
    raise ValueError(f"{have} channels, modality.channels={channels}: set it to what the files hold")


def channel_statistics(data: Samples, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel over up to 1,000 evenly spaced images that can be read."""
    count, reason = len(data), ""
    sums = []
    for i in followed(range(min(count, MEASURED)), "mean and deviation of pictures", min(count, MEASURED)):
        try:
            image = load(data[i * count // min(count, MEASURED)], channels)
        except Unreadable as bad:
            reason = reason or bad.reason
            continue
        pixels = image.double().flatten(1) / 255  # [C, H*W]
        sums.append(torch.stack([pixels.mean(1), pixels.pow(2).mean(1)]))
    if not sums:
        raise ValueError(
            f"modality.data: none of the images can be read, so there is no mean to subtract: {reason}"
        )
    mean, square = torch.stack(sums).mean(0)
    std = (square - mean**2).clamp(min=0).sqrt().clamp(min=1e-3)
    return tuple(mean.tolist()), tuple(std.tolist())
