"""Tar shards in webdataset's naming: the members of one sample share a key, the name up to its first dot.

Where no member of that key is a sample, the name is cut at its last dot: `scan.v1.7.png` is one of key `scan.v1.7`.

`key.jpg` is the sample, `key.cls` or `key.json` says its class; without either, the first folder of the key is the
class where every key has one. A shard is opened once to list it; members are then read where they lie, so it must not
be compressed.  State: none.
"""

from __future__ import annotations

import functools
import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from multissl.limits import LABEL_BYTES
from multissl.plain_data import parse_json
from multissl.sources.base import Label, Request
from multissl.sources.names import LABELS, class_folders, first_dot, last_dot
from multissl.sources.payloads import Slice
from multissl.sources.shards import ShardSource


class Members(NamedTuple):
    """The members of a tar file."""

    samples: dict[str, dict[str, Slice]]
    """The wanted ones by key and suffix."""
    labels: dict[str, Label]
    """Of every key that has one."""
    others: Counter[str]
    """How many are neither, by suffix."""


class TarSource(ShardSource):
    """The members of a plain tar file."""

    suffixes = (".tar",)

    def read_shard(self, path: str, request: Request) -> tuple[Sequence[Any], Sequence[Label]]:
        """Return a `Slice` for every key, of its preferred file type, and the labels."""
        members = _read_members(path, request.suffixes)
        data = [
            min(parts.items(), key=lambda item: request.suffixes.index(item[0]))[1]
            for parts in members.samples.values()
        ]
        if members.labels:
            return data, [members.labels.get(key) for key in members.samples]
        return data, class_folders([key.split("/") for key in members.samples])

    def left_out(self, path: str, request: Request) -> Counter[str]:
        """Return how many members are neither samples nor their labels, by suffix."""
        return _read_members(path, request.suffixes).others


def _read_members(path: str, suffixes: tuple[str, ...]) -> Members:
    """Return the members of a tar file. Raises a ValueError of one line where it is none."""
    try:
        return _members(path, suffixes, os.stat(path).st_mtime_ns)
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no plain tar ({error}); unpack or repeat the download") from None


@functools.lru_cache(maxsize=2)  # asked for the samples, then for what was left out
def _members(path: str, suffixes: tuple[str, ...], changed: int) -> Members:
    samples: dict[str, dict[str, Slice]] = {}
    labels: dict[str, Label] = {}
    others: dict[str, Slice] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, suffix = first_dot(member.name)
            if not member.isfile() or key.rpartition("/")[2] == "":
                continue
            part = Slice(path, member.offset_data, member.size, member.name)
            last = os.path.splitext(member.name)[1].lower()
            if last in (".cls", ".json"):
                LABEL_BYTES.check(member.size, f"{member.name} of {path} has")
                file = tar.extractfile(member)
                assert file is not None  # it is a file
                label = _read_label(file.read(), last, f"{member.name} of {path}")
                if label is not None:
                    labels[key if suffix == last else last_dot(member.name)[0]] = label
            elif suffix in suffixes:
                samples.setdefault(key, {})[suffix] = part
            else:
                others[member.name] = part
    keys, left_out = set(samples), Counter[str]()
    for name, part in others.items():  # names with dots, where the first one leads to no sample
        key, suffix = last_dot(name)
        if suffix in suffixes and first_dot(name)[0] not in keys:
            samples.setdefault(key, {})[suffix] = part
        else:
            left_out[suffix or "no suffix"] += 1
    return Members(samples, labels, left_out)


def _read_label(content: bytes, suffix: str, name: str) -> str | None:
    """Return the class that a .cls or .json member names, or None."""
    if suffix == ".cls":
        return content.decode(errors="replace").strip()
    fields = parse_json(content, name)
    label = fields
    if isinstance(fields, dict):
        label = next((fields[column] for column in LABELS if column in fields), None)
    return None if label is None or isinstance(label, list | dict) else str(label)
