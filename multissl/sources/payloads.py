"""How the data of a sample is reached: files, parts of files, cells of tables, items of other libraries' datasets.

A payload is what a sample holds before it is decoded: a path, a `Slice` of a file, bytes, or an item as another library
gives it. The payloads of a listing are a sequence that is read at random, so that any step of a run can be drawn again,
and that is pickled into every data worker, so that it must stay small.
"""

from __future__ import annotations

import itertools
import os
import stat
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multissl.sources.reading import read_deflated, read_part

GONE, FOLDER = -1, -2
"""Stand for the size of a file that is not there, and of a folder."""
FIRST = 256
"""Files by which it is seen how long a file system takes."""
SLOW = 1e-4
"""Seconds for a size from which several are asked for at a time."""
THREADS, AT_ONCE = 16, 1024
"""How many ask, and for how many sizes each."""


class Slice(NamedTuple):
    """A file inside an archive."""

    path: str
    offset: int
    size: int
    name: str
    packed: int = -1
    """Bytes that it takes there, deflated; -1: it lies there as it is."""

    @property
    def place(self) -> str:
        """Return shard and name, as messages call it."""
        return f"{self.path}: {self.name}"

    def read(self) -> bytes:
        """Return its bytes."""
        return self.head(self.size)

    def head(self, count: int) -> bytes:
        """Return its first bytes, as many as are asked for and there."""
        if self.packed < 0:
            return read_part(self.path, self.offset, min(self.size, count), self.name)
        return read_deflated(self.path, self.offset, self.packed, self.size, self.name, count)


class Paths(Sequence[str]):
    """File names below a root, kept as bytes: a million Python strings would be copied into every worker."""

    def __init__(self, root: str, names: list[str]) -> None:
        encoded = os.fsencode("\0".join(names)).split(b"\0")  # in one piece, where no name holds the mark
        if len(encoded) != len(names):
            encoded = [os.fsencode(name) for name in names]
        self.root, self.names = root, np.array(encoded)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: Any) -> Any:
        return os.path.join(self.root, os.fsdecode(bytes(self.names[row])))

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """Return the bytes of some files, int64 [n] of rows int64 [n]: `GONE` without one, `FOLDER` of a folder.

        Each is asked for once, several at a time where a file system takes long to answer, as one of a network does.
        """
        sizes = np.zeros(len(rows), np.int64)
        root, names = os.fsencode(self.root), self.names[rows].tolist()
        start = time.perf_counter()
        sizes[:FIRST] = _sizes(root, names[:FIRST])
        parts = [slice(begin, begin + AT_ONCE) for begin in range(FIRST, len(rows), AT_ONCE)]
        slow = time.perf_counter() - start > SLOW * FIRST
        with ThreadPoolExecutor(THREADS if slow else 1) as pool:
            for part, some in zip(parts, pool.map(lambda p: _sizes(root, names[p]), parts), strict=True):
                sizes[part] = some
        return sizes


def _sizes(root: bytes, names: list[bytes]) -> list[int]:
    """Return what `Paths.sizes` does of some names."""
    sizes = []
    for name in names:
        try:
            info = os.stat(os.path.join(root, name))
        except (OSError, ValueError):
            sizes.append(GONE)
        else:
            sizes.append(FOLDER if stat.S_ISDIR(info.st_mode) else info.st_size)
    return sizes


class Joined(Sequence[Any]):
    """Several sequences, one after the other."""

    def __init__(self, parts: list[Sequence[Any]]) -> None:
        self.parts, self.ends = parts, list(itertools.accumulate(len(p) for p in parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, row: Any) -> Any:
        part = int(np.searchsorted(self.ends, row, side="right"))
        return self.parts[part][row - (self.ends[part - 1] if part else 0)]


class Some(Sequence[Any]):
    """Some items of a sequence."""

    def __init__(self, data: Sequence[Any] | np.ndarray, rows: Sequence[int] | np.ndarray) -> None:
        self.data, self.rows = data, np.asarray(rows, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.data[int(self.rows[index])]


class Items(Sequence[Any]):
    """The items of another library's dataset: of each its first entry, or its entry of a name."""

    def __init__(self, items: Any, name: str = "") -> None:
        self.items, self.name = items, name

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: Any) -> Any:
        item = self.items[row]
        return cell_payload(item[self.name], "") if self.name else item[0]


def cell_payload(value: Any, folder: str) -> Any:
    """Return the payload in a cell: its bytes, or the path it names, which is relative to a folder.

    A struct of bytes and path, as Hugging Face writes them, stands for its bytes, or for its path where it has none.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return os.path.join(folder, value) if isinstance(value, str) else value


def describe_file(payload: Any) -> dict[str, str]:
    """Return the name of the file or member that a payload is, under "file"; nothing for other payloads."""
    name = payload.name if isinstance(payload, Slice) else payload
    return {"file": str(name)} if isinstance(name, str | Path) else {}
