"""Where pairs come from: members of one key in tar shards or a folder, rows of a table, parquet or JSON lines.

`read_pairs` lists a source once: for every stream a sequence of payloads, a path, a `Slice`, bytes, a text or a mapping
of cells, None where a row has none. A tar or folder holds `key.jpg`, `key.txt`, `key.json`; what is called
`key.STREAM.jpg` belongs to that stream. A table holds a column that is called like the stream, or as its modality's
columns usually are. The fields of a JSON member serve as columns. A stream of rows of cells takes what is left.
State: none but what was read; texts are held in memory, other payloads stay where they are.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from multissl import registry
from multissl.modalities.readers import LABELS, PATHS, WORDS, Joined, Label, Rows, Slice, class_folders
from multissl.modalities.sources import _braces, _test_file, _walk
from multissl.registry import suggest

TABLES, LINES = (".csv", ".tsv"), (".jsonl", ".ndjson")
FILES = (".tar", ".parquet", *TABLES, *LINES)


class Wanted(NamedTuple):
    """How the payloads of a stream are known."""

    kind: str
    """Its modality, for messages."""
    suffixes: tuple[str, ...]
    columns: tuple[str, ...]
    """The columns looked for, the first that there is counts."""
    form: str
    """file | text: the column or file is the text | cells: a mapping of all columns that no other stream takes."""


class Options(NamedTuple):
    """What is wanted of a source."""

    streams: dict[str, Wanted]
    label: str = ""
    group: str = ""
    only: Mapping[str, str] = {}
    """Rows are kept whose column has this value."""


class Bad(NamedTuple):
    """What stands in a row that cannot be read."""

    reason: str


class Pairs(NamedTuple):
    """The rows of a source."""

    parts: dict[str, Sequence[Any]]
    labels: list[Label]
    groups: list[Label]
    tags: list[str]
    """train, val, test or nothing"""
    has: dict[str, np.ndarray]
    """bool [rows]: which rows have a payload of the stream."""
    found: str
    """Columns or file types that were there, for messages."""


def read_pairs(path: str, options: Options) -> Pairs:
    """All rows of what `path` names: a folder, a file or a pattern of files of one kind."""
    place = os.path.expanduser(path)
    if os.path.isdir(place):
        return _keyed(_folder(place), options)
    files = [place, *_test_file(place)] if os.path.isfile(place) else []
    files = files or sorted(p for part in _braces(place) for p in glob.glob(part))
    if not files:
        raise ValueError(
            "no such file or folder; give a folder, tar or parquet shards, a .csv or .jsonl file"
        )
    found = []
    for file in files:
        suffix = Path(file).suffix.lower()
        if suffix not in FILES:
            raise ValueError(f"{file} is no source of pairs; known: a folder, {', '.join(FILES)}")
        if suffix == ".tar":
            pairs = _keyed(_tar(file), options)
        elif suffix == ".parquet":
            pairs = _parquet(file, options)
        else:
            pairs = _rows(file, *(_csv(file) if suffix in TABLES else _lines(file)), options)
        words = re.split(r"[^a-z0-9]+", Path(file).stem.lower())
        word = next((WORDS[w] for w in words if w in WORDS), "") if len(files) > 1 or suffix == ".tar" else ""
        found.append(pairs if any(pairs.tags) or not word else pairs._replace(tags=[word] * len(pairs.tags)))
    return joined(found)


def joined(found: Sequence[Pairs]) -> Pairs:
    """The rows of several sources, one after the other."""
    return Pairs(
        {s: Joined([p.parts[s] for p in found]) for s in found[0].parts},
        [v for p in found for v in p.labels],
        [v for p in found for v in p.groups],
        [v for p in found for v in p.tags],
        {s: np.concatenate([p.has[s] for p in found]) for s in found[0].has},
        "; ".join(dict.fromkeys(p.found for p in found)),
    )


# -------------------------------------------------------------------------------- members of one key


class Member(NamedTuple):
    """A file of a tar or folder."""

    name: str
    data: Any
    read: Callable[[], bytes]


def _tar(path: str) -> Iterator[Member]:
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile():
                    found = Slice(path, member.offset_data, member.size, member.name)
                    yield Member(member.name.removeprefix("./"), found, found.read)
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no plain tar ({error}); unpack or repeat the download") from None


def _folder(root: str) -> Iterator[Member]:
    for name in sorted(_walk(root)):
        path = Path(root, name)
        yield Member(name.replace(os.sep, "/"), str(path), path.read_bytes)


def _keyed(members: Iterator[Member], options: Options) -> Pairs:
    """A row for each key, the name up to its first dot."""
    keys: dict[str, dict[str, Member]] = {}
    for member in members:
        folder, _, base = member.name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if stem and dot:
            keys.setdefault(f"{folder}/{stem}".lstrip("/"), {})[f".{suffix.lower()}"] = member
    rows: list[dict[str, Any]] = []
    fields: list[dict[str, Any] | Bad] = []
    for key, found in keys.items():
        told = _fields(found)
        fields.append(told)
        rows.append({} if isinstance(told, Bad) else _payloads(key, found, told, options))
    kinds = Counter(suffix for found in keys.values() for suffix in found)
    folders = [key.split("/") for key in keys]
    tags = [WORDS.get(f[0].lower(), "") if len(f) > 1 else "" for f in folders]
    classes = class_folders([f[1:] for f in folders] if "" not in tags else folders)
    found = ", ".join(s for s, _ in kinds.most_common(8)) or "nothing"
    return _made(rows, fields, options, found, classes, tags if "" not in tags else [""] * len(tags))


def _fields(found: dict[str, Member]) -> dict[str, Any] | Bad:
    """What the .json and .cls members of a key say."""
    told: dict[str, Any] = {}
    if ".cls" in found:
        told["label"] = found[".cls"].read().decode(errors="replace").strip()
    if ".json" in found:
        try:
            given = json.loads(found[".json"].read())
        except ValueError as error:
            return Bad(f"{found['.json'].name} is no JSON ({error})")
        if not isinstance(given, dict):
            return Bad(f"{found['.json'].name} is no JSON object")
        told |= given
    return told


def _payloads(key: str, found: dict[str, Member], told: dict[str, Any], options: Options) -> dict[str, Any]:
    """The payloads of a key by stream."""
    row: dict[str, Any] = {}
    taken: dict[str, str] = {}
    for stream, want in options.streams.items():
        own = [f".{stream}{suffix}" for suffix in want.suffixes]
        suffix = next((s for s in (*own, *want.suffixes) if s in found), "")
        if want.form == "cells":
            row[stream] = _cells(told, {}, options) or None
        elif suffix:
            twin = next((s for s, used in taken.items() if used == suffix), "")
            if twin and options.streams[twin].kind == want.kind:
                raise ValueError(
                    f"{twin} and {stream} are both {want.kind}, and {key}{suffix} would be both: call the files "
                    f"{key}.{twin}{suffix} and {key}.{stream}{suffix}"
                )
            taken[stream] = suffix
            row[stream] = _text(found[suffix]) if want.form == "text" else found[suffix].data
        elif column := next((c for c in want.columns if c in told), ""):
            row[stream] = told[column] or None
    return row


def _text(member: Member) -> str | Bad | None:
    try:
        return member.read().decode("utf-8-sig").strip() or None
    except UnicodeDecodeError as error:
        return Bad(f"{member.name} is no UTF-8 text (byte {error.start})")


# ------------------------------------------------------------------------------------ rows of a table


def _csv(path: str) -> tuple[list[dict[str, Any] | Bad], list[str]]:
    csv.field_size_limit(1 << 30)
    rows: list[dict[str, Any] | Bad] = []
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as f:
        reader = csv.reader(f, delimiter="\t" if path.lower().endswith(".tsv") else ",")
        known = next(reader, [])
        for cells in reader:
            line = f"line {reader.line_num} of {Path(path).name}"
            if any(0xDC80 <= ord(c) <= 0xDCFF for cell in cells for c in cell):
                rows.append(Bad(f"{line} is no UTF-8 text"))
            elif cells and len(cells) != len(known):
                rows.append(Bad(f"{line} has {len(cells)} cells, the header {len(known)}"))
            elif cells:
                rows.append(dict(zip(known, cells, strict=True)))
    return rows, known


def _lines(path: str) -> tuple[list[dict[str, Any] | Bad], list[str]]:
    rows: list[dict[str, Any] | Bad] = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                row = Bad(f"line {number} of {Path(path).name} is no JSON ({error})")
            told = isinstance(row, dict | Bad)
            rows.append(row if told else Bad(f"line {number} of {Path(path).name} is no JSON object"))
    return rows, [*dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row)]


def _taken(options: Options, known: list[str]) -> dict[str, str]:
    """The column of every stream, "" where the table has none; cells have no column of their own."""
    taken: dict[str, str] = {}
    for stream, want in options.streams.items():
        columns = [] if want.form == "cells" else [*want.columns, *(PATHS if want.form == "file" else ())]
        taken[stream] = next((c for c in columns if c in known and c not in taken.values()), "")
    return taken


def _rows(path: str, rows: list[dict[str, Any] | Bad], known: list[str], options: Options) -> Pairs:
    """Rows in memory; files are named relative to the table."""
    taken, root = _taken(options, known), os.path.dirname(os.path.abspath(path))
    found = [_row(r, taken, root, options) if isinstance(r, dict) else {} for r in rows]
    return _made(found, rows, options, f"columns {', '.join(known)}")


def _row(row: dict[str, Any], taken: dict[str, str], root: str, options: Options) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for stream, want in options.streams.items():
        value = row.get(taken[stream])
        if want.form == "cells":
            value = _cells(row, taken, options)
        elif isinstance(value, str) and not value.strip():
            value = None
        elif want.form == "file" and isinstance(value, str):
            value = os.path.join(root, value)
        made[stream] = value
    return made


def _cells(row: dict[str, Any], taken: dict[str, str], options: Options) -> dict[str, Any]:
    away = {*taken.values(), _label_of(options, row), _group_of(options, row), "split", *options.only}
    return {k: v for k, v in row.items() if k not in away and not isinstance(v, dict | list | bytes)}


def _parquet(path: str, options: Options) -> Pairs:
    """Files stay in the table and are read by row group, all else is held in memory."""
    file = registry.require("pyarrow.parquet").ParquetFile(path)
    known = file.schema_arrow.names
    taken = _taken(options, known)
    files = {taken[s]: s for s, w in options.streams.items() if w.form == "file" and taken[s]}
    table = file.read([c for c in known if c not in files]).to_pylist()
    if not known or not (table or file.metadata.num_rows):
        raise ValueError("the table holds no rows")
    table = table or [{} for _ in range(file.metadata.num_rows)]
    counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    for row in table:
        row.update(dict.fromkeys(files))
    found = f"columns {', '.join(known)}"
    pairs = _made([_row(r, taken, "", options) for r in table], table, options, found, keep_all=True)
    parts, has = dict(pairs.parts), dict(pairs.has)
    for column, stream in files.items():
        parts[stream] = Rows(path, column, counts)
        has[stream] = _filled(file, column, parts[stream])
    return _only(pairs._replace(parts=parts, has=has), table, options)


def _filled(file: Any, column: str, cells: Sequence[Any]) -> np.ndarray:
    """Which cells of a column hold anything; they are read only where the file's statistics leave it open."""
    full = False
    for place in range(file.metadata.num_columns):
        chunks = [file.metadata.row_group(i).column(place) for i in range(file.num_row_groups)]
        if chunks and chunks[0].path_in_schema.split(".")[0] == column:
            told = [c.statistics.null_count if c.statistics else None for c in chunks]
            full = full or all(n == 0 for n in told)
    if full:
        return np.ones(len(cells), dtype=bool)
    return np.array([bool(cells[i]) for i in range(len(cells))], dtype=bool)


# -------------------------------------------------------------------------------------------- both


class Some(Sequence[Any]):
    """Some items of a sequence."""

    def __init__(self, data: Sequence[Any], rows: Sequence[int] | np.ndarray) -> None:
        self.data, self.rows = data, np.asarray(rows, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.data[int(self.rows[index])]


def _made(
    rows: list[dict[str, Any]], told: Sequence[Any], options: Options, found: str, folders: Sequence[Label] = (),
    tags: Sequence[str] = (), keep_all: bool = False,
) -> Pairs:  # fmt: skip
    """Pairs from rows of payloads and what is `told` of each, its columns or `Bad`."""
    fields = [t if isinstance(t, dict) else {} for t in told]
    known = [*dict.fromkeys(k for f in fields for k in f)]
    for option, name in (
        ("label", options.label),
        ("group", options.group),
        *(("only", n) for n in options.only),
    ):
        if name and name not in known:
            raise ValueError(f"modality.{option}: there is no column {name!r}{suggest(name, known)}")
    label, group = _label_of(options, known), _group_of(options, known)
    labels = [_value(f.get(label)) for f in fields] if label else list(folders) or [None] * len(rows)
    groups: list[Label] = [_value(f.get(group)) if group else None for f in fields]
    said = [WORDS.get(str(f.get("split") or "").lower(), "") for f in fields]
    parts: dict[str, Sequence[Any]] = {}
    for stream in options.streams:
        parts[stream] = [
            t if isinstance(t, Bad) else row.get(stream) for row, t in zip(rows, told, strict=True)
        ]
    has = {s: np.array([v is not None for v in column], dtype=bool) for s, column in parts.items()}
    pairs = Pairs(parts, labels, groups, said if any(said) else list(tags) or said, has, found)
    return pairs if keep_all else _only(pairs, told, options)


def _label_of(options: Options, known: Collection[str]) -> str:
    return options.label or next((c for c in LABELS if c in known), "")


def _group_of(options: Options, known: Collection[str]) -> str:
    return options.group or ("group" if "group" in known else "")


def _only(pairs: Pairs, told: Sequence[Any], options: Options) -> Pairs:
    """The rows that have the values asked for."""
    if not options.only:
        return pairs
    keep = [
        i
        for i, row in enumerate(told)
        if isinstance(row, dict) and all(str(row.get(c)) == v for c, v in options.only.items())
    ]
    if not keep:
        wanted = ", ".join(f"{c}={v}" for c, v in options.only.items())
        raise ValueError(f"modality.only: no row has {wanted}")
    return Pairs(
        {s: Some(column, keep) for s, column in pairs.parts.items()},
        [pairs.labels[i] for i in keep],
        [pairs.groups[i] for i in keep],
        [pairs.tags[i] for i in keep],
        {s: flags[keep] for s, flags in pairs.has.items()},
        pairs.found,
    )


def _value(value: Any) -> Label:
    return (
        None
        if value is None or isinstance(value, list | dict)
        else cast(Label, value if isinstance(value, int) else str(value))
    )
