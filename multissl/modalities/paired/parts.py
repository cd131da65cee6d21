"""What a source of pairs gives: for every stream a sequence of payloads, and what is known of each row.

Shapes: n rows of a source.  State: none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np

from multissl.registry import suggest
from multissl.sources.base import Label
from multissl.sources.json_tables import chat
from multissl.sources.missing import is_missing, missing_words
from multissl.sources.names import LABELS, SPLIT_WORDS
from multissl.sources.payloads import Joined, Some
from multissl.sources.rows import Bad
from multissl.sources.tables import pick


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
    delimiter: str = ""
    missing: tuple[str, ...] = ()


class Pairs(NamedTuple):
    """The rows of a source."""

    parts: dict[str, Sequence[Any]]
    labels: list[Label]
    groups: list[Label]
    tags: list[str]
    """train, val, test or nothing"""
    has: dict[str, np.ndarray]
    """bool [rows]: which rows have a payload of the stream."""
    bad: np.ndarray
    """bool [rows]: which rows cannot be read, a payload of theirs being `Bad`."""
    found: str
    """Columns or file types that were there, for messages."""
    left_out: Mapping[str, int] = MappingProxyType({})
    """How many files are in no row, or are nothing that a stream reads, by suffix."""


def joined(found: Sequence[Pairs]) -> Pairs:
    """The rows of several sources, one after the other."""
    return Pairs(
        {s: Joined([p.parts[s] for p in found]) for s in found[0].parts},
        [v for p in found for v in p.labels],
        [v for p in found for v in p.groups],
        [v for p in found for v in p.tags],
        {s: np.concatenate([p.has[s] for p in found]) for s in found[0].has},
        np.concatenate([p.bad for p in found]),
        "; ".join(dict.fromkeys(p.found for p in found)),
        sum((Counter(p.left_out) for p in found), Counter()),
    )


def made(
    rows: list[dict[str, Any]], records: Sequence[Any], options: Options, found: str, folders: Sequence[Label] = (),
    tags: Sequence[str] = (), keep_all: bool = False,
) -> Pairs:  # fmt: skip
    """Pairs from rows of payloads and the fields of each, its columns or `Bad`."""
    fields = [t if isinstance(t, dict) else {} for t in records]
    known = [*dict.fromkeys(k for f in fields for k in f)]
    for option, name in (
        ("label", options.label),
        ("group", options.group),
        *(("only", n) for n in options.only),
    ):
        if name and name not in known:
            raise ValueError(f"modality.{option}: there is no column {name!r}{suggest(name, known)}")
    label, group = label_of(options, known), group_of(options, known)
    labels = [_value(f.get(label)) for f in fields] if label else list(folders) or [None] * len(rows)
    groups: list[Label] = [_value(f.get(group)) if group else None for f in fields]
    said = [SPLIT_WORDS.get(str(f.get("split") or "").lower(), "") for f in fields]
    parts: dict[str, Sequence[Any]] = {}
    for stream in options.streams:
        parts[stream] = [
            t if isinstance(t, Bad) else row.get(stream) for row, t in zip(rows, records, strict=True)
        ]
    bad = np.array(
        [any(isinstance(v, Bad) for v in row) for row in zip(*parts.values(), strict=True)], dtype=bool
    )
    has = {s: np.array([v is not None for v in column], dtype=bool) & ~bad for s, column in parts.items()}
    pairs = Pairs(parts, labels, groups, said if any(said) else list(tags) or said, has, bad, found)
    return pairs if keep_all else rows_with_values(pairs, records, options)


def label_of(options: Options, known: Collection[str]) -> str:
    """The column that holds the class, or nothing."""
    return options.label or pick(known, LABELS)


def group_of(options: Options, known: Collection[str]) -> str:
    """The column that holds the group, or nothing."""
    return options.group or pick(known, ("group",))


def rows_with_values(pairs: Pairs, records: Sequence[Any], options: Options) -> Pairs:
    """The rows that have the values asked for."""
    if not options.only:
        return pairs
    keep = [
        i
        for i, row in enumerate(records)
        if isinstance(row, dict) and all(str(row.get(c)) == v for c, v in options.only.items())
    ]
    if not keep:
        wanted = ", ".join(f"{c}={v}" for c, v in options.only.items())
        raise ValueError(f"modality.only: no row has {wanted}")
    return rows_of(pairs, keep)


def rows_of(pairs: Pairs, keep: Sequence[int]) -> Pairs:
    """Some of the rows, any of them several times."""
    return Pairs(
        {s: Some(column, keep) for s, column in pairs.parts.items()},
        [pairs.labels[i] for i in keep],
        [pairs.groups[i] for i in keep],
        [pairs.tags[i] for i in keep],
        {s: flags[keep] for s, flags in pairs.has.items()},
        pairs.bad[keep],
        pairs.found,
        pairs.left_out,
    )


def one_text_per_row(pairs: Pairs, streams: Sequence[str]) -> tuple[Pairs, Sequence[int]]:
    """A row for each text where a cell of `streams` holds several, and the row that each comes of.

    Cells of one row go together, text by text; the shorter ones are repeated.
    """
    listed = {
        s: {i: texts_of(v) for i, v in enumerate(pairs.parts[s]) if isinstance(v, list)} for s in streams
    }
    if not any(listed.values()):
        return pairs, range(len(pairs.tags))
    times = [max(1, *(len(cells.get(i, ())) for cells in listed.values())) for i in range(len(pairs.tags))]
    origin = [i for i, count in enumerate(times) for _ in range(count)]
    turns = [turn for count in times for turn in range(count)]
    repeated = rows_of(pairs, origin)
    for stream, cells in listed.items():
        column = [
            (cells[i][turn % len(cells[i])] if cells[i] else None) if i in cells else pairs.parts[stream][i]
            for i, turn in zip(origin, turns, strict=True)
        ]
        repeated.parts[stream] = column
        repeated.has[stream] = repeated.has[stream] & np.array([v is not None for v in column], dtype=bool)
    return repeated, origin


def cell_of(row: Mapping[str, Any], column: str) -> Any:
    """Return the cell of a column, or the entry of a nested one that `data.text` means; None where there is none."""
    if column in row or "." not in column:
        return row.get(column)
    value: Any = row
    for key in column.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def texts_of_cell(cell: Any, options: Options) -> Any:
    """Return the text or the texts of a cell, None for what says only that it is missing.

    Of a conversation the answers are its text.
    """
    words = missing_words(options.missing)
    answers = chat(cell, answers=True)
    if answers is not None:
        cell = answers
    if isinstance(cell, list):
        return [text for text in cell if not is_missing(text, words)] or None
    return None if is_missing(cell, words) else cell


def texts_of(cell: list[Any]) -> list[str]:
    """The texts of a cell."""
    return [t for t in cell if isinstance(t, str) and t.strip()]


def _value(value: Any) -> Label:
    return (
        None
        if is_missing(value) or isinstance(value, list | dict)
        else cast(Label, value if isinstance(value, int) else str(value))
    )


def cells_of(row: dict[str, Any], column_of: dict[str, str], options: Options) -> dict[str, Any]:
    """The cells of a row: what no other stream takes and what is no label, group or split."""
    away = {*column_of.values(), label_of(options, row), group_of(options, row), "split", *options.only}
    return {k: v for k, v in row.items() if k not in away and not isinstance(v, dict | list | bytes)}
