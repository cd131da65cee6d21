"""Where samples come from: a folder, list, table, parquet file, tar shards, or another library's dataset.

`open_source(path, split, ...)` lists what is there once and gives a map-style dataset of cheap samples: a
path, a `Slice` of a tar shard or the bytes of a table cell, decoded later by the modality.

A split is a sub-folder or a word in a shard's name (train, val, test). Where there is none, every tenth
sample (or group of samples) is the validation split. State: none but what was listed.
"""

from __future__ import annotations

import csv
import functools
import glob
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multissl.contract.data import Sample, Samples
from multissl.sources import payloads as readers
from multissl.sources.payloads import LABELS, PATHS, WORDS, Joined, Label, Listing, Paths, pick

TABLES, SHARDS = (".txt", ".csv", ".tsv"), (".tar", ".parquet")


class Source(Samples):
    """The samples of one split; `classes` names the labels where they have names."""

    def __init__(
        self,
        data: Sequence[Any] | np.ndarray,
        labels: np.ndarray,
        groups: np.ndarray,
        classes: list[str],
        rows: np.ndarray,
    ) -> None:
        self.data, self.labels, self.groups, self.classes, self.rows = data, labels, groups, classes, rows

    def __len__(self) -> int:
        return len(self.rows)

    def class_numbers(self) -> list[int]:
        """Return the label of every sample, -1 without one."""
        return self.labels[self.rows].tolist()

    def __getitem__(self, index: int) -> Sample:
        row = int(self.rows[index])
        return Sample(self.data[row], index, int(self.labels[row]), int(self.groups[row]))


def open_source(
    path: str,
    split: str,
    suffixes: tuple[str, ...],
    kind: str = "image",
    option: str = "modality.data",
    relabel: Callable[[Listing], Listing] | None = None,
) -> Source:
    """The samples of a split of whatever `path` names: "train", "val", "test", or "all" but a test split.

    `suffixes` are the file types looked for, the preferred first; `kind` is the column of a table that holds
    them; `relabel` may change what is known of the samples before they are split.
    """
    try:
        listing = _listing(path, suffixes, kind)
        listing = relabel(listing) if relabel else listing
        return source_of(listing, split)
    except ValueError as error:
        raise ValueError(f"{option}={path!r}: {error}") from None


def source_of(listing: Listing, split: str) -> Source:
    """The samples of a split of a listing, labels and groups numbered."""
    rows = split_rows(listing, split)
    labels, classes = numbered(listing.labels)
    if len(set(labels.tolist())) == 1:  # one class for all says nothing
        labels, classes = np.full(len(labels), -1), []
    groups = numbered(listing.groups)[0] if listing.groups else np.full(len(labels), -1)
    return Source(listing.data, labels, groups, classes, rows)


def split_rows(listing: Listing, split: str) -> np.ndarray:
    """The positions of a split: as tagged; validation is carved from train where nothing is tagged so."""
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
    held_out = _every_tenth(listing.groups, pool)
    if split == "val" and not held_out.any():
        raise ValueError("a single sample leaves none for validation: add samples, or switch evaluation off")
    return pool[held_out if split == "val" else ~held_out]


def _every_tenth(groups: Sequence[Label] | None, pool: np.ndarray) -> np.ndarray:
    """True for every tenth sample of the pool, or each of every tenth group; at least one of two."""
    keys = [
        row if groups is None or groups[row] in (None, -1, "") else f"g{groups[row]}" for row in pool.tolist()
    ]
    order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    held = np.array([order[key] % 10 == 9 for key in keys], dtype=bool)
    if 1 < len(order) < 10:
        held = np.array([order[key] == len(order) - 1 for key in keys], dtype=bool)
    return held


def numbered(given: Sequence[Label]) -> tuple[np.ndarray, list[str]]:
    """Labels as int64, -1 without one, and class names in order; whole numbers stay as they are."""
    known = {v for v in given if v is not None and v != ""}
    if all(re.fullmatch(r"-?\d+", str(v)) for v in known):
        return np.array([-1 if v is None or v == "" else int(v) for v in given], dtype=np.int64), []
    classes = sorted(map(str, known))
    place = {name: i for i, name in enumerate(classes)}
    return np.array([place.get(str(v), -1) for v in given], dtype=np.int64), classes


def classes_of(given: Sequence[Label]) -> tuple[np.ndarray, list[str]]:
    """The same, but none where all are of one class, which says nothing."""
    labels, classes = numbered(given)
    return (labels, classes) if len(set(labels.tolist())) > 1 else (np.full(len(labels), -1), [])


@functools.lru_cache(maxsize=8)
def _listing(path: str, suffixes: tuple[str, ...], kind: str) -> Listing:
    scheme, _, rest = path.partition(":")
    if scheme in ("torchvision", "hf"):
        return readers.torchvision(rest) if scheme == "torchvision" else readers.hugging_face(rest, kind)
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        shards = sorted(p for part in braces(path) for p in glob.glob(part))
        if not shards:
            raise ValueError(f"no such file or folder; give a folder of {kind}s, a list, a table or shards")
        return _shards(shards, suffixes, kind)
    if os.path.isdir(path):
        return _folder(path, suffixes, kind)
    suffix = Path(path).suffix.lower()
    if suffix in SHARDS:
        return _shards([path, *test_file(path)], suffixes, kind)
    if suffix in TABLES:
        return _table(path, kind)
    raise ValueError(
        f"a {suffix or 'nameless'} file is no source; known: a folder, {', '.join(TABLES + SHARDS)}"
    )


def _folder(root: str, suffixes: tuple[str, ...], kind: str) -> Listing:
    files = sorted(walk(root))
    names = [name for name in files if Path(name).suffix.lower() in suffixes]
    if not names:
        shards = [os.path.join(root, n) for n in files if Path(n).suffix.lower() in SHARDS]
        if shards:
            return _shards(shards, suffixes, kind)
        kinds = sorted({Path(n).suffix.lower() or "no suffix" for n in files})
        found = f"{len(files)} files ({', '.join(kinds[:8])})" if files else "nothing"
        raise ValueError(f"the folder holds no {kind}s, found {found}; looked for {', '.join(suffixes)}")
    parts = [name.split(os.sep) for name in names]
    tags = [WORDS.get(p[0].lower(), "") if len(p) > 1 else "" for p in parts]
    below = [p[1:] for p in parts] if "" not in tags else parts
    return Listing(
        Paths(root, names), readers.class_folders(below), tags if "" not in tags else [""] * len(names)
    )


def walk(root: str) -> Iterator[str]:
    """Visible files below a folder, relative to it; links are followed, loops of links are not."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(f for f in folders if not f.startswith("."))
        if real not in seen:
            yield from (
                os.path.relpath(os.path.join(folder, f), root) for f in files if not f.startswith(".")
            )
        seen.add(real)


def natural_key(name: str) -> tuple[list[Any], str]:
    """Return a key that sorts the files of a sequence as people count: frame2.png before frame10.png.

    Runs of decimal digits, of any script, compare as whole numbers, all else as text without case. The suffix is left
    out, so that a plain name comes before its numbered ones; names equal so far, such as frame1 and frame01, compare as
    they are written. The order is total and does not depend on the file system or the locale.
    """
    parts: list[Any] = re.split(r"(\d+)", os.path.splitext(name)[0].casefold())
    for place in range(1, len(parts), 2):  # text and numbers take turns
        digits = "".join(str(unicodedata.decimal(c)) for c in parts[place]).lstrip("0")
        parts[place] = (len(digits), digits)  # as an int it would have a longest length
    return parts, name


def _table(path: str, kind: str) -> Listing:
    root, suffix = os.path.dirname(os.path.abspath(path)), Path(path).suffix.lower()
    with open(path, newline="", encoding="utf-8-sig") as f:
        if suffix == ".txt":
            lines = [line.strip() for line in f]
            names = [line for line in lines if line and not line.startswith("#")]
            columns: dict[str, list[str]] = {kind: names}
        else:
            rows = list(csv.DictReader(f, delimiter="\t" if suffix == ".tsv" else ","))
            columns = {key.lower(): [row[key] or "" for row in rows] for key in (rows[0] if rows else {})}
    names = columns.get(pick(list(columns), (kind, *PATHS)), [])
    if not names:
        raise ValueError(f"the list names no {kind}s")
    count = len(names)
    labels = columns.get(pick(list(columns), LABELS, wanted=False), [""] * count)
    tags = [WORDS.get(tag.lower(), "") for tag in columns.get("split", [""] * count)]
    return Listing(Paths(root, names), labels, tags, columns.get("group"))


def _shards(paths: list[str], suffixes: tuple[str, ...], kind: str) -> Listing:
    """Tar and parquet shards, one after the other."""
    parts = []
    for path in paths:
        suffix = Path(path).suffix.lower()
        if suffix not in SHARDS:
            raise ValueError(f"{path} is no shard; a pattern names {' or '.join(SHARDS)} files")
        data, labels = readers.tar(path, suffixes) if suffix == ".tar" else readers.parquet(path, kind)
        words = re.split(r"[^a-z0-9]+", Path(path).stem.lower())
        parts.append((data, labels, next((WORDS[w] for w in words if w in WORDS), "")))
    tags = [tag for _, labels, tag in parts for _ in labels]
    if not tags:
        raise ValueError(f"no {kind}s in {', '.join(paths[:3])}; looked for {', '.join(suffixes)}")
    return Listing(Joined([p[0] for p in parts]), [v for p in parts for v in p[1]], tags)


def test_file(path: str) -> list[str]:
    """The test file that lies beside a train file and is named like it, if there is one."""
    name = re.sub(r"(?i)(?<![a-z0-9])train(?![a-z0-9])", "test", os.path.basename(path))
    beside = os.path.join(os.path.dirname(path), name)
    return [beside] if beside != path and os.path.isfile(beside) else []


def braces(pattern: str) -> list[str]:
    """`a{1..3}.tar` and `a{b,c}.tar` written out."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", found[1]):
        middles = [str(i).zfill(len(span[1])) for i in range(int(span[1]), int(span[2]) + 1)]
    else:
        middles = found[1].split(",")
    return [p for m in middles for p in braces(pattern[: found.start()] + m + pattern[found.end() :])]
