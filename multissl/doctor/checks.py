"""One function for each kind of finding. They return findings; nothing is printed here.

Shapes: n samples of a column, over all splits one after the other.  State: none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from multissl.contract.modality import Modality
from multissl.doctor.reading import SplitReading, name_of, reason_counts
from multissl.sources.copies import Equal, equal_rows, near_duplicates
from multissl.sources.payloads import Joined

READ = 8 * 2**30
"""The most bytes of files that are compared for equal contents."""
USUAL = 0.8
"""Share of samples that must agree in a value for the others to be odd."""
VARYING = ("seconds", "frames", "tokens")
"""What samples hold different amounts of without being odd."""
UNEVEN = 10
"""Times as many samples of the largest class as of the smallest from which that is worth a line."""
SERIES, MEMBERS = 5, 3
"""The fewest series that names tell of, and the fewest members of one of usual size."""


class Finding(NamedTuple):
    """Something that is worth knowing before a training."""

    kind: str
    """In a word: unreadable, equal, near-equal, leaked, odd, missing, classes, series."""
    text: str
    names: Sequence[str] = ()
    """The samples that it is about."""


class Place(NamedTuple):
    """A sample: its split and its position there."""

    split: str
    row: int


def unreadable(readings: Mapping[str, SplitReading], plural: str) -> list[Finding]:
    """Return how many samples cannot be read, and why."""
    names, reasons, looked = [], Counter[str](), 0
    for reading in readings.values():
        looked += len(reading.places)
        names += [reading.names[place] for place in reading.reasons]
        reasons += reason_counts(reading)
    if not names:
        return []
    why = "; ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common(5))
    return [Finding("unreadable", f"{len(names):,} of {looked:,} {plural} cannot be read: {why}", names)]


def odd(readings: Mapping[str, SplitReading], plural: str) -> list[Finding]:
    """Return which samples differ from nearly all others in a rate or a size."""
    findings = []
    extents = [
        (reading.names[p], held) for reading in readings.values() for p, held in reading.extents.items()
    ]
    for unit in dict.fromkeys(unit for _, held in extents for unit in held if unit not in VARYING):
        values = [(name, held[unit]) for name, held in extents if unit in held]
        counts = Counter(value for _, value in values)
        usual, often = counts.most_common(1)[0]
        if often == len(values) or often < USUAL * len(values):
            continue
        names = [name for name, value in values if value != usual]
        others = ", ".join(f"{v:,g} ({c:,})" for v, c in counts.most_common(9) if v != usual)
        text = f"{len(names):,} of {len(values):,} {plural} have another number of {unit} than {usual:,g}: {others}"
        findings.append(Finding("odd", text, names))
    return findings


def missing(shares: Mapping[str, float]) -> list[Finding]:
    """Return in which columns values are missing or unknown."""
    if not shares:
        return []
    listed = ", ".join(
        f"{name} {100 * share:.2g} %" for name, share in sorted(shares.items(), key=lambda x: -x[1])
    )
    return [Finding("missing", f"values that are missing or unknown, by column: {listed}", list(shares))]


def absent(lacking: Mapping[str, tuple[int, int]], plural: str) -> list[Finding]:
    """Return how many samples lack a stream."""
    return [
        Finding("missing", f"{count:,} of {total:,} {plural} lack {stream}")
        for stream, (count, total) in lacking.items()
    ]


class Copied(NamedTuple):
    """What is equal among the contents of all splits, one after the other."""

    where: Sequence[Place]
    equal: Equal


def copies_of(modality: Modality, splits: Sequence[str]) -> Copied | None:
    """Return which contents are equal; None where there is nothing to compare."""
    columns = [modality.contents(split) for split in splits]
    if not columns or not all(columns) or any(len(each) != len(columns[0]) for each in columns):
        return None
    lengths = {split: len(each[0]) for split, each in zip(splits, columns, strict=True)}
    where = [Place(split, row) for split, length in lengths.items() for row in range(length)]
    return Copied(where, equal_rows((Joined([*parts]) for parts in zip(*columns, strict=True)), READ))


def copies(modality: Modality, readings: Mapping[str, SplitReading], copied: Copied | None) -> list[Finding]:
    """Return how many contents are equal, and how many of them a split shares with the training samples."""
    if copied is None:
        return []
    where, equal = _readable(copied, readings)
    _, number, sizes = np.unique(equal.sets, return_inverse=True, return_counts=True)
    alike = [place for place, size in zip(where, sizes[number].tolist(), strict=True) if size > 1]
    findings = []
    if alike:
        several = int((sizes > 1).sum())
        text = (
            f"{len(alike):,} of {int(equal.compared.sum()):,} {modality.plural} have an equal one: {several:,} sets, "
            f"{len(alike) - several:,} to leave out"
        )
        findings.append(Finding("equal", text, _names(modality, readings, alike)))
    train = np.unique(equal.sets[[i for i, place in enumerate(where) if place.split == "train"]])
    shared = [
        p
        for p, known in zip(where, np.isin(equal.sets, train).tolist(), strict=True)
        if known and p.split != "train"
    ]
    return findings + _leaked(modality, readings, shared, "equal to")


def _readable(copied: Copied, readings: Mapping[str, SplitReading]) -> Copied:
    """Return what is equal without the samples that cannot be read, such as empty files, which are named as that."""
    bad = {
        Place(split, row) for split, reading in readings.items() if reading.whole for row in reading.reasons
    }
    good = np.array([place not in bad for place in copied.where], dtype=bool)
    where = [place for place, readable in zip(copied.where, good.tolist(), strict=True) if readable]
    return Copied(where, Equal(copied.equal.sets[good], copied.equal.compared[good]))


def near_copies(
    modality: Modality, readings: Mapping[str, SplitReading], copied: Copied | None
) -> list[Finding]:
    """Return how many pictures look like another one and are not equal to it, and how many of them splits share."""
    same = dict(zip(copied.where, copied.equal.sets.tolist(), strict=True)) if copied else {}
    pictures: dict[tuple[str, Hashable], np.ndarray] = {}  # of equal ones of a split the first
    members: dict[tuple[str, Hashable], list[Place]] = {}
    for split, reading in readings.items():
        for row, picture in reading.thumbnails.items():
            place = Place(split, row)
            key: tuple[str, Hashable] = (split, same.get(place, place))
            pictures.setdefault(key, picture)
            members.setdefault(key, []).append(place)
    looked_at = sum(len(reading.thumbnails) for reading in readings.values())
    if len(pictures) < 2:
        return []
    keys = list(pictures)
    near = [(keys[i], keys[j]) for i, j in near_duplicates(np.stack([*pictures.values()]))]
    pairs = [(members[one], members[other]) for one, other in near if one[1] != other[1]]
    alike = sorted({place for pair in pairs for places in pair for place in places})
    if not alike:
        return []
    text = (
        f"{len(alike):,} of {looked_at:,} {modality.plural} look like another one, as after another encoding"
    )
    findings = [Finding("near-equal", text, _names(modality, readings, alike))]
    across = [pair for pair in pairs if len({places[0].split == "train" for places in pair}) == 2]
    shared = sorted(
        {place for pair in across for places in pair for place in places if place.split != "train"}
    )
    return findings + _leaked(modality, readings, shared, "like")


def _leaked(
    modality: Modality, readings: Mapping[str, SplitReading], shared: Sequence[Place], how: str
) -> list[Finding]:
    """Return, for every split beside training, how many of its samples are in the training samples too."""
    findings = []
    for split in dict.fromkeys(place.split for place in shared):
        here = [place for place in shared if place.split == split]
        text = (
            f"{len(here):,} of {readings[split].total:,} {modality.plural} of {split} are {how} training "
            f"{modality.plural}: figures on {split} are too high"
        )
        findings.append(Finding("leaked", text, _names(modality, readings, here)))
    return findings


def classes(readings: Mapping[str, SplitReading]) -> list[Finding]:
    """Return whether classes are uneven, of one sample, or in a split that training has none of."""
    counts = {split: class_counts(reading) for split, reading in readings.items()}
    train = counts["train"]
    if not train:
        return []
    findings = []
    (large, most), (small, least) = train.most_common()[0], train.most_common()[-1]
    if most >= UNEVEN * least:
        text = f"classes are uneven: {most:,} training samples of {large}, {least:,} of {small}"
        findings.append(Finding("classes", text, [name for name, n in train.items() if n * UNEVEN <= most]))
    for split, known in counts.items():
        if unseen := [name for name in known if name not in train]:
            text = f"{len(unseen):,} classes of {split} have no training sample: {', '.join(unseen[:5])}"
            findings.append(Finding("classes", text, unseen))
    return findings


def class_counts(reading: SplitReading) -> Counter[str]:
    """Return how many samples of a split each class has, by its name."""
    samples = reading.samples
    if sets := samples.label_sets():  # several of a sample
        return Counter({name: int(sets.has[:, k].sum()) for k, name in enumerate(sets.names)})
    names = samples.classes
    return Counter(names[k] if k < len(names) else f"class {k}" for k in samples.class_numbers() if k >= 0)


def series(readings: Mapping[str, SplitReading], plural: str, option: str = "") -> list[Finding]:
    """Return whether names without a group look like numbered members of series, as of speakers or episodes."""
    if any(reading.grouped for reading in readings.values()):
        return []
    begin: Counter[str] = Counter()
    labels: dict[str, set[int]] = {}
    for reading in readings.values():
        numbers = reading.samples.class_numbers()
        for place, name in reading.names.items():
            part = re.fullmatch(r"(.*[^\W\d].*?)[-_. ]+\d+", PurePath(name).stem)
            if part is None or PurePath(name).suffix == "":
                return []
            begin[part[1]] += 1
            labels.setdefault(part[1], set()).add(numbers[place])
    usual = sorted(begin.values())[len(begin) // 2] if begin else 0
    by_class = {frozenset(known) for known in labels.values()}
    if (
        len(begin) < SERIES
        or usual < MEMBERS
        or (len(by_class) == len(begin) and max(map(len, by_class)) == 1)
    ):
        return []
    how = f"by --modality.{option}" if option else "in a table of the files with a column group"
    text = (
        f"names look like {len(begin):,} series of about {usual:,} {plural}, such as {min(begin)}: if members of one "
        f"belong together (a speaker, an episode, a patient), give them a group, so that no split shares one, {how}"
    )
    return [Finding("series", text, list(begin))]


def _names(modality: Modality, readings: Mapping[str, SplitReading], places: Sequence[Place]) -> list[str]:
    """Return how samples are called; those that were not read are asked for it. What has several samples is counted."""
    names = []
    for split, row in places:
        reading = readings[split]
        name = (
            reading.names.get(row) if reading.whole else f"{split} {row} of {reading.total} {modality.plural}"
        )
        if name is None:
            try:
                name = name_of(modality, split, row, reading.samples[row])
            except ValueError:
                name = f"{split} {row}"
        names.append(name)
    return names
