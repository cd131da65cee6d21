"""What samples are known again by: names and sizes of files, contents of what is in memory. No file is decoded.

Every payload has two numbers: one of its name, one of its size or content. Roots of folders do not count, so that data
may be moved. Of parquet shards their size and footer count, which holds the statistics of every column; of items of
other libraries' data sets their number alone.
Shapes: n payloads.  State: none.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multissl.sources.copies import digest_of
from multissl.sources.parquet import ParquetRows
from multissl.sources.payloads import FOLDER, Items, Joined, Paths, Slice, Some

TAIL = 1 << 16
"""Bytes at the end of a shard that are read."""
GONE = 1
"""Stands for a file that is not there."""


class Keys(NamedTuple):
    """Numbers of n payloads."""

    names: np.ndarray
    """uint64 [n], 0 without a name"""
    contents: np.ndarray
    """uint64 [n]"""


def keys_of(payloads: Sequence[Any] | np.ndarray, rows: np.ndarray | None = None) -> Keys:
    """Return the numbers of some payloads (int64 [n]), of all by default."""
    rows = np.arange(len(payloads)) if rows is None else rows
    match payloads:
        case Some():
            return keys_of(payloads.data, payloads.rows[rows])
        case Joined():
            return _of_parts(payloads, rows)
        case Paths():
            return _of_files(payloads, rows)
        case ParquetRows():
            names = mixed(rows.astype(np.uint64), np.uint64(_number(os.path.basename(payloads.path))))
            return Keys(names, np.full(len(rows), _shard(payloads.path), np.uint64))
        case Items():
            return Keys(mixed(rows.astype(np.uint64)), np.zeros(len(rows), np.uint64))
        case np.ndarray() if payloads.ndim == 1 and payloads.dtype.kind in "iufb":
            wide = payloads[rows].astype(np.float64 if payloads.dtype.kind == "f" else np.int64)
            return Keys(np.zeros(len(rows), np.uint64), mixed(wide.view(np.uint64)))
    if isinstance(payloads, np.ndarray) and payloads.ndim == 1 and payloads.dtype == object:
        known: dict[Any, int] = {}  # cells of a table, which are never files
        cells = [known.setdefault(cell, len(known)) for cell in payloads[rows].tolist()]
        numbers = np.array([_number(cell) for cell in known], np.uint64)
        return Keys(np.zeros(len(rows), np.uint64), numbers[np.array(cells, np.int64)])
    if isinstance(payloads, list) and {*map(type, payloads)} == {int}:  # numbers of classes
        by_value = {value: _number(value) for value in set(payloads)}
        numbers = np.array([by_value[payloads[row]] for row in rows.tolist()], np.uint64)
        return Keys(np.zeros(len(rows), np.uint64), numbers)
    pairs = [_key(payloads, row) for row in rows.tolist()]
    table = np.array(pairs, np.uint64).reshape(-1, 2)
    return Keys(table[:, 0], table[:, 1])


def joined_keys(columns: Sequence[Keys]) -> Keys:
    """Return one number for each sample of what its columns hold."""
    names = functools.reduce(lambda a, b: mixed(a, b), (column.names for column in columns))
    contents = functools.reduce(lambda a, b: mixed(a, b), (column.contents for column in columns))
    return Keys(names, contents)


def mixed(numbers: np.ndarray, others: Any = 0) -> np.ndarray:
    """Return numbers in which every bit depends on every bit of both: uint64 [n] (the finalizer of MurmurHash3)."""
    with np.errstate(over="ignore"):
        x = (
            numbers * np.uint64(0x9E3779B97F4A7C15)
            + np.asarray(others, np.uint64)
            + np.uint64(0x632BE59BD9B4E019)
        )
        x ^= x >> np.uint64(33)
        x *= np.uint64(0xFF51AFD7ED558CCD)
        x ^= x >> np.uint64(33)
        x *= np.uint64(0xC4CEB9FE1A85EC53)
        return x ^ (x >> np.uint64(33))


def _of_parts(payloads: Joined, rows: np.ndarray) -> Keys:
    ends = np.array(payloads.ends)
    part = np.searchsorted(ends, rows, side="right")
    names, contents = np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.uint64)
    for number in np.unique(part).tolist():
        places = np.flatnonzero(part == number)
        start = int(ends[number - 1]) if number else 0
        keys = keys_of(payloads.parts[number], rows[places] - start)
        names[places], contents[places] = keys
    return Keys(names, contents)


def _of_files(payloads: Paths, rows: np.ndarray) -> Keys:
    contents = payloads.sizes(rows).astype(np.uint64)
    for place in np.flatnonzero(
        contents >= np.int64(FOLDER).astype(np.uint64)
    ).tolist():  # folders, and what is gone
        contents[place] = _size(payloads[rows[place]])
    return Keys(_numbers_of_names(payloads.names[rows].tolist()), contents)


def _numbers_of_names(names: list[bytes]) -> np.ndarray:
    """Return the numbers of names, uint64 [n], those of `_number` without what it asks of each."""
    try:
        b"\0".join(names).decode()
    except UnicodeDecodeError:
        return np.array([_number(os.fsdecode(name)) for name in names], np.uint64)
    digests = [blake2b(b"bytes %d %b" % (len(name), name), digest_size=16).digest()[:8] for name in names]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def _size(path: str) -> int:
    """Return a number of the size of a file, or of names and sizes of the files in a folder."""
    try:
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode):
            files = sorted((entry.name, entry.stat().st_size) for entry in os.scandir(path))
            return _number(files)
        return info.st_size
    except OSError:
        return GONE


def _key(payloads: Sequence[Any] | np.ndarray, row: int) -> tuple[int, int]:
    """Return the numbers of one payload's name and of its content."""
    try:
        payload = payloads[row]
        if isinstance(payload, Slice):
            return _number((os.path.basename(payload.path), payload.name)), mixed_number(
                payload.size, _file(payload.path)
            )
        if isinstance(payload, Path) or (
            isinstance(payload, str) and len(payload) < 4096 and os.path.exists(payload)
        ):
            return _number(os.path.basename(payload)), _size(str(payload))
        return 0, _number(payload)
    except Exception:  # what cannot be read, or compared, is known by its place
        return 0, GONE


def mixed_number(one: int, other: int) -> int:
    """Return a number of two."""
    return int(mixed(np.array([one], np.uint64), np.uint64(other))[0])


def _number(value: Any) -> int:
    """Return 64 bits of the digest of texts, bytes, numbers, arrays, and of lists of these."""
    return int.from_bytes(digest_of(value)[:8], "little")


@functools.lru_cache(maxsize=100_000)
def _file(path: str) -> int:
    """Return the size of a file that holds many samples; asked once in a process."""
    return _size(path)


def _shard(path: str) -> int:
    """Return a number of a file's size and of its last bytes."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size - TAIL, 0))
            return int.from_bytes(hashlib.blake2b(file.read(), digest_size=8).digest(), "little") ^ size
    except OSError:
        return GONE
