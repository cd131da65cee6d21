"""Files of data, opened with care: regular files alone, no more than the limits, errors in one line that names them.

A FIFO would wait for a writer, a device never end: neither is opened. Whatever a decoder raises on a damaged file
becomes `Unreadable` here, so that the sample is listed and the run goes on.
State: none.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from multissl import registry
from multissl.contract.data import Unreadable
from multissl.limits import SAMPLE_BYTES, TABLE_BYTES, check_unpacked

KINDS = {
    stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}  # fmt: skip


def check_regular(path: str | Path) -> int:
    """Return the size of a regular file; raise a ValueError that says what a path is instead, without opening it."""
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        kind = KINDS.get(stat.S_IFMT(info.st_mode), "no regular file")
        raise ValueError(
            f"{path} is {kind} and no file of data, so it is not opened: take it out of the data"
        )
    return info.st_size


def read_file(path: str | Path) -> bytes:
    """Return the bytes of a regular file that holds one sample. Raises an OSError or a ValueError."""
    SAMPLE_BYTES.check(check_regular(path), f"{path} has")
    return Path(path).read_bytes()


def unpacked(path: str | Path) -> bytes:
    """Return the bytes of a table, unpacked where it is packed by gzip. Raises an OSError or a ValueError."""
    packed = check_regular(path)
    TABLE_BYTES.check(packed, f"{path} has")
    if not str(path).lower().endswith(".gz"):
        return Path(path).read_bytes()
    parts, size = [], 0
    try:
        with gzip.open(path) as file:
            while part := file.read(1 << 24):
                size += len(part)
                check_unpacked(packed, size, str(path))
                parts.append(part)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be unpacked ({first_line(error)}): is the file whole?") from None
    return b"".join(parts)


def read_part(path: str, offset: int, size: int, name: str) -> bytes:
    """Return the bytes of a sample inside a file. Raises an OSError or a ValueError, as where it is cut off."""
    SAMPLE_BYTES.check(size, f"{name} of {path} has")
    there = check_regular(path) - offset
    if size > there:
        raise ValueError(
            f"{name} of {path} says {size:,} bytes, the file ends after {max(there, 0):,}: it is cut off"
        )
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def read_deflated(path: str, offset: int, packed: int, size: int, name: str, count: int) -> bytes:
    """Return the first `count` bytes of a member of `size` that is deflated to `packed` bytes at `offset` of a file."""
    SAMPLE_BYTES.check(size, f"{name} of {path} has")
    check_unpacked(packed, size, f"{name} of {path}")
    wanted = min(count, size)
    try:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(
            read_part(path, offset, packed, name), wanted or 1
        )
    except zlib.error as error:
        raise ValueError(f"{name} of {path} cannot be unpacked ({first_line(error)})") from None
    if len(content) != wanted:
        raise ValueError(f"{name} of {path} unpacks to {len(content):,} bytes, the archive says {size:,}")
    return content


def read_array(data: bytes) -> np.ndarray:
    """Return the array of an npy file's bytes, which must hold what its header says."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = (
        np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(file)
    size = dtype.itemsize * int(np.prod(shape, dtype=object))
    if size > len(data):
        raise ValueError(f"its header says {size:,} bytes of numbers, the file has {len(data):,}")
    return np.load(io.BytesIO(data), allow_pickle=False)


def parquet_file(path: str | Path) -> Any:
    """Return an open parquet file; raise a ValueError of one line where it is none, is cut off, or is too large."""
    check_regular(path)
    with file_errors(path, "parquet"):
        file = registry.require("pyarrow.parquet").ParquetFile(path)
    metadata = file.metadata
    packed = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    # of equal values a file holds one and their number
    TABLE_BYTES.check(max(packed, 8 * metadata.num_rows), f"{path} takes at least")
    return file


@contextlib.contextmanager
def file_errors(path: str | Path, kind: str) -> Iterator[None]:
    """Turn what a library raises on a damaged file into a ValueError of one line."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # pyarrow raises ValueErrors, OSErrors, and others of its own
        raise ValueError(
            f"{path} cannot be read as {kind} ({first_line(error)}): is the file whole?"
        ) from None


@contextlib.contextmanager
def unreadable_errors(index: int, name: str) -> Iterator[None]:
    """Turn whatever is raised while a sample is read into `Unreadable`, in one line that names it.

    A missing package is no fault of the sample and is raised as it is.
    """
    try:
        yield
    except (Unreadable, ImportError):
        raise
    except Exception as error:  # decoders raise almost anything on a damaged file
        reason = first_line(error)
        raise Unreadable(index, reason if name in reason else f"{name}: {reason}") from None


def first_line(error: BaseException) -> str:
    """Return what an error says in one line: of the system the reason alone, of others what they are where needed."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = next(iter(str(error).strip().splitlines()), "").rstrip(".")
    if isinstance(error, MemoryError):
        return f"takes more memory than there is ({text or 'no size is known'})"
    return text or type(error).__name__
