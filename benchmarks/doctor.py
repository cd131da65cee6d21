"""What `multissl data` finds of faults that are planted into real sets, and what it names that has none.

    python -m benchmarks.doctor FOLDER [--only mnist adult ...]

FOLDER holds the sets under the names of `doctor_sets.SETS`. A clean copy of each is examined, then one with faults in
its training samples: 1 in 100 cannot be read, 2 in 100 have an equal one, 2 in 100 a near-equal one, 3 have another
rate or size, 5 in 100 lack a value; 10 test samples are training samples, half of them encoded again where they can be.
A fault counts as found where the sample is named; of copies the original is named, too. Real sets have copies of their
own: what is named in the clean copy has a column, and what is named beside these and the planted ones is false.
State: none.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.doctor_sets import SETS, Item, RealSet, Splits
from multissl.contract.modality import Modality
from multissl.doctor.examination import Examination, examine
from multissl.options import open_recipe

KINDS = ("unreadable", "equal", "near-equal", "leaked", "odd", "missing")
Planted = dict[str, set[Hashable]]
"""What should be named, by the kind of finding: a split and a place in it."""
Change = Callable[[Item, int], Item | None]


@dataclass(kw_only=True, slots=True)
class Planting:
    """Faults being planted into the splits of a set."""

    own: RealSet
    splits: Splits
    named: set[Hashable]
    """What is named in the clean copy: nothing is planted there."""
    planted: Planted = field(default_factory=lambda: {kind: set() for kind in KINDS})

    def all(self) -> None:
        """Plant every kind of fault that the set can have, each into other samples."""
        train, count = self.splits["train"], len(self.splits["train"])
        rows = np.random.default_rng(0).permutation(count).tolist()
        free = iter([row for row in rows if ("train", row) not in self.named])
        for number in range(max(count // 100, 5)):
            self._change(train, next(free), self.own.corrupt, number, "unreadable")
        for number in range(3):
            self._change(train, next(free), self.own.odd, number, "odd")
        for number in range(count // 20):
            self._change(train, next(free), self.own.lacking, number, self._lacking)
        for _ in range(count // 50):
            self._copy("train", next(free))
        for number in range(count // 50):
            self._near("train", next(free), number)
        if self.splits["test"]:
            self._leak(free)

    @property
    def _lacking(self) -> str:
        return "unreadable" if self.own.part == "text" else "missing"

    def _change(self, train: list[Item], row: int, change: Change, number: int, kind: str) -> None:
        made = change(train[row], number)
        if made is not None:
            train[row] = made
            self.planted[kind].add(("train", row))

    def _copy(self, split: str, row: int) -> None:
        self.splits[split].append(self.splits["train"][row])
        self.planted["equal"] |= {("train", row), (split, len(self.splits[split]) - 1)}

    def _near(self, split: str, row: int, number: int) -> bool:
        made = self.own.near(self.splits["train"][row], number)
        if made is None:
            return False
        self.splits[split].append(made)
        place = (split, len(self.splits[split]) - 1)
        self.planted["near-equal"] |= {("train", row), place}
        if self.own.resizes(number):
            self.planted["odd"].add(place)
        return True

    def _leak(self, free: Iterator[int]) -> None:
        for number in range(10):
            row = next(free)
            if number % 2 or not self._near("test", row, number // 2):
                self._copy("test", row)
            self.planted["leaked"].add(("test", len(self.splits["test"]) - 1))


class Named(NamedTuple):
    """What an examination names."""

    samples: int
    """How many were read."""
    by_kind: Planted
    values: int
    """Values that are said to be missing."""


def examined(own: RealSet, splits: Splits) -> Named:
    """Return what is named in a copy of a set, all samples of which are read."""
    with tempfile.TemporaryDirectory() as folder:
        data = own.write(Path(folder), splits)
        recipe, _ = open_recipe(own.part, ["--data", data, *own.options])
        modality = recipe.modality.build()
        examination = examine(modality, 0)
        print(f"  {data}: {'; '.join(f'{f.kind}: {f.text}' for f in examination.findings)}", flush=True)
        return Named(examination.looked_at, named(examination), missing_values(modality, examination))


def named(examination: Examination) -> Planted:
    """Return the samples that findings name, by kind, as places in their split."""
    places: Planted = {kind: set() for kind in KINDS}
    for finding in examination.findings:
        for name in finding.names:
            known = re.search(r"(train|val|test) (\d+)", Path(name.partition(" (")[0]).name)
            if known and finding.kind in places:
                places[finding.kind].add((known[1], int(known[2])))
    return places


def missing_values(modality: Modality, examination: Examination) -> int:
    """Return how many values are said to be missing, cells of training rows or streams of pairs."""
    train = examination.readings["train"]
    rows = len(train.samples) - len(train.reasons)
    cells = sum(round(share * rows) for share in modality.missing().values())
    return cells + sum(count for count, _ in modality.lacking().values())


def measured(name: str, data: Path) -> list[str]:
    """Return a line for each kind of fault of a set: planted, found, false, and named in the clean copy."""
    own = SETS[name]
    clean = examined(own, own.items(data))
    planting = Planting(own=own, splits=own.items(data), named=set().union(*clean.by_kind.values()))
    planting.all()
    faulty = examined(own, planting.splits)
    lines = []
    for kind in KINDS:
        planted, before, after = planting.planted[kind], clean.by_kind[kind], faulty.by_kind[kind]
        counts = (len(planted), len(planted & after), len(after - planted - before), len(before))
        if kind == "missing":
            more = faulty.values - clean.values
            counts = (len(planted), min(more, len(planted)), max(more - len(planted), 0), clean.values)
        elif own.counted:
            counts = (
                len(planted),
                min(len(after), len(planted)),
                max(len(after) - len(planted), 0),
                len(before),
            )
        if any(counts):
            false = 100 * counts[2] / faulty.samples
            lines.append(f"| {name} | {faulty.samples:,} | {kind} | {counts[0]} | {counts[1]} | {counts[2]} "
                         f"({false:.2f} %) | {counts[3]} |")  # fmt: skip
    return lines


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="*", default=[*SETS], choices=[*SETS])
    args = parser.parse_args()
    lines = [line for name in args.only for line in measured(name, args.data)]
    print("| set | samples | fault | planted | found | false | in the clean copy |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
