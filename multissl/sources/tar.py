"""Tar shards in webdataset's naming: the members of one sample share a key, the name up to its first dot.

`key.jpg` is the sample, `key.cls` or `key.json` says its class; without either, the first folder of the key is the
class where every key has one. A shard is opened once to list it; members are then read where they lie, so it must not
be compressed.  State: none.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from typing import Any

from multissl.limits import LABEL_BYTES
from multissl.plain_data import parse_json
from multissl.sources.base import Label, Request
from multissl.sources.names import LABELS, class_folders
from multissl.sources.payloads import Slice
from multissl.sources.shards import ShardSource


class TarSource(ShardSource):
    """The members of a plain tar file."""

    suffixes = (".tar",)

    def read_shard(self, path: str, request: Request) -> tuple[Sequence[Any], Sequence[Label]]:
        """Return a `Slice` for every key, of its preferred file type, and the labels."""
        try:
            samples, labels = _read_members(path, request.suffixes)
        except tarfile.TarError as error:
            raise ValueError(f"{path} is no plain tar ({error}); unpack or repeat the download") from None
        data = [
            min(members.items(), key=lambda item: request.suffixes.index(item[0]))[1]
            for members in samples.values()
        ]
        if labels:
            return data, [labels.get(key) for key in samples]
        return data, class_folders([key.split("/") for key in samples])


def _read_members(
    path: str, suffixes: tuple[str, ...]
) -> tuple[dict[str, dict[str, Slice]], dict[str, Label]]:
    """Return the wanted members by key and suffix, and the label of every key that has one."""
    samples: dict[str, dict[str, Slice]] = {}
    labels: dict[str, Label] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            folder, _, base = member.name.removeprefix("./").rpartition("/")
            stem, _, suffix = base.partition(".")
            if not member.isfile() or base.startswith("."):
                continue
            key, suffix = f"{folder}/{stem}".lstrip("/"), f".{suffix.lower()}"
            if suffix in (".cls", ".json"):
                LABEL_BYTES.check(member.size, f"{member.name} of {path} has")
                file = tar.extractfile(member)
                assert file is not None  # it is a file
                label = _read_label(file.read(), suffix, f"{member.name} of {path}")
                if label is not None:
                    labels[key] = label
            elif suffix in suffixes:
                part = Slice(path, member.offset_data, member.size, member.name)
                samples.setdefault(key, {})[suffix] = part
    return samples, labels


def _read_label(content: bytes, suffix: str, name: str) -> str | None:
    """Return the class that a .cls or .json member names, or None."""
    if suffix == ".cls":
        return content.decode(errors="replace").strip()
    fields = parse_json(content, name)
    label = fields
    if isinstance(fields, dict):
        label = next((fields[column] for column in LABELS if column in fields), None)
    return None if label is None or isinstance(label, list | dict) else str(label)
