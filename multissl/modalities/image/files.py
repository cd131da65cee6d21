"""Image files to tensors: JPEG, PNG, WebP and GIF by torchvision, DICOM by pydicom, arrays by numpy, else Pillow.

The decoder is behind one function because torchvision's is going to be replaced. Pixels keep 8 or 16 bits; other
numbers (12 bits in 16, floats, signed ones) are scaled by a range that is given or measured over the training set, see
`values`. Pictures are turned as their EXIF says, whatever the format; what is transparent shows a background, never the
colors that are stored there. The pages of a TIFF become channels where they are gray.
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
from torch.nn import functional

from multissl import registry
from multissl.contract.data import Sample, Samples, Unreadable
from multissl.modalities.image import dicom
from multissl.modalities.image.headers import (
    ORIENTATION,
    check_pixels,
    check_size,
    exif_orientation,
    has_alpha,
    is_deep,
)
from multissl.modalities.image.values import (
    USUAL,
    Reading,
    fit_channels,
    from_array,
    measured_range,
    scaled,
    turned,
)
from multissl.sources.copies import SIDE
from multissl.sources.payloads import Slice
from multissl.sources.reading import check_regular, read_array, read_file, unreadable_errors
from multissl.waiting import followed

MEASURED = 1000
"""Images that channel statistics are taken from."""
PIXELS = 4096
"""Pixels of each image that a range is measured on."""
LAST_UPRIGHT = 4
"""EXIF orientation from which on width and height change places."""
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
    if importlib.util.find_spec("pydicom"):
        more += (".dcm", ".dicom")
    return ALWAYS + more


SUFFIXES = _suffixes()


def load(sample: Sample, channels: int, reading: Reading = USUAL) -> Tensor:
    """Return the pixels of a sample [C, H, W], values 0 to 255: uint8, or float32 where the file has no 8 bits.

    Raise `Unreadable` with the name of a file that cannot be read; odd sizes are read, with a notice.
    """
    data = sample.data
    file = isinstance(data, str | Path)
    name = str(data) if file else data.place if isinstance(data, Slice) else f"sample {sample.index}"
    with unreadable_errors(sample.index, name):
        image = _picture(_bytes_of(data), channels, reading)
    _, height, width = image.shape
    small, large = min(height, width), max(height, width)
    if small < SMALL or large > max(LARGE, 32 * small):
        kind = "small" if small < SMALL else "large"
        say_once(kind, f"{name} is {width} x {height} pixels; it is used all the same")
    return image


def _picture(data: Any, channels: int, reading: Reading) -> Tensor:
    if dicom.is_dicom(data):
        return dicom.picture(bytes(data), channels, reading)
    return scaled(decode(data, channels, reading.background), reading)


def dimensions(sample: Sample, channels: int, reading: Reading = USUAL) -> tuple[int, int]:
    """Return width and height of a sample as it is seen, by the header of its file where that can be read alone."""
    from PIL import Image

    data = sample.data
    if isinstance(data, str | Path | Slice | bytes | bytearray | memoryview):
        _register_heif()
        with contextlib.suppress(Exception):  # what is wrong is said by the decoder below
            if isinstance(data, str | Path):
                check_regular(data)
            source = str(data) if isinstance(data, str | Path) else io.BytesIO(_bytes_of(data))
            with _without_limit(Image), Image.open(source) as image:
                width, height = image.size
                across = int(image.getexif().get(ORIENTATION, 1)) > LAST_UPRIGHT
            return (height, width) if across else (width, height)
    _, high, wide = load(sample, channels, reading).shape
    return wide, high


def examined(sample: Sample, channels: int, reading: Reading) -> tuple[dict[str, float], np.ndarray]:
    """Return width and height in pixels, and 16 x 16 pixels of it, float32 [16, 16, C]. Raises as `load` does."""
    image = load(sample, channels, reading)
    return {"width": image.shape[2], "height": image.shape[1]}, parts_of(image)


def parts_of(image: Tensor) -> np.ndarray:
    """Return an image [C, H, W] as 16 x 16 pixels, float32 [16, 16, C], as `sources.copies` compares pictures."""
    # means of whole pixels would differ between sizes that 16 does not divide
    small = functional.interpolate(image[None].float(), size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0).numpy()


def thumbnail(sample: Sample, channels: int, reading: Reading) -> np.ndarray | None:
    """Return 16 x 16 pixels of it, float32 [16, 16, C]; None where a sample cannot be read."""
    try:
        return examined(sample, channels, reading)[1]
    except Unreadable:
        return None


def _bytes_of(data: Any) -> Any:
    if isinstance(data, Slice):
        return data.read()
    return read_file(data) if isinstance(data, str | Path) else data


_said: set[str] = set()


def say_once(kind: str, text: str) -> None:
    """Log a text about the first image of a kind (very small, very large, long) in a process and no later one."""
    if kind not in _said:
        log.warning("%s (said once for images of this kind)", text)
    _said.add(kind)


def decode(data: Any, channels: int, background: float = 1.0) -> Tensor:
    """Return an image [C, H, W] from the bytes of a file, an array [H, W, C] or [C, H, W], or a Pillow image.

    It is uint8 or uint16 where that is what it has, else float32 with the values that are there. Gray becomes color and
    color gray where 3 or 1 channels are wanted, and what is transparent shows `background` (0 to 1); any other number
    of channels has to be there.
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
        return fit_channels(data, channels, background)
    array = data if isinstance(data, np.ndarray) else _pages(data)
    return fit_channels(from_array(array, channels), channels, background)


def _from_bytes(data: bytes, channels: int) -> Tensor | np.ndarray:
    from torchvision.io import ImageReadMode, decode_image

    if not data:
        raise ValueError("the file is empty")
    if dicom.is_dicom(data):
        return dicom.read_scan(data).pixels
    if data.startswith(b"\x93NUMPY"):
        return read_array(data)
    if data.startswith((b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8")):
        check_pixels(data)
        mode = {1: ImageReadMode.GRAY, 3: ImageReadMode.RGB}.get(channels, ImageReadMode.UNCHANGED)
        if channels in (1, 3) and has_alpha(data):
            mode = ImageReadMode.RGB_ALPHA
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        image = decode_image(content, mode)
        image = image[0] if image.dim() == 4 else image  # the first frame of a GIF
        return turned(image, exif_orientation(data))
    from PIL import Image, UnidentifiedImageError

    if data[4:8] == b"ftyp":
        _register_heif()
    try:
        with _without_limit(Image), Image.open(io.BytesIO(data)) as image:
            check_size(*image.size)
            array = np.moveaxis(np.atleast_3d(_pages(image)), -1, 0)  # [C, H, W]
            orientation = int(
                image.getexif().get(ORIENTATION, 1)
            )  # of TIFF gone by now: Pillow has turned it
            return np.moveaxis(turned(torch.from_numpy(array.copy()), orientation).numpy(), 0, -1)
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
    if image.mode == "PA" or (image.mode in ("P", "L", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA")
    elif image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
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


def channel_statistics(
    data: Samples, channels: int, reading: Reading = USUAL
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel over up to 1,000 evenly spaced images that can be read."""
    count, reason = len(data), ""
    sums = []
    for i in followed(range(min(count, MEASURED)), "mean and deviation of pictures", min(count, MEASURED)):
        try:
            image = load(data[i * count // min(count, MEASURED)], channels, reading)
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


def measure_range(data: Samples | tuple[()], channels: int) -> tuple[float, ...]:
    """Return what is black and white in up to 1,000 evenly spaced images that do not have 8 bits; () where all do."""
    count = len(data)
    pictures: list[Tensor] = []
    for i in range(min(count, MEASURED)):
        sample = data[i * count // min(count, MEASURED)]
        with contextlib.suppress(Exception):  # what cannot be read is said when it is drawn
            if is_deep(_head(sample.data)):
                content = _bytes_of(sample.data)
                scan = dicom.is_dicom(content)
                image = dicom.values(bytes(content), channels) if scan else decode(content, channels)
                if image is not None and image.dtype != torch.uint8:
                    pixels = image.flatten(1)
                    pictures.append(pixels[:, :: max(pixels.shape[1] // PIXELS, 1)])
    if not pictures:
        return ()
    low, high = measured_range(pictures)
    log.warning(
        "modality.data: pictures without 8 bits are read from %g (black) to %g (white): --modality.range LOW HIGH "
        "says otherwise", low, high,
    )  # fmt: skip
    return low, high


def _head(data: Any) -> bytes:
    """Return the first bytes of a picture; those of an array of bytes are as of a file that has 8 bits."""
    if isinstance(data, str | Path):
        check_regular(data)
        with open(data, "rb") as file:
            return file.read(32)
    if isinstance(data, Slice):
        return data.head(32)
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data[:32])
    return b"BM" if getattr(data, "dtype", None) in (np.uint8, torch.uint8) else b""
