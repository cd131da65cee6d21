"""An examination: what data holds and what is wrong with it, as a training would meet it.

State: none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from multissl.contract.abilities import HasPixelLabels, PixelLabel
from multissl.contract.data import Sample
from multissl.contract.modality import Modality
from multissl.doctor import checks
from multissl.doctor.checks import Finding
from multissl.doctor.reading import SplitReading, read_split, splits_of
from multissl.inference import readable_views

LIMIT = 10_000
"""Samples of a split that are read, unless more are asked for."""
MAPS: Mapping[PixelLabel, tuple[str, str]] = {
    "classes": ("masks", "patch_knn"),
    "depth": ("depth maps", "linear_depth"),
}
"""What labels of pixels are called, and an evaluator that reads them."""
SHOWN = 12
"""Samples that the page shows."""


@dataclass(kw_only=True, slots=True)
class Examination:
    """What was found."""

    plural: str
    """What samples are called."""
    whole: str
    """What they are parts of, the same where they are whole."""
    readings: Mapping[str, SplitReading]
    findings: Sequence[Finding]
    said: Sequence[str]
    """What was said of the data while it was listed and read, such as what was left out."""
    label_option: str = ""
    """The option that finds classes in names of files."""
    masks: Mapping[PixelLabel, int] = field(default_factory=dict)
    """How many samples have a label for every pixel, by the kind of label, where all samples were read."""
    pictures: Sequence[np.ndarray] = ()
    """Clean views of some samples, uint8 [H, W, 3]."""
    advice: list[str] = field(default_factory=list)
    """What to do next: a command, and why."""

    @property
    def looked_at(self) -> int:
        """Return how many samples were read."""
        return sum(len(reading.places) for reading in self.readings.values())

    def facts(self) -> list[tuple[str, str]]:
        """Return what the data holds, as names and values."""
        facts = []
        for split, reading in self.readings.items():
            total, read = len(reading.samples), len(reading.places)
            of = f", {read:,} of them read" if read < total else ""
            within = "" if reading.whole else f"{reading.total:,} {self.whole}, "
            facts.append((split, f"{within}{total:,} {self.plural}{of}"))
        counts = checks.class_counts(self.readings["train"])
        if counts:
            largest, smallest = counts.most_common()[0], counts.most_common()[-1]
            facts.append(
                (
                    "classes",
                    f"{len(counts):,}: {largest[1]:,} of {largest[0]} to {smallest[1]:,} of {smallest[0]}",
                )
            )
        else:
            from_names = f"; --modality.{self.label_option} finds them in names" if self.label_option else ""
            facts.append(("classes", f"none: figures that need labels step aside{from_names}"))
        for kind, count in self.masks.items():
            facts.append((MAPS[kind][0], f"{count:,} {self.plural} have one: --evals.add {MAPS[kind][1]}"))
        facts += [(unit, median_line(values)) for unit, values in self.extents().items()]
        return facts

    def extents(self) -> dict[str, list[float]]:
        """Return what the readable samples of all splits hold, by unit."""
        values: dict[str, list[float]] = {}
        for reading in self.readings.values():
            for held in reading.extents.values():
                for unit, value in held.items():
                    values.setdefault(unit, []).append(value)
        return values

    def lines(self) -> list[str]:
        """Return all of it as lines of text."""
        lines = [f"{name:<20} {value}" for name, value in self.facts()]
        lines += [f"{finding.kind:<20} {finding.text}" for finding in self.findings]
        if not self.findings:
            lines.append(f"nothing wrong was found in {self.looked_at:,} {self.plural}")
        return lines + self.advice


def examine(modality: Modality, limit: int = LIMIT) -> Examination:
    """Read up to `limit` samples of each split (0: all) and return what is found.

    Raises a ValueError where a training could not begin either: no such place, nothing readable.
    """
    with _listening() as said:
        modality.fit()
        readings = {s: read_split(modality, s, samples, limit) for s, samples in splits_of(modality).items()}
        whole = all(reading.whole for reading in readings.values())
        plural = modality.plural if whole else "samples"
        copied = checks.copies_of(modality, [*readings])
        findings = [
            *checks.unreadable(readings, plural),
            *checks.copies(modality, readings, copied),
            *checks.near_copies(modality, readings, copied),
            *checks.odd(readings, plural),
            *checks.missing(modality.missing()),
            *checks.absent(modality.lacking(), plural),
            *checks.classes(readings),
            *checks.series(readings, plural, modality.group_option),
        ]
        masks = _masks(modality, readings)
        pictures = _pictures(modality, readings["train"])
    return Examination(
        plural=plural, whole=modality.plural, readings=readings, findings=findings, said=list(dict.fromkeys(said)),
        label_option=modality.label_option, masks=masks, pictures=pictures,
    )  # fmt: skip


def _masks(modality: Modality, readings: Mapping[str, SplitReading]) -> dict[PixelLabel, int]:
    """Return how many samples have labels of pixels, by kind; nothing where not all samples were to be read."""
    if not isinstance(modality, HasPixelLabels) or any(
        len(r.places) < len(r.samples) for r in readings.values()
    ):
        return {}
    counts: dict[PixelLabel, int] = {
        kind: sum(len(modality.with_pixel_labels(split, kind)) for split in readings) for kind in MAPS
    }
    return {kind: count for kind, count in counts.items() if count}


def _pictures(modality: Modality, reading: SplitReading) -> list[np.ndarray]:
    """Return clean views of some readable training samples as pictures, where they are some."""
    readable = [place for place in reading.places if place not in reading.reasons]
    some: list[Sample] = [
        reading.samples[readable[i * len(readable) // SHOWN]] for i in range(min(SHOWN, len(readable)))
    ]
    if not some:
        return []
    views, _ = readable_views(modality, some, next(iter(modality.streams())))
    pictures = modality.pictures(views)
    return [] if pictures is None else list(pictures)


def median_line(values: Sequence[float]) -> str:
    """Return the median of values, with the smallest and the largest where they differ."""
    low, middle, high = (float(np.quantile(values, q)) for q in (0, 0.5, 1))
    if low == high:
        return f"{middle:,g}"
    return f"{_number(middle)} (median), {_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collect what is said in warnings meanwhile."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    ear = Ear(logging.WARNING)
    log = logging.getLogger("multissl")
    log.addHandler(ear)
    try:
        yield said
    finally:
        log.removeHandler(ear)
