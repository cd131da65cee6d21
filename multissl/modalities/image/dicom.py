"""DICOM files (extra `dicom`): the values that a scanner means, and how they are shown.

Stored numbers become values by the file's slope and intercept or table (Hounsfield units of a CT). What is black and
white says `modality.range` where it is given, else the window of the file, else a range measured on the training set.
MONOCHROME1, whose low values are white, is inverted after that. Files of several frames are refused: which of a series
is a sample is not ours to say.
Source: DICOM PS3.3 C.7.6.3 (pixels), C.11.1 (modality), C.11.2 (window).
Shapes: C channels, H, W pixels.  State: none.
"""

from __future__ import annotations

import io
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from multissl import registry
from multissl.modalities.image.headers import check_size
from multissl.modalities.image.values import Reading, fit_channels, from_array, scaled

PREAMBLE, MARK = 128, b"DICM"
"""Bytes before the mark of a DICOM file, and the mark."""
INVERTED = "MONOCHROME1"


class Window(NamedTuple):
    """How a file says that its values are shown."""

    center: float
    width: float
    shape: str

    def shares(self, values: np.ndarray) -> np.ndarray:
        """Return the brightness of values, 0 to 1 (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
        if self.shape == "SIGMOID":
            return 1 / (1 + np.exp(-4 * (values - self.center) / self.width))
        # LINEAR counts whole numbers from the middle of the first to the last
        half = self.shape != "LINEAR_EXACT"
        width = max(self.width - half, 1e-6)
        return ((values - self.center + 0.5 * half) / width + 0.5).clip(0, 1)


class Scan(NamedTuple):
    """A picture as it was stored."""

    pixels: Tensor
    """[C, H, W]: uint8 where there are 8 bits and no other meaning, else float32 values."""
    window: Window | None
    inverted: bool


def is_dicom(data: Any) -> bool:
    """Return whether bytes are a DICOM file."""
    return isinstance(data, bytes | bytearray | memoryview) and bytes(data[PREAMBLE : PREAMBLE + 4]) == MARK


def read_scan(data: bytes) -> Scan:
    """Return the picture of a DICOM file.

    Raises a ValueError where it holds none, several frames, or pixels in a form that needs another package.
    """
    pydicom = registry.require("pydicom")
    with warnings.catch_warnings():  # of values that the standard does not have, as scanners write them
        warnings.simplefilter("ignore")
        file = pydicom.dcmread(io.BytesIO(data))
        if "PixelData" not in file:
            raise ValueError("a DICOM file without a picture")
        frames = int(file.get("NumberOfFrames") or 1)
        check_size(int(file.Columns), int(file.Rows), frames)
        if frames > 1:
            raise ValueError(
                f"holds {frames} frames, and a picture is one: write each into a file of its own, as "
                "pydicom.pixels.iter_pixels gives them"
            )
        try:
            stored = pydicom.pixels.pixel_array(file)
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            raise ValueError(f"pixels of a form that pydicom does not read alone ({error})") from None
        kind = str(file.get("PhotometricInterpretation", ""))
        if kind == "PALETTE COLOR":
            stored = pydicom.pixels.apply_color_lut(stored, file)
        if stored.ndim == 3:
            return Scan(from_array(stored, 3), None, inverted=False)
        values = pydicom.pixels.apply_modality_lut(stored, file)
        window = _window(file)
        plain = window is None and stored.dtype == np.uint8 and np.array_equal(values, stored)
        pixels = from_array(stored if plain else np.asarray(values, np.float32), 1)
        return Scan(pixels, window, kind == INVERTED)


def _window(file: Any) -> Window | None:
    """Return the first window of a file; None where it has none."""
    first = [_first(file.get(name)) for name in ("WindowCenter", "WindowWidth")]
    if None in first or float(first[1]) <= 0:
        return None
    return Window(float(first[0]), float(first[1]), str(file.get("VOILUTFunction") or "LINEAR"))


def _first(value: Any) -> Any:
    """Return the first of several values, or the only one; None for none."""
    if value is None or value == "":
        return None
    return value if isinstance(value, str | int | float) else next(iter(value), None)


def picture(data: bytes, channels: int, reading: Reading) -> Tensor:
    """Return a DICOM file as a picture [C, H, W] of values 0 to 255; uint8 where it has 8 bits."""
    scan = read_scan(data)
    if scan.window and not reading.given:
        shares = scan.window.shares(scan.pixels.double().numpy())
        pixels = torch.from_numpy(shares.astype(np.float32) * 255)
    else:
        pixels = scaled(scan.pixels, reading)
    return fit_channels(255 - pixels if scan.inverted else pixels, channels, reading.background)


def values(data: bytes, channels: int) -> Tensor | None:
    """Return the values [C, H, W] that a range is measured on; None of a file that says how it is shown."""
    scan = read_scan(data)
    return None if scan.window else fit_channels(scan.pixels, channels)
