"""The files inside archives: tar and zip, which are read where they lie, and packed tars, which are unpacked once.

State: none; what was unpacked lies in the cache of the user.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from multissl.limits import check_unpacked
from multissl.sources.cache import kept
from multissl.sources.payloads import Slice
from multissl.sources.reading import check_regular, first_line

PACKED: dict[str, type[gzip.GzipFile] | type[lzma.LZMAFile] | type[bz2.BZ2File]] = {
    ".tar.gz": gzip.GzipFile,
    ".tgz": gzip.GzipFile,
    ".tar.xz": lzma.LZMAFile,
    ".txz": lzma.LZMAFile,
    ".tar.bz2": bz2.BZ2File,
}
"""Packed tars by suffix, and what opens them."""
ARCHIVES = (".tar", ".zip", *PACKED)
PIECE = 1 << 24
METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
"""How members of a zip are packed that are read."""
HEADER = struct.Struct("<26xHH")
"""Of a member of a zip: the lengths of its name and of what else stands before its bytes."""
ENCRYPTED = 1
"""The flag of an encrypted member."""


def archive_suffix(path: str) -> str:
    """Return the suffix by which a path is an archive, "" where it is none."""
    name = path.lower()
    return max((suffix for suffix in ARCHIVES if name.endswith(suffix)), key=len, default="")


def members(path: str) -> Iterator[Slice]:
    """Yield the files of an archive in its order. Raises a ValueError of one line where it cannot be read."""
    check_regular(path)
    suffix = archive_suffix(path)
    if suffix == ".zip":
        yield from _of_zip(path)
    elif suffix in PACKED:
        yield from _of_tar(str(unpacked_tar(path)), path)
    else:
        yield from _of_tar(path, path)


def _of_tar(path: str, name: str) -> Iterator[Slice]:
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile():
                    yield Slice(path, member.offset_data, member.size, member.name.removeprefix("./"))
    except tarfile.TarError as error:
        raise ValueError(f"{name} is no plain tar ({error}); unpack or repeat the download") from None


def _of_zip(path: str) -> Iterator[Slice]:
    try:
        with zipfile.ZipFile(path) as file:
            listed = [member for member in file.infolist() if not member.is_dir()]
        begins = _begins(path, listed)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(f"{path} is no zip ({first_line(error)}): is the file whole?") from None
    for member, begin in zip(listed, begins, strict=True):
        if member.flag_bits & ENCRYPTED:
            raise ValueError(f"{path}: {member.filename} is encrypted: unpack it, and name the folder")
        if member.compress_type not in METHODS:
            raise ValueError(
                f"{path}: {member.filename} is packed by method {member.compress_type}, known are "
                f"{' and '.join(METHODS.values())}: unpack it, and name the folder"
            )
        packed = member.compress_size if member.compress_type == zipfile.ZIP_DEFLATED else -1
        yield Slice(path, begin, member.file_size, member.filename, packed)


def _begins(path: str, listed: list[zipfile.ZipInfo]) -> list[int]:
    """Return where the bytes of each member begin, behind its own header. Raises a `BadZipFile` where none is there."""
    begins = []
    with open(path, "rb") as file:
        for member in listed:
            file.seek(member.header_offset)
            header = file.read(HEADER.size)
            if len(header) < HEADER.size or not header.startswith(b"PK\x03\x04"):
                raise zipfile.BadZipFile(f"{member.filename} is not where its table says")
            begins.append(member.header_offset + HEADER.size + sum(HEADER.unpack(header)))
    return begins


def unpacked_tar(path: str) -> Path:
    """Return the plain tar of a packed one, which lies in the cache; unpacked once for each size and time of it."""
    opener = PACKED[archive_suffix(path)]

    def pieces() -> Iterator[bytes]:
        packed, size = os.stat(path).st_size, 0
        try:
            with opener(path) as file:
                while piece := file.read(PIECE):
                    size += len(piece)
                    check_unpacked(packed, size, path)
                    yield piece
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise ValueError(f"{path} cannot be unpacked ({first_line(error)}): is the file whole?") from None

    info = os.stat(path)
    name = os.path.basename(path)[: -len(archive_suffix(path))] + ".tar"
    key = f"{os.path.realpath(path)} {info.st_size} {info.st_mtime_ns}"
    return kept(key, name, pieces, f"unpacking {path}")
