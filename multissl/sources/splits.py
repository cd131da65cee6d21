"""The samples of one split: as the source tags them, with every tenth one for validation where nothing is tagged so.

Samples of one group stay in one split, and so do copies, samples of equal content, in splits that are drawn here.
Shapes: S samples of a listing.  State: none.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from multissl.contract.data import LabelSets, Sample, Samples, Unreadable
from multissl.sources.base import Label, Listing
from multissl.sources.copies import Copies, split_together
from multissl.sources.reading import first_line

log = logging.getLogger("multissl")


class SplitSamples(Samples):
    """The samples of one split of a listing; `classes` names the labels where they have names."""

    def __init__(
        self,
        *,
        data: Sequence[Any] | np.ndarray,
        labels: np.ndarray,
        groups: np.ndarray,
        classes: list[str],
        rows: np.ndarray,
        sets: LabelSets | None = None,
        beside: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Take what is known of all S samples, and the positions `rows` of those in this split."""
        self.data, self.labels, self.groups, self.classes, self.rows = data, labels, groups, classes, rows
        self.sets, self.beside = sets, beside

    def __len__(self) -> int:
        return len(self.rows)

    def class_numbers(self) -> list[int]:
        """Return the label of every sample, -1 without one."""
        return self.labels[self.rows].tolist()

    def label_sets(self) -> LabelSets | None:
        """Return the classes of every sample where a list names several."""
        if self.sets is None:
            return None
        rows = torch.from_numpy(self.rows)
        return LabelSets(self.sets.has[rows], self.sets.known[rows], self.sets.names)

    def __getitem__(self, index: int) -> Sample:
        row = int(self.rows[index])
        try:
            data = self.data[row]  # of a shard this may read, and the shard may be damaged or gone by now
        except (OSError, ValueError) as error:
            file = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
            raise Unreadable(index, f"{file}{first_line(error)}") from None
        beside = None if self.beside is None else self.beside[row]
        return Sample(data, index, int(self.labels[row]), int(self.groups[row]), beside=beside)


def select_split(listing: Listing, split: str) -> SplitSamples:
    """Return the samples of a split of a listing, labels and groups numbered."""
    rows = split_rows(listing, split)
    sets = sets_of(listing.labels)
    nobody: tuple[np.ndarray, list[str]] = np.full(len(listing.labels), -1), []
    labels, classes = classes_of(listing.labels) if sets is None else nobody
    groups = numbered(listing.groups)[0] if listing.groups else np.full(len(labels), -1)
    return SplitSamples(
        data=listing.data,
        labels=labels,
        groups=groups,
        classes=classes,
        rows=rows,
        sets=sets,
        beside=listing.beside,
    )


def split_rows(listing: Listing, split: str) -> np.ndarray:
    """Return the positions of a split: "train", "val", "test", or "all" for all but a test split.

    Validation samples are taken out of the training samples where none are tagged so.
    """
    tags, everyone = np.array(listing.tags, dtype=object), np.arange(len(listing.tags))
    present = set(listing.tags)
    if present == {"test"} and split in ("test", "all"):
        return everyone
    if split == "all":
        return everyone[tags != "test"]
    tagged = "" not in present and len(present) > 1
    if tagged and split in present and (split != "train" or "val" in present):
        return everyone[tags == split]
    pool = everyone[tags == "train"] if tagged else everyone
    if split not in ("train", "val") or not len(pool):
        has = ", ".join(sorted(present)) if tagged else "train, val (every tenth sample), all"
        raise ValueError(f"has no {split} split; it has {has}")
    validation = _draw_validation(listing, pool)
    if split == "val" and not validation.any():
        raise ValueError("a single sample leaves none for validation: add samples, or switch evaluation off")
    return pool[validation if split == "val" else ~validation]


def _draw_validation(listing: Listing, pool: np.ndarray) -> np.ndarray:
    """Return True for the samples of the pool that validate: every tenth one, or every tenth group; of copies all."""
    groups = listing.groups
    keys = [
        row if groups is None or groups[row] in (None, -1, "") else f"g{groups[row]}" for row in pool.tolist()
    ]
    copies = listing.copies or Copies(listing.data)
    return split_together(_every_tenth, keys, copies.among(pool).sets)


def _every_tenth(keys: Sequence[Hashable]) -> np.ndarray:
    """Return True for the samples of every tenth key; of fewer than ten for those of the last one."""
    order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    if 1 < len(order) < 10:
        return np.array([order[key] == len(order) - 1 for key in keys], dtype=bool)
    return np.array([order[key] % 10 == 9 for key in keys], dtype=bool)


def numbered(labels: Sequence[Label]) -> tuple[np.ndarray, list[str]]:
    """Return labels as int64 [S], -1 for none, and the names of the classes in order.

    Labels that are whole numbers of at most 18 digits stay as they are and have no names.
    """
    known = {label for label in labels if label is not None and label != ""}
    if all(re.fullmatch(r"-?\d{1,18}", str(label)) for label in known):
        values: dict[Label, int] = {label: int(str(label)) for label in known}
        return np.array([values.get(label, -1) for label in labels], dtype=np.int64), []
    classes = sorted(map(str, known))
    place = {name: i for i, name in enumerate(classes)}
    number: dict[Label, int] = {label: place[str(label)] for label in known}
    return np.array([number.get(label, -1) for label in labels], dtype=np.int64), classes


def sets_of(labels: Sequence[Label]) -> LabelSets | None:
    """Return the classes of samples whose labels are lists; None where every list names one, which is a class then."""
    if all(not isinstance(label, tuple) or len(label) == 1 for label in labels):
        return None
    listed = [
        label if isinstance(label, tuple) else () if label in (None, "") else (label,) for label in labels
    ]
    known = {each for classes in listed for each in classes}
    whole = all(isinstance(each, int) for each in known)
    names = tuple(map(str, sorted(known))) if whole else tuple(sorted(map(str, known)))  # type: ignore[type-var]
    place = {name: i for i, name in enumerate(names)}
    has = torch.zeros(len(labels), len(names), dtype=torch.bool)
    for row, classes in enumerate(listed):
        has[row, [place[str(each)] for each in classes]] = True
    return LabelSets(has, torch.tensor([label not in (None, "") for label in labels]), names)


def classes_of(labels: Sequence[Label]) -> tuple[np.ndarray, list[str]]:
    """Return what `numbered` returns, but no labels where all samples are of one class, which says nothing.

    Nor are there labels where samples have several classes each, which is said: `sets_of` returns these.
    """
    if sets_of(labels) is not None:
        log.warning(
            "labels list several classes for a sample, and are left out: only images, sounds and videos have them"
        )
        return np.full(len(labels), -1), []
    numbers, classes = numbered([label[0] if isinstance(label, tuple) else label for label in labels])
    return (numbers, classes) if len(set(numbers.tolist())) > 1 else (np.full(len(numbers), -1), [])
