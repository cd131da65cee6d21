"""How the data of a sample is reached: files, members of tar shards, parquet cells, items of other libraries.

A reader is a sequence: sample number -> path, `Slice`, bytes, or an item as another library gives it. Listing
opens every shard once; reading is random access, so any step of a run can be drawn again. Readers are
picklable.
"""

from __future__ import annotations

import inspect
import itertools
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import numpy as np

from multissl import registry
from multissl.registry import suggest

WORDS = {w: w for w in ("train", "val", "test")}
WORDS |= {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
PATHS, LABELS = (
    ("path", "file", "filename", "file_name"),
    ("label", "labels", "class", "target", "fine_label"),
)
HUB_OPTIONS = ("name", "revision", "split", "data_dir", "data_files")
"""What may follow `hf:NAME?`; other arguments of `load_dataset` are no choice of a recipe."""
CACHED = 256 << 20  # bytes of parquet columns that a process keeps
Label = int | str | None


class Slice(NamedTuple):
    """A file inside a tar shard."""

    path: str
    offset: int
    size: int
    name: str

    def read(self) -> bytes:
        """Its bytes."""
        with open(self.path, "rb") as f:
            f.seek(self.offset)
            return f.read(self.size)


def describe_file(payload: Any) -> dict[str, str]:
    """Return the name of the file or member that a payload is, under "file"; nothing for other payloads."""
    name = payload.name if isinstance(payload, Slice) else payload
    return {"file": str(name)} if isinstance(name, str | Path) else {}


class Listing(NamedTuple):
    """All samples of a source: their data by position, and what is known of each."""

    data: Sequence[Any]
    labels: Sequence[Label]
    tags: Sequence[str]  # train, val, test or nothing
    groups: Sequence[Label] | None = None


class Paths(Sequence[str]):
    """File names below a root, kept as bytes: a million Python strings would be copied into every worker."""

    def __init__(self, root: str, names: list[str]) -> None:
        self.root, self.names = root, np.array([os.fsencode(n) for n in names])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: Any) -> Any:
        return os.path.join(self.root, os.fsdecode(bytes(self.names[row])))


class Joined(Sequence[Any]):
    """Several sequences, one after the other."""

    def __init__(self, parts: list[Sequence[Any]]) -> None:
        self.parts, self.ends = parts, list(itertools.accumulate(len(p) for p in parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, row: Any) -> Any:
        part = int(np.searchsorted(self.ends, row, side="right"))
        return self.parts[part][row - (self.ends[part - 1] if part else 0)]


def tar(path: str, suffixes: tuple[str, ...]) -> tuple[Sequence[Any], Sequence[Label]]:
    """The samples of a shard in webdataset's naming: members of one key, the name up to its first dot."""
    samples: dict[str, dict[str, Slice]] = {}
    given: dict[str, Label] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, base = member.name.removeprefix("./").rpartition("/")
                stem, _, suffix = base.partition(".")
                if not member.isfile() or base.startswith("."):
                    continue
                key, suffix = f"{folder}/{stem}".lstrip("/"), f".{suffix.lower()}"
                if suffix in (".cls", ".json"):
                    file = tar.extractfile(member)
                    assert file is not None  # it is a file
                    label = _label(file.read(), suffix, member.name)
                    given.update({key: label} if label is not None else {})
                elif suffix in suffixes:
                    found = Slice(path, member.offset_data, member.size, member.name)
                    samples.setdefault(key, {})[suffix] = found
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no plain tar ({error}); unpack or repeat the download") from None
    data = [min(found.items(), key=lambda item: suffixes.index(item[0]))[1] for found in samples.values()]
    if given:
        return data, [given.get(key) for key in samples]
    return data, class_folders([key.split("/") for key in samples])


def _label(content: bytes, suffix: str, name: str) -> str | None:
    """What a .cls or .json member says of the class, or None."""
    if suffix == ".cls":
        return content.decode().strip()
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{name} is no JSON ({error})") from None
    found = next((fields[c] for c in LABELS if c in fields), None) if isinstance(fields, dict) else fields
    return None if found is None or isinstance(found, list | dict) else str(found)


def class_folders(parts: list[list[str]]) -> list[str | None]:
    """The first folder of each path, where all files lie in one."""
    names = [p[0] if len(p) > 1 else None for p in parts]
    return names if None not in names else [None] * len(parts)


def parquet(path: str, kind: str) -> tuple[Sequence[Any], Sequence[Label]]:
    """The cells of a table's column `kind`, bytes or a struct of bytes and path, and its labels."""
    file = registry.require("pyarrow.parquet").ParquetFile(path)
    names = file.schema_arrow.names
    column = pick(names, (kind, f"{kind}_bytes", "bytes", "img", *PATHS))
    label = pick(names, LABELS, wanted=False)
    labels = file.read([label])[label].to_pylist() if label else [None] * file.metadata.num_rows
    return Rows(
        path, column, [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    ), labels


class Rows(Sequence[Any]):
    """Cells of a parquet column, read by row group; the last ones read stay in memory."""

    def __init__(self, path: str, column: str, counts: list[int]) -> None:
        self.path, self.column, self.counts = path, column, counts
        self.ends = list(itertools.accumulate(counts))
        self.groups: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "groups": OrderedDict()}

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, row: Any) -> Any:
        number = int(np.searchsorted(self.ends, row, side="right"))
        if number not in self.groups:
            table = registry.require("pyarrow.parquet").ParquetFile(self.path)
            self.groups[number] = table.read_row_group(number, columns=[self.column])[self.column]
            while len(self.groups) > 1 and sum(g.nbytes for g in self.groups.values()) > CACHED:
                self.groups.popitem(last=False)
        self.groups.move_to_end(number)
        return _cell(self.groups[number][row - self.ends[number] + self.counts[number]].as_py(), self.path)


def _cell(value: Any, path: str) -> Any:
    """Bytes of a cell, or the path it names, relative to the file it was read from."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return os.path.join(os.path.dirname(path), value) if isinstance(value, str) else value


def pick(known: list[str], candidates: tuple[str, ...], wanted: bool = True) -> str:
    """The first candidate among the known columns, or nothing where none is wanted."""
    found = next((c for c in candidates if c in known), "")
    if wanted and not found:
        raise ValueError(f"want a column {' or '.join(candidates)}, found {', '.join(known) or 'none'}")
    return found


def torchvision(rest: str) -> Listing:
    """A dataset of torchvision, `Name?root=...&download=1`; it is downloaded only where that is asked."""
    from torchvision import datasets

    name, _, query = rest.partition("?")
    options: dict[str, Any] = {k: int(v) if v.isdigit() else v for k, v in parse_qsl(query)}
    known = datasets.__all__
    if name not in known:
        raise ValueError(f"torchvision has no dataset {name!r}{suggest(name, known)}")
    build = getattr(datasets, name)
    accepted = inspect.signature(build).parameters
    by_split: dict[str, dict[str, Any]] = {"": {}}
    if "train" in accepted:
        by_split = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in accepted:
        by_split = {word: {"split": word} for word in ("train", "val", "test")}
    parts, labels, tags = [], [], []
    for tag, extra in by_split.items():
        try:
            part = build(**{**extra, **options})
        except (ValueError, RuntimeError, TypeError) as error:
            if isinstance(error, ValueError) and "split" in extra and parts:
                continue  # this dataset knows no such split
            raise ValueError(f"{error} (options follow a ?, as in ?root=FOLDER&download=1)") from None
        known_labels = getattr(part, "targets", None) or getattr(part, "_labels", None)
        labels += [None] * len(part) if known_labels is None else [int(v) for v in known_labels]
        tags += [tag] * len(part)
        parts.append(Items(part))
    return Listing(Joined(parts), labels, tags)


def hugging_face(rest: str, kind: str) -> Listing:
    """A dataset by its hub name, `name?revision=...`, or by the path of a folder."""
    datasets = registry.require("datasets")
    name, _, query = rest.partition("?")
    options = dict(parse_qsl(query))
    for option in options:
        if option not in HUB_OPTIONS:
            raise ValueError(f"a hub dataset has no option {option!r}{suggest(option, HUB_OPTIONS)}")
    saved = any(os.path.exists(os.path.join(name, f)) for f in ("dataset_dict.json", "state.json"))
    found = (
        datasets.load_from_disk(name)
        if saved
        else datasets.load_dataset(name, **options, trust_remote_code=False)
    )
    splits = found if hasattr(found, "keys") else {"": found}
    parts, labels, tags = [], [], []
    for tag, part in splits.items():
        column = pick(part.column_names, (kind, "img", *PATHS))
        label = pick(part.column_names, LABELS, wanted=False)
        if type(part.features[column]).__name__ == "Image":
            part = part.cast_column(column, datasets.Image(decode=False))
        parts.append(Items(part.select_columns([column]), column))
        labels += list(part[label]) if label else [None] * len(part)
        tags += [WORDS.get(tag.lower(), "")] * len(part)
    return Listing(Joined(parts), labels, tags)


class Items(Sequence[Any]):
    """A map-style dataset of others: its items' first entry, or their entry of a name."""

    def __init__(self, items: Any, name: str = "") -> None:
        self.items, self.name = items, name

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: Any) -> Any:
        item = self.items[row]
        return _cell(item[self.name], "") if self.name else item[0]
