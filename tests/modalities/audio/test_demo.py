from __future__ import annotations

import hashlib

import numpy as np
import pytest

from multissl.modalities.audio.adapter import Audio
from multissl.modalities.audio.demo import CLASSES, SAMPLES, sound
from multissl.modalities.audio.files import Clip

FROZEN = {
    "train": "e715289fdeb4558e3d22c783b35b9189bab3e33823d2f0fcaa74d609fefcada7",
    "val": "a553dd31ea5aa5e1667274b3b5acb39fc7dd14241bd88b5ae60451ebc4685a73",
    "test": "c2793a7c12615198096898e2fb84a62ad25b9d2a91012d5f1d43545d5cecbb9e",
}


@pytest.mark.parametrize("split", [*FROZEN])
def test_the_demo_sounds_are_frozen_to_the_byte(split: str) -> None:
    digest = hashlib.sha256()
    for number in range(64):
        wave, label = sound(split, number)
        assert wave.shape == (SAMPLES,)
        assert wave.dtype == np.int16
        assert label == number % len(CLASSES)
        digest.update(wave.astype("<i2").tobytes())
    assert digest.hexdigest() == FROZEN[split]


def test_demo_sounds_are_balanced_loud_and_soft_and_never_clipped() -> None:
    data = Audio.Config().build().dataset("val")
    labels = [data[i].label for i in range(len(data))]
    assert np.bincount(labels).tolist() == [75] * len(CLASSES)
    waves = np.stack([data[i].data for i in range(80)]) / 32768.0
    assert np.abs(waves).max() < 1
    level = 20 * np.log10(waves.std(1))
    assert np.ptp(level) > 15
    assert Clip(data[3], 16_000).length == SAMPLES


def test_each_gesture_does_what_its_name_says() -> None:
    """Loudness and pitch over time, measured on the gesture itself."""
    from multissl.modalities.audio.demo import gesture

    for kind in CLASSES:
        for seed in range(5):
            step, loud = gesture(kind, np.random.RandomState(seed))
            assert step.min() > 0
            assert loud.min() >= 0
            assert (np.ptp(step) > 0) == (kind in ("vibrato", "rise", "fall", "trill")), kind
            assert (np.ptp(loud) > 0) == (kind in ("tremolo", "beats", "gallop")), kind
            if kind in ("rise", "fall"):
                up = (np.diff(step) >= 0).mean()
                assert up > 0.99 if kind == "rise" else (np.diff(step) <= 0).mean() > 0.99
            if kind in ("beats", "gallop"):
                blows = np.flatnonzero(np.diff(loud) > 4000)
                gaps = np.diff(blows)
                uneven = gaps.max() / gaps.min()
                assert uneven < 1.05 if kind == "beats" else 1.5 < uneven < 2.5
