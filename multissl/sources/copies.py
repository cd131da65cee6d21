"""Which samples are copies of each other: equal byte by byte, whatever they are called. Splits keep copies together.

Of files only those of equal size are opened, first their heads, then those whose heads are equal as a whole, and no
more than `READ` bytes; what lies beyond is not compared, and `compared` says so. Nothing is read before it is asked
for.
Shapes: n payloads of a column.  State: `Copies` keeps what it found.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multissl.sources.names import natural_key
from multissl.sources.payloads import Paths, Slice, Some
from multissl.sources.rows import Bad

HEAD = 4096
"""Bytes of a file that are compared first; opening a file counts as much."""
READ = 256 * 2**20
"""The most bytes that are read of a column."""
IN_MEMORY = 2**62
"""The limit for what is in memory anyway: none."""


SIDE = 16
"""Pixels along a side of thumbnails, by which pictures are compared."""
NEAR, FLAT = 0.2, 1.0
"""Root mean square difference of near-duplicates as a share of their contrast, and the least contrast, of 255."""
CLOSE = 0.01
"""The difference up to which pictures are near-duplicates whatever else looks like them."""
GAP, FEW = 0.4, 3
"""How much of their difference from the next picture near-duplicates differ by, and how many one may have."""
DIGITS = 0.05
"""What the differences of pictures, of 255, are known to."""
BLOCK = 1024
"""Pictures that are compared with all others at once."""


class Equal(NamedTuple):
    """What is equal among n payloads."""

    sets: np.ndarray
    """int64 [n], the position of the first payload with the same content."""
    compared: np.ndarray
    """bool [n], False for what cannot be read or lies beyond the bound: a set of its own."""


class Copies:
    """Copies among the rows of columns of payloads; a row with one payload of another row is its copy."""

    def __init__(self, *columns: Sequence[Any], limit: int = READ) -> None:
        self.columns, self.limit = columns, limit
        self._last: tuple[np.ndarray, Equal] | None = None

    def among(self, rows: np.ndarray) -> Equal:
        """Return what is equal among some rows (int64 [n]); the last answer is kept."""
        if self._last is None or not np.array_equal(self._last[0], rows):
            self._last = rows, equal_rows([Some(column, rows) for column in self.columns], self.limit)
        return self._last[1]


def equal_contents(payloads: Sequence[Any], limit: int = READ) -> Equal:
    """Return which payloads are equal: files and folders of files by their bytes, anything else by its value."""
    keys = _sizes_of_files(payloads)
    spent = 0
    for place in range(len(keys), len(payloads)):
        key, size = _first_key(payloads, place)
        spent += size
        keys.append(key)
        if spent > limit:  # what is no file is read where it is fetched
            keys += [None] * (len(payloads) - len(keys))
            break
    spent = _refine(keys, payloads, HEAD, spent, (spent + limit) // 2)  # half of it is for whole files
    _refine(keys, payloads, None, min(spent, limit), limit)
    first: dict[Hashable, int] = {}
    sets = [place if key is None else first.setdefault(key, place) for place, key in enumerate(keys)]
    compared = np.array([key is not None for key in keys], dtype=bool)
    return Equal(np.array(sets, dtype=np.int64), compared)


def equal_rows(columns: Iterable[Sequence[Any]], limit: int = READ) -> Equal:
    """Return which rows are equal in a column of payloads, directly or through other rows."""
    parts = [equal_contents(column, limit) for column in columns]
    if len(parts) == 1:
        return parts[0]
    sets = joined_sets(part.sets.tolist() for part in parts)
    return Equal(sets, np.any([part.compared for part in parts], axis=0))


def joined_sets(columns: Iterable[Sequence[Hashable]]) -> np.ndarray:
    """Return int64 [n], the first row of the set of every row: rows with a value of a column in common are of one set.

    They may have it directly or through other rows; None is no value.
    """
    root: list[int] = []

    def find(row: int) -> int:
        while root[row] != row:
            root[row] = root[root[row]]
            row = root[row]
        return row

    for column in columns:
        root = root or list(range(len(column)))
        first: dict[Hashable, int] = {}
        for row, value in enumerate(column):
            if value is not None:
                one, other = find(row), find(first.setdefault(value, row))
                root[max(one, other)] = min(one, other)
    return np.array([find(row) for row in range(len(root))], dtype=np.int64)


def split_together(
    split: Callable[[Sequence[Hashable]], np.ndarray], keys: Sequence[Hashable], copies: np.ndarray
) -> np.ndarray:
    """Return the split of every sample [n] where copies, and samples of one key, stay together.

    `split` splits by keys alone and `copies` (int64 [n]) are equal for copies. A set of copies goes where `split` has
    one of them: of the first set the first, of the second set the second and so on, so that data in which every sample
    comes several times in a row is held out evenly. So a split changes by its copies alone. Where this would empty a
    split or double it, whole sets are split as keys are; where that does too, copies stay where they are.
    """
    before = split(keys)
    if len(np.unique(copies)) == len(copies):
        return before
    sets = joined_sets([keys, copies.tolist()])
    if len(np.unique(sets)) == len(set(keys)):
        return before
    for after in (before[_places(sets)], split(sets.tolist())):
        sizes = [(np.sum(before == part), np.sum(after == part)) for part in np.unique(before)]
        if all(0 < new <= 2 * old for old, new in sizes):
            return after
    return before


def near_duplicates(pictures: np.ndarray) -> list[tuple[int, int]]:
    """Return which of n pictures are near-duplicates, as after another encoding or size, each pair once.

    Of thumbnails float32 [n, 16, 16, C]. They differ by less than `NEAR` of their contrast, and much less than from any
    other picture: behind at most `FEW` neighbors of each of the two there is a gap. So the frames of a camera, each of
    which has another one nearly as close behind it, are none. Pictures of a single color are like none.
    """
    numbers = pictures.reshape(len(pictures), -1).astype(np.float32)
    contrast = numbers.std(1)
    numbers = numbers - numbers.mean(0)  # small numbers leave more digits to their differences
    reach, pairs = np.zeros(len(numbers), np.float32), []
    for start in range(0, len(numbers), BLOCK):
        distance = _distances(numbers[start : start + BLOCK], numbers)
        distance[np.arange(len(distance)), start + np.arange(len(distance))] = np.inf
        reach[start : start + BLOCK] = _reach(distance)
        smaller = np.minimum(contrast[start : start + BLOCK, None], contrast)
        one, other = np.nonzero((smaller > FLAT) & (distance < NEAR * smaller))
        found = zip((one + start).tolist(), other.tolist(), distance[one, other].tolist(), strict=True)
        pairs += [pair for pair in found if pair[0] < pair[1]]
    return [
        (i, j) for i, j, apart in pairs
        if apart <= max(min(reach[i], reach[j]) + DIGITS, CLOSE * min(contrast[i], contrast[j]))
    ]  # fmt: skip


def _distances(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the root mean square difference of numbers [m, D] from [n, D], float32 [m, n]."""
    squares = (
        np.square(ours).mean(1)[:, None] + np.square(theirs).mean(1) - 2 / ours.shape[1] * (ours @ theirs.T)
    )
    return np.sqrt(np.maximum(squares, 0))


def _reach(distance: np.ndarray) -> np.ndarray:
    """Return the distance of the last neighbor before a gap, [m] of distances [m, n] from others; 0 without a gap."""
    nearest = np.sort(np.partition(distance, min(FEW, distance.shape[1] - 1), axis=1)[:, : FEW + 1], axis=1)
    gaps = nearest[:, :-1] < GAP * nearest[:, 1:]
    return np.where(gaps, nearest[:, :-1], 0).max(1, initial=0)


def size_of(payload: Any) -> int:
    """Return the bytes that reading a payload, or all that it holds, takes; 0 where that cannot be told."""
    if isinstance(payload, bytes | bytearray):
        return len(payload)
    if isinstance(payload, Mapping):
        return sum(size_of(value) for value in payload.values())
    if isinstance(payload, tuple) and not isinstance(payload, Slice):
        return sum(size_of(value) for value in payload)
    return sum(size for _, _, size in _files(payload) or ())


def _places(sets: np.ndarray) -> np.ndarray:
    """Return for every row the row that decides for its set, int64 [n]: member k modulo their number in set k."""
    _, number, counts = np.unique(sets, return_inverse=True, return_counts=True)
    by_set, starts = np.argsort(number, kind="stable"), np.cumsum(counts) - counts
    return by_set[starts + np.arange(len(counts)) % counts][number]


def digest_of(value: Any) -> bytes:
    """Return a digest of 16 bytes that is equal for equal texts, bytes, numbers, arrays, and lists of these."""
    return _joined_digest(_pieces(value))


def _joined_digest(pieces: Iterable[bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def _sizes_of_files(payloads: Sequence[Any]) -> list[Hashable]:
    """Return what `_first_key` does of payloads that are all regular files, none of any others."""
    data, rows = (payloads.data, payloads.rows) if isinstance(payloads, Some) else (payloads, None)
    if not isinstance(data, Paths):
        return []
    sizes = data.sizes(np.arange(len(data)) if rows is None else rows)
    return [(size,) if size else None for size in sizes.tolist()] if (sizes >= 0).all() else []


def _first_key(payloads: Sequence[Any], place: int) -> tuple[Hashable, int]:
    """Return the sizes of the files that a payload is, as a tuple, or a digest of its value; and the bytes read.

    None is the key of what cannot be read, or compared.
    """
    try:
        payload = payloads[place]
        files = _files(payload)
        if files is not None:
            sizes = tuple(size for _, _, size in files)
            return (sizes if sum(sizes) else None), 0
        if payload is None or isinstance(payload, Bad):
            return None, 0
        pieces = list(_pieces(payload))
        return _joined_digest(pieces), sum(map(len, pieces))
    except Exception:  # decoders raise almost anything on a damaged sample, which is said when it is drawn
        return None, 0


def _refine(keys: list[Hashable], payloads: Sequence[Any], length: int | None, spent: int, limit: int) -> int:
    """Add a digest of the first `length` bytes (None: all) to the keys of files that are equal so far.

    Returns the bytes read so far; the keys of files beyond the limit become None.
    """
    counts = Counter(keys)
    for place, key in enumerate(keys):
        if not isinstance(key, tuple) or counts[key] < 2:
            continue
        if spent > limit and length is not None:  # nothing is read any more
            keys[place] = None
            continue
        sizes = [part for part in key if isinstance(part, int)]
        if length is None and all(size <= HEAD for size in sizes):
            continue  # their heads were all of them
        spent += sum(max(HEAD, size if length is None else min(size, length)) for size in sizes)
        try:
            keys[place] = (*key, _digest(_files(payloads[place]) or [], length)) if spent <= limit else None
        except OSError:
            keys[place] = None
    return spent


def _files(payload: Any) -> list[tuple[str, int, int]] | None:
    """Return path, offset and size of the files that a payload is: one, or those of a folder; None where it is none."""
    if isinstance(payload, Slice):
        size = (
            payload.size if payload.packed < 0 else payload.packed
        )  # members of zips are compared as packed
        return [(payload.path, payload.offset, size)]
    if not isinstance(payload, str | Path):
        return None
    try:
        info = os.stat(payload)
    except (OSError, ValueError):  # a text
        return None
    if stat.S_ISDIR(info.st_mode):
        files = [entry for entry in os.scandir(payload) if entry.is_file()]
        return [(f.path, 0, f.stat().st_size) for f in sorted(files, key=lambda f: natural_key(f.name))]
    return [(str(payload), 0, info.st_size)]


def _digest(files: list[tuple[str, int, int]], length: int | None) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for path, offset, size in files:
        left = size if length is None else min(size, length)
        with open(path, "rb") as file:
            file.seek(offset)
            while left and (piece := file.read(min(left, 2**20))):
                digest.update(piece)
                left -= len(piece)
    return digest.digest()


def _pieces(value: Any) -> Iterator[bytes]:
    """Yield the bytes of a value, each with what it is; raise a TypeError for a kind that cannot be compared."""
    match value:
        case bytes() | bytearray() | memoryview():
            yield b"bytes %d " % len(value)
            yield bytes(value)
        case str():
            yield from _pieces(value.encode("utf-8", "surrogatepass"))
        case int() | float() | None:
            yield repr(value).encode()
        case Mapping():
            for name in sorted(value, key=str):
                yield from _pieces(str(name))
                yield from _pieces(value[name])
        case list() | tuple():
            yield b"items %d " % len(value)
            for item in value:
                yield from _pieces(item)
        case _:
            array = np.asarray(value)
            if array.dtype == object:
                raise TypeError(f"a {type(value).__name__} cannot be compared")
            yield f"{array.dtype} {array.shape} ".encode()
            yield array.tobytes()
