"""What is said at the start about copies: validation samples that are equal to training samples, or look like them.

Splits that are drawn keep copies together; splits that are given are counted and left as they are.
State: none.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from multissl.contract.data import Samples, Unreadable
from multissl.contract.modality import Modality
from multissl.sources.copies import READ, equal_rows, near_duplicates, size_of
from multissl.sources.payloads import Joined

PICTURES = 2000
"""The most pictures of a split in which near-duplicates are looked for."""
DECODED = 64 * 2**20
"""The most bytes of files of a split that are decoded for it."""


def describe_copies(modality: Modality) -> str:
    """Return a line on copies among training and validation samples; nothing where nothing can be compared."""
    try:
        train, validation = modality.contents("train"), modality.contents("val")
    except ValueError:  # a split is missing, which is said where it is needed
        return ""
    if not train or not len(train[0]) or not len(validation[0]):
        return ""
    equal = equal_rows(Joined([v, t]) for v, t in zip(validation, train, strict=True))
    sets, compared = equal.sets, int(equal.compared.sum())
    if not compared:
        return ""
    line = _count(sets, len(validation[0]), modality.plural)
    if compared < len(sets):
        line += f" ({compared:,} of {len(sets):,} could be compared; up to {READ >> 20} MiB are read)"
    return line + _count_near(modality, sets)


class Shared(NamedTuple):
    """Samples of a split that are copies of training samples."""

    copies: int
    total: int
    """Samples of the split."""
    scored: str
    """The first of them, by its file or number."""
    trained: str
    """The training sample that it is a copy of."""


def shared_samples(modality: Modality, split: str) -> Shared | None:
    """Return which samples of a split training holds too; None where nothing can be compared, or samples are parts."""
    train, scored = modality.contents("train"), modality.contents(split)
    data, learned = modality.dataset(split), modality.dataset("train")
    if not train or not len(train[0]) or len(scored[0]) != len(data) or len(train[0]) != len(learned):
        return None
    sets = equal_rows(Joined([v, t]) for v, t in zip(scored, train, strict=True)).sets
    own, others = sets[: len(data)], sets[len(data) :]
    copied = np.flatnonzero(np.isin(own, others))
    if not len(copied):
        return Shared(0, len(data), "", "")
    first = int(copied[0])
    place = int(np.flatnonzero(others == own[first])[0])
    return Shared(len(copied), len(data), _name(modality, data, first), _name(modality, learned, place))


def _name(modality: Modality, samples: Samples, row: int) -> str:
    try:
        words = modality.describe(samples[row])
    except Unreadable:
        words = {}
    return words.get("file", f"number {row}")


def _count(sets: np.ndarray, validation: int, plural: str) -> str:
    """Return how many of samples are copies, the first ones of which validate; equal samples have equal `sets`."""
    _, number, sizes = np.unique(sets, return_inverse=True, return_counts=True)
    copied = int((sizes[number] > 1).sum())
    if not copied:
        return f"no copies among {len(sets):,} {plural}"
    shared = int(np.isin(sets[:validation], sets[validation:]).sum())
    verb = "is a copy" if shared == 1 else "are copies"
    return (
        f"{shared:,} of {validation:,} validation {plural} {verb} of training {plural}; "
        f"{copied:,} of all {len(sets):,} have a copy"
    )


def _count_near(modality: Modality, sets: np.ndarray) -> str:
    """Return how many validation pictures look like a training picture and are no copy of one; nothing of others."""
    validation, train = modality.dataset("val"), modality.dataset("train")
    if len(sets) != len(validation) + len(train):  # they are compared by other units than samples
        return ""
    ours, our_rows = _thumbnails(modality, validation)
    theirs, their_rows = _thumbnails(modality, train)
    if not len(our_rows) or not len(their_rows):
        return ""
    places = np.concatenate([our_rows, len(validation) + their_rows])
    pairs = near_duplicates(np.concatenate([ours, theirs]))
    near = len({i for i, j in pairs if i < len(ours) <= j and sets[places[i]] != sets[places[j]]})
    verb = "is a near-duplicate" if near == 1 else "are near-duplicates"
    return (
        f"; {near:,} of {len(our_rows):,} validation {modality.plural} {verb} of one of "
        f"{len(their_rows):,} training {modality.plural}"
    )


def _thumbnails(modality: Modality, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Return the thumbnails [n, 16, 16, C] of some samples, drawn once and for all, and which they are, int64 [n]."""
    pictures, rows, spent = [], [], 0
    for row in np.random.default_rng(0).permutation(len(samples))[:PICTURES].tolist():
        try:
            sample = samples[row]
        except Unreadable:
            continue
        picture = modality.thumbnail(sample)
        if picture is not None:
            pictures.append(picture)
            rows.append(row)
        spent += size_of(sample.data)
        if spent > DECODED:
            break
    return np.array(pictures, dtype=np.float32), np.array(rows, dtype=np.int64)
