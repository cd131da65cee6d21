"""The demo sound dataset: eight synthetic gestures, made as they are asked for, so that a run needs no download.

A class is what a sound does over time: a steady tone, vibrato, tremolo, a rise, a fall, a trill of two pitches, even
beats, galloping beats. All else is nuisance, drawn for each sound: pitch over three octaves, loudness, timbre (how
strong each of four harmonics is), the speed of the gesture, where in it the sound begins, a second, steady tone
elsewhere, and noise. No usual change of a view (segment, gain, noise, masks) undoes pitch, timbre or the second tone.

Only a frozen random stream and integer arithmetic are used: the bytes are the same on every machine.
Shapes: 1.6 s at 16 kHz, int16 [S].  State: none.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from multissl.sources.splits import SplitSamples

RATE, SAMPLES = 16_000, 25_600
TURN, BITS = 1 << 24, 12  # phases in 2^-24 turns; sines from a table of 2^12 values
ONE = 1 << 14
CLASSES = ("tone", "vibrato", "tremolo", "rise", "fall", "trill", "beats", "gallop")
SPLITS = {"train": (2400, 40_009), "val": (600, 80_021), "test": (600, 90_001)}
_SINE = np.array([round(ONE * math.sin(2 * math.pi * k / 4096)) for k in range(4096)], dtype=np.int64)
_NOTES = np.array([round(TURN / RATE * 180 * 2 ** (k / 24)) for k in range(73)], dtype=np.int64)
_DECAY = np.array([round(ONE * math.exp(-k / 128)) for k in range(1024)], dtype=np.int64)
_T = np.arange(SAMPLES, dtype=np.int64)


def _sin(phase: Any) -> Any:
    return _SINE[(phase >> (24 - BITS)) & 4095]


def gesture(kind: str, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Phase step and loudness (0 to ONE) of every sample, int64 [S]."""
    note = _NOTES[rng.randint(0, 73)]
    speed = TURN // RATE * rng.randint(40, 81) // 10  # 4 to 8 turns a second
    turn = _T * speed + rng.randint(0, TURN)
    step, loud = np.full(SAMPLES, note), np.full(SAMPLES, ONE)
    if kind == "vibrato":
        step = note + (note * _sin(turn) * 3 >> 14) // 25  # 12 %, two semitones
    elif kind == "tremolo":
        loud = ONE // 2 + (_sin(turn) * 7 >> 4)
    elif kind in ("rise", "fall"):  # over an octave and back again at once, 0.9 to 1.8 times per second
        saw = (_T * (speed * 22 // 100) + rng.randint(0, TURN)) % TURN
        saw = saw if kind == "rise" else TURN - 1 - saw
        step = (note * 7 // 10) + (note * 7 // 10 * saw >> 24)
    elif kind == "trill":
        step = np.where(turn % TURN < TURN // 2, note, note * 5 // 4)
    elif kind in ("beats", "gallop"):
        bar = (turn // (1 if kind == "beats" else 2)) % TURN
        if kind == "gallop":  # two blows a bar, a third of it apart
            bar = np.where(bar < TURN // 3, bar, bar - TURN // 3)
            bar = bar * 2
        loud = _DECAY[np.minimum(bar * 700 >> 24, 1023)]
    return step, loud


def sound(split: str, number: int) -> tuple[np.ndarray, int]:
    """One sound, int16 [S], and its class."""
    rng = np.random.RandomState(SPLITS[split][1] + number)
    label = number % len(CLASSES)
    step, loud = gesture(CLASSES[label], rng)
    phase = np.cumsum(step) + rng.randint(0, TURN)
    harmonics = rng.randint(0, 100, 4)
    harmonics[0] += 60
    wave = sum(int(w) * _sin(phase * (k + 1)) for k, w in enumerate(harmonics)) // int(harmonics.sum())
    wave = wave * loud >> 14
    second = _sin(_T * _NOTES[rng.randint(0, 73)] * rng.randint(1, 4) + rng.randint(0, TURN))
    noise = rng.randint(-ONE, ONE, SAMPLES)
    wave = wave * 100 + second * rng.randint(0, 60) + noise * rng.randint(1, 40)  # up to 2^14 * 200
    wave = wave * rng.randint(20, 200) // 400  # 20 dB of loudness
    return np.clip(wave >> 6, -32768, 32767).astype(np.int16), label


class Sounds(Sequence[np.ndarray]):
    """The sounds of a split, made when they are read."""

    def __init__(self, split: str) -> None:
        self.split = split

    def __len__(self) -> int:
        return SPLITS[self.split][0]

    def __getitem__(self, row: Any) -> Any:
        return sound(self.split, int(row))[0]


@functools.cache
def demo_split(split: str) -> SplitSamples:
    """Return the samples of "train", "val" or "test"; "all" is "train"."""
    data = Sounds("train" if split == "all" else split)
    rows = np.arange(len(data))
    labels, no_groups = rows % len(CLASSES), np.full(len(rows), -1)
    return SplitSamples(data=data, labels=labels, groups=no_groups, classes=list(CLASSES), rows=rows)
