"""A folder of files, `[split/][class/]name`, and of shards; files whose name does not say so are known by content.

The stamp of a folder is the names in it, without the size and time of each: a listing depends on no more, and asking a
network file system for a million sizes takes minutes.  State: none.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from multissl.sources.base import Listing, Request, Source, file_stamps, suffix_of
from multissl.sources.companions import LABEL_MAPS, label_maps
from multissl.sources.kinds import HIDDEN, NAMED, PACKAGES, content_kind
from multissl.sources.names import said_by_folders
from multissl.sources.payloads import Joined, Paths
from multissl.sources.shards import list_shards, shard_formats
from multissl.sources.walking import digest_of_names, scan

NAMELESS = "no suffix"
"""What files are counted as that neither name nor content tells."""


class Found(NamedTuple):
    """The files below a folder."""

    samples: list[str]
    """Those of the wanted types, sorted."""
    shards: list[str]
    """Paths of shards, sorted."""
    others: Counter[str]
    """How many are neither samples nor shards, by their type or the reason."""
    kinds: Counter[str]
    """How many there are of each type."""


class FolderSource(Source):
    """The files below a folder, in order of their names."""

    def matches(self, path: str) -> bool:
        """Return whether the path is a folder."""
        return os.path.isdir(path)

    def stamp(self, request: Request) -> Hashable:
        """Return a digest of the names of all files, and the size and the time of shards."""
        digest, shards = digest_of_names(request.path, tuple(shard_formats()))
        return digest, file_stamps(sorted(os.path.join(request.path, name) for name in shards))

    def list_samples(self, request: Request) -> Listing:
        """List the files of the wanted types and the samples of shards; what else is there is counted by its type."""
        names, shards, others, kinds = _found(request.path, request.suffixes)
        left_out = others + Counter(suffix_of(path) for path in shards)
        if not names and shards:
            listing = list_shards(shards, request)
            return listing._replace(left_out={**listing.left_out, **others}, unit="samples and files")
        if not names:
            count = kinds.total()
            content = f"{count} files ({', '.join(sorted(kinds)[:8])})" if count else "nothing"
            advice = [
                f"pip install {PACKAGES[kind]} for {kind}" for kind in sorted(kinds) if kind in PACKAGES
            ]
            raise ValueError(
                f"the folder holds no {request.plural}, found {content}; looked for {', '.join(request.suffixes)}"
                + "".join(f"; {line}" for line in advice)
            )
        if request.kind == "image":
            maps = label_maps([name.replace(os.sep, "/") for name in names])
            left_out += Counter({LABEL_MAPS: len(maps)})
            names = [name for name in names if name.replace(os.sep, "/") not in maps] if maps else names
        labels, tags = _said_by_folders(names)
        listing = Listing(Paths(request.path, names), labels, tags, left_out=left_out)
        return _with_shards(listing, shards, request) if shards else listing


def _found(root: str, suffixes: Sequence[str]) -> Found:
    """Return what lies below a folder."""
    wanted, shards = frozenset(suffixes), tuple(shard_formats())
    known: dict[str, str] = {}  # by the suffix as it is written, "" for one that says nothing
    found = Found([], [], Counter(), Counter())
    for folder in scan(root):
        hidden = sum(os.path.splitext(name)[1].lower() in wanted for name in folder.hidden)
        found.others.update({HIDDEN: hidden} if hidden else {})
        if folder.error:
            found.others[f"folders that cannot be listed ({folder.error})"] += 1
        for name in folder.files:
            dot = name.rfind(".")
            written = name[dot:] if dot > 0 else ""
            kind = known.get(written)
            if kind is None:
                suffix = written.lower()
                kind = known[written] = suffix if NAMED.fullmatch(suffix) else ""
            kind = kind or content_kind(os.path.join(root, folder.prefix, name))
            found.kinds[kind or NAMELESS] += 1
            if kind in wanted:
                found.samples.append(f"{folder.prefix}{name}")
            elif name.lower().endswith(shards):
                found.shards.append(os.path.join(root, folder.prefix, name))
            else:
                found.others[kind or NAMELESS] += 1
    found.samples.sort()
    found.shards.sort()
    return found


def _said_by_folders(names: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """Return the class and the split of files."""
    folders = [name[: name.rfind(os.sep) + 1] for name in names]
    counts = Counter(folders)
    parts = {folder: tuple(folder.split(os.sep)[:-1]) for folder in counts}
    said = said_by_folders({parts[folder]: count for folder, count in counts.items()})
    of = {folder: said[path] for folder, path in parts.items()}
    return [of[folder][0] for folder in folders], [of[folder][1] for folder in folders]


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
