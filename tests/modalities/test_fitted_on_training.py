"""What a modality learns from data comes from the training samples alone, whatever the other splits hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multissl.contract.data import Sample, Samples
from multissl.contract.modality import Modality
from multissl.modalities.audio.adapter import Audio
from multissl.modalities.image.adapter import Image
from multissl.modalities.tabular.adapter import Tabular
from multissl.modalities.text.adapter import Text
from tests.helpers.stubs import Listed


def by_split(modality: Any, train: Sequence[Sample], others: Sequence[Sample]) -> Any:
    """The modality with these samples, those of no split with both."""

    def dataset(split: str) -> Samples:
        return Listed(train if split == "train" else [*others, *train] if split == "all" else others)

    modality.dataset = dataset
    return modality


def sounds(count: int, loudness: float) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [Sample(rng.normal(0, loudness, 9000).astype(np.float32), i) for i in range(count)]


def pictures(count: int, bright: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [Sample(rng.integers(bright, bright + 40, (16, 16, 3)).astype(np.uint8), i) for i in range(count)]


def sound(_folder: Path, far: bool) -> Modality:
    modality = Audio.Config(frames=32, local_frames=16, mels=32, patch=(8, 8)).build()
    return by_split(modality, sounds(6, 0.1), sounds(6, 0.001 if far else 0.1))


def image(_folder: Path, far: bool) -> Modality:
    modality = Image.Config(size=16, local_size=8, patch=4, measure=True).build()
    return by_split(modality, pictures(6, 20), pictures(6, 200 if far else 20))


def written(folder: Path, far: bool, row: Callable[[int, bool], str]) -> Tabular:
    """A table of 120 rows; where `far`, the rows beside the training rows are others."""

    def build(changed: set[int]) -> Tabular:
        path = folder / f"{len(changed)}.csv"
        path.write_text("\n".join(["age,color,target", *(row(i, i in changed) for i in range(120))]) + "\n")
        return Tabular(Tabular.Config(data=str(path)))

    splits = build(set()).fit().rows().splits
    return build({int(i) for name in ("val", "test") for i in splits[name]} if far else set())


def table(folder: Path, far: bool) -> Modality:
    """A class, a level and a number that only rows beside the training rows have."""
    return written(
        folder,
        far,
        lambda i, odd: f"{1000 + i},violet,maybe" if odd else f"{20 + i},{'br'[i % 2]},{'ny'[i % 2]}",
    )


def quantity(folder: Path, far: bool) -> Modality:
    """A label of numbers, cut at fifths."""
    return written(folder, far, lambda i, odd: f"{i + 500 * odd},{'br'[i % 2]},{10_000 * odd + i * 0.5}")


def words(folder: Path, far: bool) -> Modality:
    for split in ("train", "val", "test"):
        (folder / f"{far}" / split).mkdir(parents=True, exist_ok=True)
        text = "quick quacks of xylophones " if far and split != "train" else "the same few words again "
        for i in range(8):
            (folder / f"{far}" / split / f"{i}.txt").write_text(text * 40)
    return Text.Config(
        data=str(folder / f"{far}"), vocab=280, length=16, local_length=8, mask_group=4
    ).build()


MADE: dict[str, Callable[[Path, bool], Modality]] = {
    "audio": sound, "image": image, "classes": table, "quantity": quantity, "text": words,
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_other_splits_change_nothing_that_is_fitted(name: str, tmp_path: Path) -> None:
    near, far = (MADE[name](tmp_path, far).fit() for far in (False, True))
    assert json.dumps(far.state(), default=str) == json.dumps(near.state(), default=str)
    data: Any = near.dataset("val"), far.dataset("val")
    assert str(data[0][0].data) != str(data[1][0].data), "the other splits are the same"
