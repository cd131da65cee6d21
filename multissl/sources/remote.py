"""Data in stores: `s3://`, `gs://`, `https://`, `hf://`, `memory://` and what else fsspec knows, copied here once.

A copy is known by size and version (ETag or time), file by file: what has changed is copied anew, what is gone there is
removed here. Where the place cannot be reached, a copy that is whole is used, which is said. A connection that drops is
made again where it broke off. Nothing is fetched unless a path names it.
State: none but the copies, in the cache of the user.
"""

from __future__ import annotations

import hashlib
import logging
import os
import posixpath
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import get_worker_info

from multissl import registry
from multissl.files import alone, make_folder, remove, replace_pieces, replace_text
from multissl.sources.cache import cache_folder
from multissl.sources.names import expand_braces, name_of_test_file
from multissl.sources.reading import first_line
from multissl.waiting import followed

log = logging.getLogger("multissl")
REMOTE = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
HTTP = ("http:", "https:")
PIECE = 1 << 20
TRIES = 5
"""How many times one after the other a connection may break off without a byte."""
PAUSE = 0.25
"""Seconds until the second try, twice as long until each one after it."""
THREADS = 8
VERSIONS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created", "md5", "oid")
"""What stores say of a file that changes when it does."""
GONE = (FileNotFoundError, PermissionError, NotADirectoryError)
"""What no second try changes."""


class Remote(NamedTuple):
    """A file of a store."""

    path: str
    """As its store calls it."""
    name: str
    """Below the place that was named."""
    size: int
    """In bytes, -1 where the store does not say."""
    version: str
    """Another one after every change, as far as the store says."""


def local_place(path: str) -> str:
    """Return where on this machine lies what a path names: what is remote is copied first.

    Raises a ValueError of one line where it cannot be reached, an ImportError where a package for it is missing.
    """
    if not REMOTE.match(path):
        return os.path.expanduser(path)
    root = cache_folder() / "remote" / hashlib.sha256(path.encode()).hexdigest()[:16]
    copies, versions = root / "data", root / "versions"
    for folder in (copies, versions):
        make_folder(folder)
    # a data worker reads what its parent has brought up to date: not each of them asks the store again
    if get_worker_info() is None or not any(versions.iterdir()):
        with alone(root):
            _update(path, copies, versions)
    own = copies / _name(path)
    return str(own if own.is_file() and len(expand_braces(path)) == 1 else copies)


def _update(path: str, copies: Path, versions: Path) -> None:
    """Bring the copies of a path up to date, or say that those of before are used."""
    try:
        store, files = _listed(path)
        _copy(path, store, files, copies, versions)
    except ValueError as error:
        if not any(versions.iterdir()):
            raise
        log.warning("%s; its copy of before in %s is used", error, copies)


def _name(path: str) -> str:
    """Return what the last part of a path is called, without the question of an address."""
    place = path.partition("?")[0] if path.startswith(HTTP) else path
    return posixpath.basename(place.rstrip("/"))


def _listed(path: str) -> tuple[Any, list[Remote]]:
    """Return the store of a path, and the files that it names."""
    fsspec = registry.require("fsspec")
    files: list[Remote] = []
    store: Any = None
    try:
        for part in expand_braces(path):
            store, place = fsspec.core.url_to_fs(part)
            files += _files(store, place)
    except ImportError as error:
        way = "; pip install 'multissl[remote]'" if path.startswith(HTTP) else ""
        raise ImportError(f"{path}: {first_line(error)}{way}") from None
    except ValueError:
        raise ValueError(f"{path}: no store is known by {path.partition(':')[0]}") from None
    except Exception as error:  # clients of stores raise almost anything
        raise ValueError(f"{path} cannot be reached ({first_line(error)})") from None
    if not files:
        raise ValueError(f"{path}: nothing lies there")
    return store, files


def _files(store: Any, place: str) -> list[Remote]:
    if "*" in place:
        matches = store.glob(place, detail=True)
        return [
            _file(p, posixpath.basename(p), info) for p, info in matches.items() if info.get("type") == "file"
        ]
    if place.startswith(HTTP) or store.isfile(place):
        beside = posixpath.join(posixpath.dirname(place), name_of_test_file(_name(place)))
        places = [place, beside] if _name(place) != _name(beside) and store.exists(beside) else [place]
        return [_file(each, _name(each), store.info(each)) for each in places]
    below = store.find(place, detail=True)
    return [
        _file(p, posixpath.relpath(p, place.rstrip("/") or "/"), info) for p, info in sorted(below.items())
    ]


def _file(path: str, name: str, info: Mapping[str, Any]) -> Remote:
    if not name or name.startswith(("/", "..")) or "/../" in name:
        raise OSError(f"{path} is no name of a file")
    size = info.get("size")
    return Remote(path, name, -1 if size is None else int(size), str([info.get(each) for each in VERSIONS]))


def _copy(path: str, store: Any, files: list[Remote], copies: Path, versions: Path) -> None:
    """Bring the copies of a place up to date."""
    stamps = {file.name: f"{file.size} {file.version}" for file in files}
    old = [
        file for file in files if not _is_current(copies / file.name, versions / file.name, stamps[file.name])
    ]
    for there in [entry for entry in versions.rglob("*") if entry.is_file()]:
        name = there.relative_to(versions).as_posix()
        if name not in stamps:
            remove(there)
            remove(copies / name)
    if not old:
        return
    size = sum(max(file.size, 0) for file in old)
    log.warning("%s: copying %s files, %.1f MB, to %s", path, f"{len(old):,}", size / 1e6, copies)

    def fetch(file: Remote) -> None:
        for folder in (copies, versions):
            make_folder((folder / file.name).parent)
        pieces = _pieces(store, file)
        steps = max(file.size // PIECE, 1)
        replace_pieces(
            copies / file.name, followed(pieces, f"{file.name}, in MB", steps) if len(old) == 1 else pieces
        )
        replace_text(versions / file.name, stamps[file.name])

    with ThreadPoolExecutor(THREADS) as threads:
        for _ in followed(threads.map(fetch, old), f"files of {path}", len(old)):
            pass


def _is_current(copy: Path, version: Path, stamp: str) -> bool:
    return copy.is_file() and version.is_file() and version.read_text() == stamp


def _pieces(store: Any, file: Remote) -> Iterator[bytes]:
    """Yield a file piece by piece; a connection that breaks off is made again where it was."""
    place = failures = 0
    while True:
        try:
            with store.open(file.path, "rb", cache_type="none") as stream:
                _skip(stream, place)
                while piece := stream.read(PIECE):
                    place += len(piece)
                    failures = 0
                    yield piece
            if file.size < 0 or place >= file.size:
                break
            reason = f"it ends after {place:,} of {file.size:,} bytes"
        except GONE as error:
            raise ValueError(f"{file.path} cannot be read ({first_line(error)})") from None
        except Exception as error:  # clients of stores raise almost anything where a connection drops
            reason = first_line(error)
        failures += 1
        if failures > TRIES:
            raise ValueError(
                f"{file.path} breaks off again and again ({reason}): try later, or copy it yourself"
            )
        time.sleep(PAUSE * 2**failures)


def _skip(stream: Any, place: int) -> None:
    """Go to a place of an open file, by reading where its store cannot."""
    try:
        stream.seek(place)
    except (ValueError, OSError, NotImplementedError):
        while place > 0 and (piece := stream.read(min(place, PIECE))):
            place -= len(piece)
