from __future__ import annotations

import hashlib

import numpy as np
import pytest

from multissl.modalities.image.demo import CLASSES, motifs

FROZEN = {
    "train": "505a1792cf5f733886f9318aba6c769a035834b86e6ecbdc31225d4a00b12eb3",
    "val": "a48057382f34206d828165300714b14f8951df33814da05f3eaffd146cceacb2",
    "test": "cd615be037bb99564cbef109e4cf7869111c408d00b14345ba43222dca84503e",
}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_demo_pictures_are_frozen_to_the_byte(split: str) -> None:
    images, labels = motifs(split)
    assert images.shape == (5000 if split == "train" else 1000, 32, 32, 3)
    assert hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() == FROZEN[split]


def test_classes_are_balanced_and_pictures_use_the_whole_range() -> None:
    images, labels = motifs("val")
    assert np.bincount(labels).tolist() == [100] * len(CLASSES)
    assert images.min() == 0
    assert images.max() == 255
