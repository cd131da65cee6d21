"""How long it takes to list and to fingerprint many small files, the first time and again, and to read a large csv.

A listing is what every start of a training does before the first step: the names below a folder with class and split,
and what a run knows its data by (names and sizes). `again` is a new process, as a training that goes on is, whose files
the system has seen; then one file changes, and has to be noticed. The csv is read beside pandas, in turn, and the ratio
of medians is what counts.

    python -m benchmarks.listing --files 1000000
    python -m benchmarks.listing --rows 1000000
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from multissl.modalities.image.adapter import Image
from multissl.modalities.tabular.tables import read_table
from multissl.registry import require
from multissl.run.identity import identity_of

FOLDERS = 1000
REPEATS = 3


class Listed(NamedTuple):
    """What one process took for a folder."""

    files: int
    listing: float
    """Seconds until the samples of both splits are there."""
    fingerprint: float
    """Seconds until they are known by name and size."""
    summary: str
    """What tells the data from other data."""


def make_files(root: Path, files: int, folders: int = FOLDERS) -> None:
    """Write files of some bytes, as many in every folder, with names as data sets have them."""
    each = -(-files // folders)
    for number in range(files):
        folder = root / f"class{number // each:04}"
        if number % each == 0:
            folder.mkdir(parents=True)
        with open(f"{folder}/image_{number:08}.jpg", "wb") as file:
            file.write(b"%08d" % number * (10 + number % 50))


def listed(root: str) -> Listed:
    """Return what it takes to list and fingerprint a folder of pictures, which are not opened."""
    start = time.perf_counter()
    modality = Image(Image.Config(data=root))
    count = len(modality.dataset("all"))
    between = time.perf_counter()
    identity = identity_of(modality, with_validation=True)
    end = time.perf_counter()
    return Listed(count, between - start, end - between, str(identity.summary()))


def in_new_process(root: str) -> Listed:
    """Return what it takes in a process that has listed nothing yet."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(listed, (root,))


def make_csv(path: Path, rows: int) -> None:
    """Write ten columns: numbers, whole ones, names and a date."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(50)])
    columns = [rng.normal(size=rows) for _ in range(5)] + [rng.integers(0, 10_000, rows) for _ in range(2)]
    names, label = words[rng.integers(0, 50, rows)], words[rng.integers(0, 3, rows)]
    with path.open("w") as file:
        file.write("a,b,c,d,e,f,g,name,day,label\n")
        for row, (name, kind) in enumerate(zip(names, label, strict=True)):
            cells = [f"{column[row]:.6g}" for column in columns]
            file.write(f"{','.join(cells)},{name},2024-{row % 12 + 1:02}-{row % 28 + 1:02},{kind}\n")


def seconds(work: Callable[[], object]) -> float:
    """Return how long some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_files(count: int, folder: str) -> None:
    """Print what listing and fingerprinting take, the first time, again, and after a change."""
    make_files(Path(folder), count)
    os.sync()
    first, again = in_new_process(folder), in_new_process(folder)
    for name, run in (("first", first), ("again", again)):
        total = run.listing + run.fingerprint
        print(
            f"{name}: {run.files:,} files listed in {run.listing:.1f} s, known in {run.fingerprint:.1f} s, "
            f"together {total:.1f} s"
        )
    last = sorted(Path(folder).iterdir())[-1]
    next(last.iterdir()).write_bytes(b"another size")
    changed = in_new_process(folder).summary != first.summary
    print(
        f"unchanged data is known again: {first.summary == again.summary}; a changed file is seen: {changed}"
    )


def measure_csv(rows: int, folder: str) -> None:
    """Print what a csv takes beside pandas, by turns."""
    pandas, path = require("pandas"), Path(folder) / "rows.csv"
    make_csv(path, rows)
    ours, theirs = [], []
    for _ in range(REPEATS):
        theirs.append(seconds(lambda: pandas.read_csv(path, parse_dates=["day"])))
        ours.append(seconds(lambda: read_table(str(path))))
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(
        f"{rows:,} rows: ours {statistics.median(ours):.2f} s, pandas {statistics.median(theirs):.2f} s, {ratio:.2f} x"
    )


def main() -> None:
    """Measure what is asked for, in a temporary folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=0)
    parser.add_argument("--rows", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.files:
            measure_files(options.files, f"{folder}/files")
        if options.rows:
            measure_csv(options.rows, folder)


if __name__ == "__main__":
    main()
