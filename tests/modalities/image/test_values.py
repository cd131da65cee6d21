"""What the numbers of a picture mean: order, orientation, range, transparency, the same for every format."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from multissl.contract.data import Sample, Unreadable
from multissl.modalities.image.adapter import Image
from multissl.modalities.image.files import SUFFIXES, decode, load
from multissl.modalities.image.headers import exif_orientation
from multissl.modalities.image.values import TURNS, Reading, from_array, measured_range

QUARTERS = np.zeros((32, 48, 3), np.uint8)
QUARTERS[:16, :24], QUARTERS[:16, 24:], QUARTERS[16:, :24] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
FORMS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "AVIF": ".avif"}


def encoded(picture: Any, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    (picture if isinstance(picture, Pillow.Image) else Pillow.fromarray(picture)).save(out, form, **options)
    return out.getvalue()


def corners(image: torch.Tensor) -> list[list[int]]:
    """The colors of the quarters of a picture, rounded to 0 or 250, row by row."""
    _, height, width = image.shape
    places = [(height // 4, width // 4), (height // 4, 3 * width // 4), (3 * height // 4, width // 4)]
    return [[250 * int(v > 125) for v in image[:, y, x].tolist()] for y, x in places]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("orientation", [*TURNS])
def test_pictures_are_turned_as_their_exif_says_in_every_format(form: str, orientation: int) -> None:
    if FORMS[form] not in SUFFIXES:
        pytest.skip(f"{form} is not read by the Pillow at hand")
    undone = {
        2: Pillow.Transpose.FLIP_LEFT_RIGHT, 3: Pillow.Transpose.ROTATE_180, 4: Pillow.Transpose.FLIP_TOP_BOTTOM,
        5: Pillow.Transpose.TRANSPOSE, 6: Pillow.Transpose.ROTATE_90, 7: Pillow.Transpose.TRANSVERSE,
        8: Pillow.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = Pillow.fromarray(QUARTERS).transpose(undone)
    exif = Pillow.Exif()
    exif[274] = orientation
    content = encoded(stored, form, exif=exif)
    image = decode(content, 3)
    assert image.shape == (3, 32, 48)
    assert corners(image) == [[250, 0, 0], [0, 250, 0], [0, 0, 250]]
    assert decode(content, 1).shape == (1, 32, 48)


def test_damaged_exif_turns_nothing() -> None:
    assert exif_orientation(b"\xff\xd8\xff\xe1\0\x10Exif\0\0broken") == 1
    assert exif_orientation(encoded(QUARTERS, "JPEG")) == 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "array", "palette", "gray"])
def test_what_is_transparent_shows_the_background_and_no_hidden_colors(form: str, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 4)).astype(np.uint8)
    pixels[..., 3] = 0
    data: Any = pixels
    if form == "palette":
        picture = Pillow.fromarray(pixels[..., :3]).quantize(2)
        picture.putpalette([255, 0, 0, 0, 255, 0])
        data = encoded(picture, "PNG", transparency=bytes([0, 0]))
    elif form == "gray":
        data = encoded(Pillow.fromarray(pixels[..., [0, 3]].copy(), "LA"), "PNG")
    elif form != "array":
        data = encoded(pixels, form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    for background, level in ((1.0, 255), (0.0, 0), (0.5, 128)):
        image = decode(data, channels, background)
        assert image.shape[0] == channels
        assert float(image.float().std()) == 0
        assert abs(float(image.float().mean()) - level) <= 1
    half = pixels.copy()
    half[..., 3], half[..., :3] = 128, 0
    assert abs(float(decode(half, 3).float().mean()) - 127) <= 1
    assert torch.equal(decode(pixels, 4), torch.from_numpy(pixels).permute(2, 0, 1)), "asked for, all is kept"


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int16])
def test_arrays_may_have_their_channels_first_or_last(channels: int, dtype: Any) -> None:
    array = np.random.default_rng(0).integers(0, 100, (20, 30, channels)).astype(dtype)
    last, first = (from_array(a, channels) for a in (array, np.moveaxis(array, -1, 0)))
    assert last.shape == (channels, 20, 30)
    assert torch.equal(first, last)
    assert from_array(np.zeros((3, 40, 3), np.uint8), 3).shape == (3, 3, 40), "where both fit, they are last"


def test_booleans_are_black_and_white() -> None:
    assert from_array(np.array([[True, False]]), 1).tolist() == [[[255, 0]]]


@pytest.mark.parametrize(
    ("low", "high", "dtype", "expected"),
    [
        (0, 4000, np.uint16, (0, 4095)),
        (0, 60_000, np.uint16, (0, 65_535)),
        (0, 900, np.int16, (0, 1023)),
        (-1000, 3000, np.int16, None),
        (0.0, 0.98, np.float32, (0, 1)),
        (0.0, 250.0, np.float64, (0, 255)),
        (-2.0, 2.0, np.float32, None),
    ],
)
def test_a_range_is_measured_over_the_set_and_travels_with_the_run(
    tmp_path: Path, low: float, high: float, dtype: Any, expected: tuple[float, float] | None
) -> None:
    rng = np.random.default_rng(0)
    for i in range(12):
        values = rng.uniform(low, high, (40, 50)) * (0.25 if i == 3 and low >= 0 else 1)
        np.save(tmp_path / f"{i:02}.npy", values.astype(dtype))
    modality = Image(Image.Config(data=str(tmp_path), channels=1, size=32, local_size=16, patch=16)).fit()
    reading = modality.reading()
    if expected:
        assert (reading.low, reading.high) == expected
    assert abs(reading.low - low) < 0.02 * (high - low)
    assert reading.high >= high - 0.02 * (high - low)
    data = modality.dataset("train")
    bright = [float(load(data[i], 1, reading).mean()) for i in (0, 2, 3)]
    assert abs(bright[0] - bright[1]) < 12
    assert bright[2] < bright[0] / 2 or low < 0, "one that is dark stays so: the range is of the set"
    restored = Image(Image.Config(data=str(tmp_path), channels=1, size=32, local_size=16, patch=16))
    restored.restore(modality.state())
    assert restored.reading() == reading


@pytest.mark.parametrize("form", ["float", "int16"])
def test_tiffs_of_floats_and_signed_numbers_train(tmp_path: Path, form: str) -> None:
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.random((40, 40)).astype(np.float32)
        pixels = pixels if form == "float" else (pixels * 4000 - 1000).astype(np.int32)
        Pillow.fromarray(pixels).save(tmp_path / f"{i}.tif")
    modality = Image(Image.Config(data=str(tmp_path), channels=1, size=32, local_size=16, patch=16)).fit()
    image = load(modality.dataset("train")[0], 1, modality.reading())
    assert 100 < float(image.mean()) < 155
    assert float(image.min()) < 10 < 245 < float(image.max())


def test_a_range_is_given_by_option_and_a_picture_without_one_names_it(tmp_path: Path) -> None:
    sample = Sample(np.full((20, 20), 50.0, np.float32), 0)
    with pytest.raises(Unreadable, match=r"its values are 50 to 50 .*--modality\.range 50 50"):
        load(sample, 1)
    assert load(sample, 1, Reading(0, 100)).unique().tolist() == [127.5]
    with pytest.raises(ValueError, match=r"modality\.range=\(5, 1\): want the values of black and white"):
        Image.Config(range=(5, 1))
    values = np.full((20, 20), 50.0, np.float32)
    values[3, 3] = np.nan
    with pytest.raises(Unreadable, match="1 of its 400 values are no finite numbers"):
        load(Sample(values, 0), 1, Reading(0, 100))


def test_eight_bits_are_measured_by_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        logging.getLogger("multissl"), "warning", lambda text, *args: said.append(text % args)
    )
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(QUARTERS, "PNG"))
    modality = Image(Image.Config(data=str(tmp_path))).fit()
    assert modality.reading() == Reading()
    assert not any("without 8 bits" in text for text in said)
    assert load(modality.dataset("train")[0], 3).dtype == torch.uint8


def test_an_even_set_has_a_range_of_one() -> None:
    assert measured_range([torch.full((1, 4, 4), 7.0)]) == (7.0, 8.0)
