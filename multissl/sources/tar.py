"""Archives in webdataset's naming: the members of one sample share a key, the name up to its first dot.

Where no member of that key is a sample, the name is cut at its last dot: `scan.v1.7.png` is one of key `scan.v1.7`.

`key.jpg` is the sample, `key.cls` or `key.json` says its class; without any, folders say split and class as they do
outside of archives, below a first folder that all have in common. An archive is opened once to list it; members are
then read where they lie, those of zips unpacked one by one; packed tars are unpacked whole, once.  State: none.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from multissl.limits import LABEL_BYTES
from multissl.plain_data import parse_json
from multissl.sources.archives import ARCHIVES, members
from multissl.sources.base import Label, Request
from multissl.sources.companions import LABEL_MAPS, label_maps
from multissl.sources.kinds import HIDDEN
from multissl.sources.names import LABELS, first_dot, last_dot, read_folders
from multissl.sources.payloads import Slice
from multissl.sources.shards import ShardSource


class Contents(NamedTuple):
    """What an archive holds."""

    samples: dict[str, dict[str, Slice]]
    """The wanted members by key and suffix."""
    labels: list[Label]
    """The class of every key."""
    tags: list[str]
    """The split that folders name of every key; empty where they name none."""
    others: Counter[str]
    """How many members are neither samples nor their labels, by suffix."""


class TarSource(ShardSource):
    """The members of a tar or zip, packed or not."""

    suffixes = ARCHIVES

    def read_shard(self, path: str, request: Request) -> tuple[Sequence[Any], Sequence[Label]]:
        """Return a `Slice` for every key, of its preferred file type, and the labels."""
        contents = _contents_of(path, request)
        data = [
            min(parts.items(), key=lambda item: request.suffixes.index(item[0]))[1]
            for parts in contents.samples.values()
        ]
        return data, contents.labels

    def splits(self, path: str, request: Request) -> Sequence[str]:
        """Return the splits that folders inside the archive name."""
        return _contents_of(path, request).tags

    def left_out(self, path: str, request: Request) -> Counter[str]:
        """Return how many members are neither samples nor their labels, by suffix."""
        return _contents_of(path, request).others


def _contents_of(path: str, request: Request) -> Contents:
    return _contents(path, request.kind, request.suffixes, os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=2)  # asked for the samples, then for their splits and for what was left out
def _contents(path: str, kind: str, suffixes: tuple[str, ...], changed: int) -> Contents:
    samples: dict[str, dict[str, Slice]] = {}
    labels: dict[str, Label] = {}
    others: dict[str, Slice] = {}
    left_out = Counter[str]()
    for part in members(path):
        key, suffix = first_dot(part.name)
        last = os.path.splitext(part.name)[1].lower()
        if key.rpartition("/")[2] == "":
            left_out.update([HIDDEN] if last in suffixes else [])
            continue
        if last in (".cls", ".json"):
            LABEL_BYTES.check(part.size, f"{part.name} of {path} has")
            label = _read_label(part.read(), last, f"{part.name} of {path}")
            if label is not None:
                labels[key if suffix == last else last_dot(part.name)[0]] = label
        elif suffix in suffixes:
            samples.setdefault(key, {})[suffix] = part
        else:
            others[part.name] = part
    keys = set(samples)
    for name, part in others.items():  # names with dots, where the first one leads to no sample
        key, suffix = last_dot(name)
        if suffix in suffixes and first_dot(name)[0] not in keys:
            samples.setdefault(key, {})[suffix] = part
        else:
            left_out[suffix or "no suffix"] += 1
    for key in label_maps([*samples]) if kind == "image" else ():
        left_out[LABEL_MAPS] += len(samples.pop(key))
    if labels:
        return Contents(samples, [labels.get(key) for key in samples], [], left_out)
    classes, tags = read_folders(below_common([key.split("/") for key in samples]))
    return Contents(samples, list(classes), tags if any(tags) else [], left_out)


def below_common(paths: list[list[str]]) -> list[list[str]]:
    """Return paths without the first folders that all of them have in common, as archives of a folder have them.

    A folder that names a split is no such one, where it is not the only one.
    """
    while paths and all(len(path) > 2 for path in paths) and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    return paths


def _read_label(content: bytes, suffix: str, name: str) -> str | None:
    """Return the class that a .cls or .json member names, or None."""
    if suffix == ".cls":
        return content.decode(errors="replace").strip()
    fields = parse_json(content, name)
    label = fields
    if isinstance(fields, dict):
        label = next((fields[column] for column in LABELS if column in fields), None)
    return None if label is None or isinstance(label, list | dict) else str(label)
