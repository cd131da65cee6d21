"""Samples of every split, read once each: what they hold, or why they cannot be read.

Shapes: S samples that were read.  State: none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from multissl.contract.data import Sample, Samples, Unreadable
from multissl.contract.modality import Modality
from multissl.inference import drawn
from multissl.waiting import followed

SPLITS = ("train", "val", "test")
SAID = 60
"""Characters of a text by which a sample is called that is no file."""
PICTURES = 10_000
"""The most thumbnails of a split."""


@dataclass(kw_only=True, slots=True)
class SplitReading:
    """What was read of a split."""

    samples: Samples
    places: list[int]
    """Positions in the split that were looked at, ascending."""
    contents: int = 0
    """How many things it holds that samples are parts of, such as episodes; 0 where nothing can be compared."""
    names: dict[int, str] = field(default_factory=dict)
    """How samples are called, by position."""
    extents: dict[int, Mapping[str, float]] = field(default_factory=dict)
    """What the readable ones hold, by position."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Why others cannot be read, by position."""
    grouped: bool = False
    """Whether a sample belongs to a group."""
    thumbnails: dict[int, np.ndarray] = field(default_factory=dict)
    """float32 [16, 16, C], by position; only of pictures and videos."""

    @property
    def total(self) -> int:
        """Return how many things of the modality's own unit the split holds."""
        return self.contents or len(self.samples)

    @property
    def whole(self) -> bool:
        """Return whether its samples are these things, not parts of them."""
        return self.total == len(self.samples)


def splits_of(modality: Modality) -> dict[str, Samples]:
    """Return the samples of every split there is. Raises a ValueError where there are none to train on."""
    splits = {"train": modality.dataset("train")}
    for split in SPLITS[1:]:
        try:
            splits[split] = modality.dataset(split)
        except (ValueError, KeyError):  # data without a test split, or too little to validate on
            continue
    return splits


def read_split(modality: Modality, split: str, samples: Samples, limit: int) -> SplitReading:
    """Read `limit` of a split's samples (0: all), always the same ones, and what a thumbnail shows of pictures."""
    contents = modality.contents(split)
    reading = SplitReading(
        samples=samples, places=drawn(len(samples), limit), contents=len(contents[0]) if contents else 0
    )
    for place in followed(reading.places, f"reading {split}", len(reading.places)):
        reading.names[place] = f"{split} {place}"
        try:
            sample = samples[place]
            reading.names[place] = name_of(modality, split, place, sample)
            reading.grouped |= sample.group >= 0
            reading.extents[place], picture = modality.examined(sample)
        except Unreadable as bad:
            reading.reasons[place] = bad.reason
            continue
        if picture is not None and len(reading.thumbnails) < PICTURES:
            reading.thumbnails[place] = picture
    return reading


def name_of(modality: Modality, split: str, place: int, sample: Sample) -> str:
    """Return how a sample is called: its file, or its place with what is known of it."""
    known = modality.describe(sample)
    said = next(iter(known.values()), "")[:SAID]
    return known.get("file") or f"{split} {place}{f' ({said})' if said else ''}"


def reason_counts(reading: SplitReading) -> Counter[str]:
    """Return how often each reason was given, without the sample that most begin with."""
    reasons = (
        reason.removeprefix(reading.names[place]).lstrip(": ").replace(repr(reading.names[place]), "it")
        for place, reason in reading.reasons.items()
    )
    return Counter(
        re.sub(r"^(?:row|document|line|sample) \d+:? (?:of \S+ )?", "", reason) for reason in reasons
    )
