"""Two sets of pictures with a label for every pixel, drawn from real files whose labels are known by construction.

    python -m benchmarks.dense_sets FOLDER --digits mnist-train.parquet mnist-test.parquet \
        --photos caltech101-train.tar caltech101-test.tar

FOLDER/digits: six digits of MNIST on a canvas of 64 pixels over a gradient; the mask has 0 for what is behind, 1 to 10
for the digit that a pixel belongs to. FOLDER/discs: a photograph at depth 10 with six discs cut from other photographs
at depths of 1 to 8; a disc's radius is 40 pixels over its depth, the nearer hides the farther, and the map is exact.
Train and val are drawn from the two files that are named, so that no digit and no photograph is in both.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from PIL import Image

from multissl.modalities.image.files import SUFFIXES
from multissl.sources.opening import open_source

SIDE, DIGITS, DISCS, FAR = 64, 6, 6, 10.0
COUNTS = {"train": 400, "val": 100}
Labeled = tuple[np.ndarray, np.ndarray]
"""A picture and its labels."""


def digits(file: str) -> tuple[list[np.ndarray], list[int]]:
    """Return the digits of a file, uint8 [28, 28], and which they are."""
    table = parquet.read_table(file)
    pictures = [
        np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("L")) for cell in table["image"].to_pylist()
    ]
    return pictures, table["label"].to_pylist()


def canvas(draw: np.random.Generator, pictures: Sequence[np.ndarray], labels: Sequence[int]) -> Labeled:
    """Return a canvas uint8 [64, 64, 3] and its mask uint8 [64, 64]."""
    low, high = draw.integers(0, 120, (2, 3))
    ramp = np.linspace(0, 1, SIDE)[:, None, None]
    image = np.broadcast_to(low + (high - low) * ramp, (SIDE, SIDE, 3)).copy()
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for number in draw.integers(0, len(pictures), DIGITS).tolist():
        top, left = draw.integers(0, SIDE - 28 + 1, 2)
        ink = pictures[number] > 100
        color = draw.integers(130, 256, 3)
        image[top : top + 28, left : left + 28][ink] = color
        mask[top : top + 28, left : left + 28][ink] = labels[number] + 1
    return image.clip(0, 255).astype(np.uint8), mask


def photos(file: str) -> list[np.ndarray]:
    """Return photographs of a file, cut to squares of 64 pixels."""
    data: Sequence[Any] = [*open_source(file, "all", SUFFIXES).data]
    made = []
    for i in range(0, len(data), max(1, len(data) // 300)):
        picture = Image.open(io.BytesIO(data[i].read())).convert("RGB")
        made.append(np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return made


def scene(draw: np.random.Generator, pictures: Sequence[np.ndarray]) -> Labeled:
    """Return a scene uint8 [64, 64, 3] and its depth uint16 [64, 64], in thousandths."""
    image = pictures[int(draw.integers(len(pictures)))].copy()
    depth = np.full((SIDE, SIDE), FAR)
    y, x = np.mgrid[:SIDE, :SIDE]
    for near in sorted(draw.uniform(1, 8, DISCS).tolist(), reverse=True):
        cy, cx = draw.integers(0, SIDE, 2)
        inside = (y - cy) ** 2 + (x - cx) ** 2 <= (40 / near) ** 2
        image[inside] = pictures[int(draw.integers(len(pictures)))][inside]
        depth[inside] = near
    return image, np.round(1000 * depth).astype(np.uint16)


def write(folder: Path, split: str, number: int, image: np.ndarray, labels: np.ndarray, beside: str) -> None:
    """Write a picture with its labels."""
    for name, values in (("images", image), (beside, labels)):
        path = folder / name / split / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)


def main() -> None:
    """Write both sets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--digits", nargs=2, required=True)
    parser.add_argument("--photos", nargs=2, required=True)
    options = parser.parse_args()
    for place, (split, count) in enumerate(COUNTS.items()):
        draw = np.random.default_rng(place)
        pictures, labels = digits(options.digits[place])
        for number in range(count):
            image, mask = canvas(draw, pictures, labels)
            write(options.folder / "digits", split, number, image, mask, "masks")
        textures = photos(options.photos[place])
        for number in range(count):
            image, depth = scene(draw, textures)
            write(options.folder / "discs", split, number, image, depth, "depth")


if __name__ == "__main__":
    main()
