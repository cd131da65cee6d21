"""The files below a folder, a folder at a time, by their names alone: a network takes minutes for a million sizes.

A folder whose time of change is old says that no name in it has changed since, so that its names are digested once in a
process. Links are followed, loops of links are not.
State: digests of the folders that were looked at.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from multissl.sources.reading import first_line

SETTLED = 2_000_000_000
"""Nanoseconds after which a change of a folder has another time than the one before it, on any file system."""
KEPT = 200_000
"""Folders whose digests are kept."""


class Folder(NamedTuple):
    """A folder below a root."""

    prefix: str
    """Its path below the root with a separator at its end, "" of the root itself."""
    files: list[str]
    """Names of its visible files, sorted."""
    hidden: list[str]
    """Names of files that begin with a dot."""
    folders: list[str]
    """Names of its visible folders, sorted."""
    error: str = ""
    """Why it cannot be listed."""


class _Digested(NamedTuple):
    changed: int
    digest: bytes
    folders: list[str]
    marked: list[str]


Looked = TypeVar("Looked", Folder, _Digested)

_digests: OrderedDict[tuple[str, tuple[str, ...]], _Digested] = OrderedDict()


def walk(root: str) -> Iterator[str]:
    """Yield the visible files below a folder, relative to it."""
    for folder in scan(root):
        yield from (f"{folder.prefix}{name}" for name in folder.files)


def scan(root: str) -> Iterator[Folder]:
    """Yield a folder and those below it; one below the root that cannot be listed says why."""
    for _, folder in _below(root, _listed):
        yield folder


def digest_of_names(root: str, marked: tuple[str, ...]) -> tuple[bytes, list[str]]:
    """Return a digest of the names of all files below a folder, and the files with one of the marked suffixes."""
    digest, files = hashlib.sha256(), list[str]()
    for prefix, known in _below(root, functools.partial(_digested, marked=marked)):
        digest.update(os.fsencode(f"{prefix}\0"))
        digest.update(known.digest)
        files += [f"{prefix}{name}" for name in known.marked]
    return digest.digest(), files


def _below(root: str, look: Callable[[str, str], Looked]) -> Iterator[tuple[str, Looked]]:
    """Yield a folder and those below it, in the order of their names, each by its prefix with what `look` says of it.

    `look` takes the path of a folder and its prefix.
    """
    waiting, seen = [""], set[str]()
    while waiting:
        prefix = waiting.pop()
        path = os.path.join(root, prefix)
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        looked = look(path, prefix)
        yield prefix, looked
        waiting += [f"{prefix}{name}{os.sep}" for name in reversed(looked.folders)]


def _listed(path: str, prefix: str) -> Folder:
    files, hidden, folders = list[str](), list[str](), list[str]()
    try:
        found = os.scandir(path)
    except OSError as error:
        if not prefix:
            raise
        return Folder(prefix, files, hidden, folders, first_line(error))
    with found as entries:
        for entry in entries:
            name = entry.name
            # a link to itself is no error
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                if not name.startswith("."):
                    folders.append(name)
            elif name.startswith("."):
                hidden.append(name)
            else:
                files.append(name)
    files.sort()
    folders.sort()
    return Folder(prefix, files, hidden, folders)


def _digested(path: str, prefix: str, marked: tuple[str, ...]) -> _Digested:
    """Return what is known of a folder's names, from before where its time says that they are the same."""
    key, now = (os.path.abspath(path), marked), time.time_ns()
    changed = os.stat(path).st_mtime_ns
    known = _digests.get(key)
    if known is None or known.changed != changed:
        folder = _listed(path, prefix)
        names = os.fsencode("\0".join(folder.files))
        known = _Digested(
            changed,
            hashlib.sha256(names).digest(),
            folder.folders,
            [name for name in folder.files if name.lower().endswith(marked)],
        )
        _digests.pop(key, None)
        if 0 <= changed < now - SETTLED:
            _digests[key] = known
        while len(_digests) > KEPT:
            _digests.popitem(last=False)
    return known
