"""DICOM files: values by slope and intercept, windows, inverted ones, a range over the set, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multissl.contract.data import Sample, Unreadable
from multissl.modalities.image.adapter import Image
from multissl.modalities.image.files import SUFFIXES, dimensions, load
from multissl.modalities.image.values import Reading

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
STORED = np.array([[0, 1000, 2000, 3000], [4000, 1024, 1224, 824]], np.uint16)  # 12 bits of a CT
UNITS = STORED.astype(np.float32) - 1024


def scan(pixels: np.ndarray = STORED, bits: int = 12, kind: str = "MONOCHROME2", **tags: Any) -> bytes:
    """Return a DICOM file of pixels [H, W], [H, W, 3] or [frames, H, W]."""
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    file.SamplesPerPixel = 3 if kind == "RGB" else 1
    if kind == "RGB":
        file.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        file.NumberOfFrames = len(pixels)
    file.Rows, file.Columns = pixels.shape[:2] if kind == "RGB" else pixels.shape[-2:]
    file.PhotometricInterpretation, file.PixelRepresentation = kind, int(pixels.dtype.kind == "i")
    file.BitsAllocated, file.BitsStored, file.HighBit = 8 * pixels.itemsize, bits, bits - 1
    file.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    target = io.BytesIO()
    pydicom.dcmwrite(target, file, enforce_file_format=True)
    return target.getvalue()


def read(data: bytes, channels: int = 1, **reading: Any) -> torch.Tensor:
    return load(Sample(data, 0), channels, Reading(**reading))


CT: dict[str, Any] = {"RescaleSlope": 1, "RescaleIntercept": -1024}
WINDOW: dict[str, Any] = {**CT, "WindowCenter": 0, "WindowWidth": 401}


def test_a_window_says_what_is_black_and_white() -> None:
    shown = read(scan(**WINDOW))
    # PS3.3 C.11.2.1.2: ((x - (c - 0.5)) / (w - 1) + 0.5) between 0 and 1
    expected = 255 * ((UNITS + 0.5) / 400 + 0.5).clip(0, 1)
    torch.testing.assert_close(shown[0], torch.from_numpy(expected), atol=1e-3, rtol=0)
    assert float(shown.min()) == 0
    assert float(shown.max()) == 255


def test_the_first_of_several_windows_and_other_shapes_are_read() -> None:
    several = {**CT, "WindowCenter": [0, 500], "WindowWidth": [401, 50]}
    torch.testing.assert_close(read(scan(**several)), read(scan(**WINDOW)))
    exact = read(scan(**{**WINDOW, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"}))
    torch.testing.assert_close(
        exact[0], torch.from_numpy(255 * (UNITS / 400 + 0.5).clip(0, 1)), atol=1e-3, rtol=0
    )
    curve = read(scan(**{**WINDOW, "VOILUTFunction": "SIGMOID"}))
    torch.testing.assert_close(
        curve[0], torch.from_numpy(255 / (1 + np.exp(-4 * UNITS / 401))), atol=1e-2, rtol=0
    )


def test_a_range_that_is_given_comes_before_the_window() -> None:
    shown = read(scan(**WINDOW), low=-1024.0, high=2976.0, given=True)
    torch.testing.assert_close(shown[0], torch.from_numpy((UNITS + 1024) / 4000 * 255), atol=1e-3, rtol=0)
    measured = read(scan(**WINDOW), low=-1024.0, high=2976.0)
    torch.testing.assert_close(measured, read(scan(**WINDOW)))


def test_low_values_of_monochrome1_are_white() -> None:
    torch.testing.assert_close(read(scan(kind="MONOCHROME1", **WINDOW)), 255 - read(scan(**WINDOW)))
    flat = np.array([[0, 100], [200, 255]], np.uint8)
    assert read(scan(flat, 8, kind="MONOCHROME1"))[0].tolist() == [[255, 155], [55, 0]]


def test_eight_bits_and_colors_are_what_they_are() -> None:
    flat = np.arange(64, dtype=np.uint8).reshape(8, 8)
    shown = read(scan(flat, 8), channels=3)
    assert shown.dtype == torch.uint8
    assert torch.equal(shown, torch.from_numpy(flat).expand(3, 8, 8))
    colors = np.random.default_rng(0).integers(0, 255, (8, 6, 3), np.uint8)
    assert torch.equal(
        read(scan(colors, 8, kind="RGB"), channels=3), torch.from_numpy(colors).permute(2, 0, 1)
    )


def test_without_a_window_a_range_is_measured_over_the_set_and_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(24, 200 + 168 * number, (20, 30)).astype(np.uint16)
        (tmp_path / f"{number}.dcm").write_bytes(scan(pixels, **CT))
    (tmp_path / "nameless").write_bytes(scan(rng.integers(24, 2048, (20, 30)).astype(np.uint16), **CT))
    assert ".dcm" in SUFFIXES
    modality = Image.Config(data=str(tmp_path), channels=1, size=0, local_size=0, patch=0, blur_kernel=0)
    made = modality.build().fit()
    assert isinstance(made, Image)
    assert len(made.dataset("all")) == 13
    low, high = made.state()["range"]
    assert -1024 <= low < -950
    assert 950 < high <= 1024
    assert made.cfg.size == 20
    assert dimensions(made.dataset("train")[0], 1, made.reading()) == (30, 20)
    with pytest.raises(Unreadable, match=r"no 8 or 16 bits: say what is black and white by modality.range"):
        read(scan(**CT))


def test_files_that_are_no_picture_are_refused_in_a_line() -> None:
    with pytest.raises(Unreadable, match="holds 3 frames, and a picture is one"):
        read(scan(np.stack([STORED] * 3), **WINDOW))
    empty = scan()
    cut = pydicom.dcmread(io.BytesIO(empty))
    del cut.PixelData
    target = io.BytesIO()
    cut.save_as(target)
    with pytest.raises(Unreadable, match="a DICOM file without a picture"):
        read(target.getvalue())
    with pytest.raises(Unreadable):
        read(empty[:-4])
    huge = scan(Rows=60_000, Columns=60_000)
    with pytest.raises(Unreadable, match="its header says 60,000 x 60,000"):
        read(huge)
