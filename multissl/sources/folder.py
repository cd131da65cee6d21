"""A folder of files, `[split/][class/]name`; one that holds none of the wanted files but shards is read as these.

The stamp of a folder is the names in it, without the size and time of each: a listing depends on no more, and asking a
network file system for a million sizes takes minutes.  State: none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterator

from multissl.sources.base import Listing, Request, Source, file_stamps, suffix_of
from multissl.sources.names import read_folders
from multissl.sources.payloads import Paths
from multissl.sources.shards import list_shards, shard_formats


class FolderSource(Source):
    """The files below a folder, in order of their names."""

    def matches(self, path: str) -> bool:
        """Return whether the path is a folder."""
        return os.path.isdir(path)

    def stamp(self, request: Request) -> Hashable:
        """Return a digest of the names of all files, and the size and the time of shards."""
        files = sorted(walk(request.path))
        shards = [] if any(_is_wanted(name, request) for name in files) else _shards(files, request)
        return hashlib.sha256(os.fsencode("\0".join(files))).digest(), file_stamps(shards)

    def list_samples(self, request: Request) -> Listing:
        """List the files of the wanted types, else the samples of the shards."""
        files = sorted(walk(request.path))
        names = [name for name in files if _is_wanted(name, request)]
        if names:
            labels, tags = read_folders([name.split(os.sep) for name in names])
            return Listing(Paths(request.path, names), labels, tags)
        shards = _shards(files, request)
        if shards:
            return list_shards(shards, request)
        kinds = sorted({suffix_of(name) or "no suffix" for name in files})
        content = f"{len(files)} files ({', '.join(kinds[:8])})" if files else "nothing"
        raise ValueError(
            f"the folder holds no {request.kind}s, found {content}; looked for {', '.join(request.suffixes)}"
        )


def _is_wanted(name: str, request: Request) -> bool:
    return suffix_of(name) in request.suffixes


def _shards(files: list[str], request: Request) -> list[str]:
    formats = shard_formats()
    return [os.path.join(request.path, name) for name in files if suffix_of(name) in formats]


def walk(root: str) -> Iterator[str]:
    """Yield the visible files below a folder, relative to it; links are followed, loops of links are not."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(folder, root)
        prefix = "" if below == os.curdir else f"{below}{os.sep}"
        yield from (f"{prefix}{name}" for name in files if not name.startswith("."))
