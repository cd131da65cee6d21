"""A folder of files, `[split/][class/]name`, and of shards; files whose name does not say so are known by content.

The stamp of a folder is the names in it, without the size and time of each: a listing depends on no more, and asking a
network file system for a million sizes takes minutes.  State: none.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Hashable, Iterator

from multissl.sources.base import Listing, Request, Source, file_stamps, suffix_of
from multissl.sources.kinds import PACKAGES, file_kind
from multissl.sources.names import read_folders
from multissl.sources.payloads import Joined, Paths
from multissl.sources.shards import format_of, list_shards, shard_formats

NAMELESS = "no suffix"
"""What files are counted as that neither name nor content tells."""


class FolderSource(Source):
    """The files below a folder, in order of their names."""

    def matches(self, path: str) -> bool:
        """Return whether the path is a folder."""
        return os.path.isdir(path)

    def stamp(self, request: Request) -> Hashable:
        """Return a digest of the names of all files, and the size and the time of shards."""
        files = sorted(walk(request.path))
        return hashlib.sha256(os.fsencode("\0".join(files))).digest(), file_stamps(_shards(files, request))

    def list_samples(self, request: Request) -> Listing:
        """List the files of the wanted types and the samples of shards; what else is there is counted by its type."""
        files = sorted(walk(request.path))
        kinds = {name: file_kind(os.path.join(request.path, name)) for name in files}
        names = [name for name in files if kinds[name] in request.suffixes]
        shards = _shards(files, request)
        if not names and shards:
            listing = list_shards(shards, request)
            listed = {os.path.relpath(path, request.path) for path in shards}
            others = Counter(kinds[name] or NAMELESS for name in files if name not in listed)
            return listing._replace(left_out={**listing.left_out, **others}, unit="samples and files")
        if not names:
            found = sorted({kind or NAMELESS for kind in kinds.values()})
            content = f"{len(files)} files ({', '.join(found[:8])})" if files else "nothing"
            advice = [f"pip install {PACKAGES[kind]} for {kind}" for kind in found if kind in PACKAGES]
            raise ValueError(
                f"the folder holds no {request.kind}s, found {content}; looked for {', '.join(request.suffixes)}"
                + "".join(f"; {line}" for line in advice)
            )
        labels, tags = read_folders([name.split(os.sep) for name in names])
        listed = set(names)
        left_out = Counter(kinds[name] or NAMELESS for name in files if name not in listed)
        listing = Listing(Paths(request.path, names), labels, tags, left_out=left_out)
        return _with_shards(listing, shards, request) if shards else listing


def _with_shards(listing: Listing, paths: list[str], request: Request) -> Listing:
    """Return the files of a folder and the samples of shards beside them; shards that hold none stay left out."""
    left_out = Counter(listing.left_out)
    data, labels, tags = [listing.data], [*listing.labels], [*listing.tags]
    for path in paths:
        try:
            more = list_shards([path], request)
        except ValueError:
            continue
        if not len(more.data) or isinstance(more.data[0], str):  # a table about the files that lie here
            continue
        left_out[suffix_of(path)] -= 1
        if any(more.tags) and not any(tags):
            tags = ["train"] * len(tags)
        data.append(more.data)
        labels += more.labels
        tags += more.tags if any(more.tags) or not any(tags) else ["train"] * len(more.tags)
    return listing._replace(data=Joined(data), labels=labels, tags=tags, left_out=+left_out)


def _shards(files: list[str], request: Request) -> list[str]:
    formats = shard_formats()
    return [os.path.join(request.path, name) for name in files if format_of(name, formats) is not None]


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
