"""Which modality a path is of, by the names of its files or the columns of its table.

State: none.
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from multissl import registry
from multissl.contract.modality import Modality
from multissl.sources.kinds import file_kind
from multissl.sources.names import LABELS, file_columns, named_files, pick_column, split_in_name
from multissl.sources.remote import REMOTE, local_place
from multissl.sources.tables import TABLES, open_table, table_suffix

KINDS = ("image", "video", "audio", "text")
"""Modalities whose samples are files, the one that decides first where suffixes are shared."""
WITH_TEXT = {"image": "image_text", "audio": "audio_text", "video": "video_text"}
"""The modality of pairs for files with a text each."""
LOOKED_AT = 20_000
"""Names of files that are looked at."""
SHARDS = (".tar", ".tgz")
ARRAYS = (".npz", ".h5", ".hdf5")
LONG = 40
"""Characters of a usual cell from which a column holds texts and no names."""


def part_of(path: str) -> str:
    """Return the name of the modality that a path is read by. Raises a ValueError where it tells none."""
    if path.startswith("gym:"):
        return "rl"
    if path.startswith(("torchvision:", "hf:")) and not REMOTE.match(path):
        return "image"
    place = local_place(path)
    if os.path.isdir(place):
        return _of_files(
            path, (os.path.join(folder, n) for folder, _, names in os.walk(place) for n in names)
        )
    if any(letter in place for letter in "*{"):
        return _of_pattern(path, place)
    if not os.path.exists(place):
        raise ValueError(f"{path}: no such file or folder")
    if table_suffix(place) in TABLES:
        return _of_columns(place)
    if place.lower().endswith(SHARDS):
        with tarfile.open(place) as file:
            return _of_files(path, [member.name for member in islice(file, LOOKED_AT) if member.isfile()])
    if place.lower().endswith(ARRAYS):
        return "rl"
    if place.lower().endswith(".txt") and (listed := _listed(place)):
        return _of_files(path, listed)
    return _of_files(path, [place])


def pairs_of(path: str, part: str) -> str:
    """Return the name of the modality of pairs whose texts stand beside the files of a table, "" for none."""
    place = local_place(path)
    if part not in WITH_TEXT or not os.path.isfile(place) or table_suffix(place) not in TABLES:
        return ""
    text: type[Modality] = registry.resolve("text", "modalities")
    table = open_table(place)
    column = pick_column(list(table.columns), text.columns, required=False)
    return WITH_TEXT[part] if column and isinstance(_first(table.cells(column)), str) else ""


def _of_pattern(path: str, place: str) -> str:
    """Return the modality of the first shard that a pattern names."""
    shards = named_files(place)
    if not shards:
        raise ValueError(f"{path}: no file is named like that")
    return part_of(shards[0])


def _of_files(path: str, files: Iterable[str]) -> str:
    """Return the modality that most files are of."""
    suffixes: Counter[str] = Counter()
    shards = []
    for name in islice(files, LOOKED_AT):
        suffixes[file_kind(name) if os.path.exists(name) else Path(name).suffix.lower()] += 1
        if name.lower().endswith((*TABLES, *SHARDS)):
            shards.append(name)
    counts: Counter[str] = Counter()
    for suffix, count in suffixes.items():
        kind = next((kind for kind in KINDS if suffix in _suffixes(kind)), "")
        if kind:
            counts[kind] += count
    if counts:
        return counts.most_common(1)[0][0]
    if shards:
        one = next((name for name in shards if split_in_name(name) == "train"), shards[0])
        pattern = os.path.join(path, f"*{Path(one).suffix}")
        raise ValueError(
            f"{path}: holds {len(shards):,} tables or shards and no plain files: name one, as {one}, or all, "
            f"by a pattern as {pattern!r}"
        )
    known = ", ".join(f"{s or 'no suffix'} ({n:,})" for s, n in suffixes.most_common(5)) or "no files"
    raise ValueError(f"{path}: holds {known}, which no modality reads: say which is meant, as --as image")


def _suffixes(kind: str) -> tuple[str, ...]:
    cls: type[Modality] = registry.resolve(kind, "modalities")
    return cls.suffixes


def _listed(place: str) -> list[str]:
    """Return the paths that a text lists, a path on each line; none where its first line is no file."""
    with open(place, encoding="utf-8", errors="replace") as file:
        lines = [line.split("\t")[0].strip() for line in islice(file, LOOKED_AT)]
    first = next((line for line in lines if line), "")
    beside = os.path.join(os.path.dirname(place), first)
    return (
        [line for line in lines if line]
        if first and (os.path.isfile(first) or os.path.isfile(beside))
        else []
    )


def _of_columns(place: str) -> str:
    """Return the modality of a table's rows: of the files or texts that it holds, or the cells themselves."""
    table = open_table(place)
    for kind in ("image", "audio", "video"):
        column = pick_column(list(table.columns), file_columns(kind), required=False)
        cell = _first(table.cells(column)) if column else None
        if isinstance(cell, Mapping):  # as data sets of Hugging Face hold files
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes) or (
            isinstance(cell, str) and Path(cell).suffix.lower() in _suffixes(kind)
        ):
            return kind
    text: type[Modality] = registry.resolve("text", "modalities")
    column = pick_column(list(table.columns), text.columns, required=False)
    if not column:
        return "tabular"
    cells = [cell for cell in table.cells(column)[:1000].tolist() if cell is not None]
    if any(not isinstance(cell, str) for cell in cells):
        return "text"  # conversations
    usual = sorted(map(len, cells))[len(cells) // 2] if cells else 0
    beside = [
        name for name in table.columns if name != column and name.lower() not in (*LABELS, "split", "id")
    ]
    return "text" if usual >= LONG or not beside else "tabular"


def _first(cells: Any) -> Any:
    return next((cell for cell in cells.tolist() if cell is not None), None)
