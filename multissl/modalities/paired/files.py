"""Where pairs come from: members of one key in tar shards or a folder, rows of a table, parquet or JSON lines.

`read_pairs` lists a source once: for every stream a sequence of payloads, a path, a `Slice`, bytes, a text or a mapping
of cells, None where a row has none. A table holds a column that is called like the stream, or as its modality's columns
usually are; a stream of rows of cells takes what is left. Tar shards and folders: see `keys`.
State: none but what was read; texts are held in memory, other payloads stay where they are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from multissl.modalities.paired.keys import archive_members, folder_members, keyed
from multissl.modalities.paired.parts import (
    Options,
    Pairs,
    cell_of,
    cells_of,
    group_of,
    joined,
    label_of,
    made,
    rows_with_values,
    texts_of_cell,
)
from multissl.modalities.tabular.tables import table_of
from multissl.sources.archives import ARCHIVES, archive_suffix
from multissl.sources.columns import objects
from multissl.sources.missing import is_missing
from multissl.sources.names import file_columns, find_test_file, named_files, split_in_name
from multissl.sources.parquet import ParquetRows
from multissl.sources.reading import check_regular, file_errors, parquet_file
from multissl.sources.remote import local_place
from multissl.sources.rows import Rows
from multissl.sources.tables import TABLES, OpenTable, open_table, pick, table_suffix

FILES = (*ARCHIVES, *TABLES, ".txt")


def read_pairs(path: str, options: Options) -> Pairs:
    """Return all rows of what `path` names: a folder, a file or a pattern of files of one kind."""
    place = local_place(path)
    if os.path.isdir(place):
        return keyed(folder_members(place), options)
    files = [place, *find_test_file(place)] if os.path.exists(place) else []
    files = files or named_files(place)
    if not files:
        raise ValueError(
            "no such file or folder; give a folder, tar or parquet shards, a .csv or .jsonl file"
        )
    found = []
    for file in files:
        check_regular(file)
        suffix = archive_suffix(file) or table_suffix(file)
        if suffix not in FILES:
            raise ValueError(f"{file} is no source of pairs; known: a folder, {', '.join(FILES)}")
        if suffix in ARCHIVES:
            pairs = keyed(archive_members(file), options)
        elif suffix in (".parquet", ".pq") and not file.lower().endswith(".gz"):
            pairs = parquet_rows(file, options)
        else:
            table = open_table(file, delimiter=options.delimiter, missing=options.missing)
            if any(want.form == "cells" for want in options.streams.values()):
                _read_cells(table, options)
            pairs = table_rows(file, table.rows(), list(table.columns), options)
        word = split_in_name(file) if len(files) > 1 or suffix in ARCHIVES else ""
        found.append(pairs if any(pairs.tags) or not word else pairs._replace(tags=[word] * len(pairs.tags)))
    return joined(found)


def _read_cells(table: OpenTable, options: Options) -> None:
    """Read the columns that no file, text, label or group is in as the tabular modality reads a table of its own."""
    known = list(table.columns)
    away = {*_columns_of_streams(options, known).values(), label_of(options, known), group_of(options, known)}
    own = {
        name: column for name, column in table.columns.items() if name not in {*away, "split", *options.only}
    }
    for name, column in table_of(replace(table, columns=own)).columns.items():
        table.columns[name] = objects([None if is_missing(cell) else cell for cell in column.tolist()])


def _columns_of_streams(options: Options, known: list[str]) -> dict[str, str]:
    """Return the column of every stream, "" where the table has none; cells have no column of their own."""
    column_of: dict[str, str] = {}
    for stream, want in options.streams.items():
        columns = (
            []
            if want.form == "cells"
            else [*want.columns, *(file_columns(stream) if want.form == "file" else ())]
        )
        # a column named for a stream may feed another too: a film has sound and frames
        usual = [pick(known, (name,)) for name in columns]
        free = [c for c in usual if c and (c not in column_of.values() or len(want.columns) == 1)]
        nested = [c for c in want.columns if "." in c and c.partition(".")[0] in known]
        column_of[stream] = next(iter((*free, *nested)), "")
    return column_of


def table_rows(path: str, rows: Rows, known: list[str], options: Options) -> Pairs:
    """Return the pairs of rows that are held in memory; files are named relative to the table."""
    column_of, root = _columns_of_streams(options, known), os.path.dirname(os.path.abspath(path))
    found = [_row(r, column_of, root, options) if isinstance(r, dict) else {} for r in rows]
    return made(found, rows, options, f"columns {', '.join(known)}")


def _row(row: dict[str, Any], column_of: dict[str, str], root: str, options: Options) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for stream, want in options.streams.items():
        value = cell_of(row, column_of[stream])
        if want.form == "cells":
            value = cells_of(row, column_of, options)
        elif want.form == "text":
            value = texts_of_cell(value, options)
        elif is_missing(value):
            value = None
        elif want.form == "file" and isinstance(value, str):
            value = os.path.join(root, value)
        made[stream] = value
    return made


def parquet_rows(path: str, options: Options) -> Pairs:
    """Return the pairs of a parquet table: files stay in it and are read by row group, all else is held in memory."""
    file = parquet_file(path)
    known = file.schema_arrow.names
    column_of = _columns_of_streams(options, known)
    files = {column_of[s]: s for s, w in options.streams.items() if w.form == "file" and column_of[s]}
    with file_errors(path, "parquet"):
        table = file.read([c for c in known if c not in files]).to_pylist()
    if not known or not (table or file.metadata.num_rows):
        raise ValueError("the table holds no rows")
    table = table or [{} for _ in range(file.metadata.num_rows)]
    counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    for row in table:
        row.update(dict.fromkeys(files))
    found = f"columns {', '.join(known)}"
    pairs = made([_row(r, column_of, "", options) for r in table], table, options, found, keep_all=True)
    parts, has = dict(pairs.parts), dict(pairs.has)
    for column, stream in files.items():
        parts[stream] = ParquetRows(path, column, counts)
        has[stream] = _filled(file, column, parts[stream])
    return rows_with_values(pairs._replace(parts=parts, has=has), table, options)


def _filled(file: Any, column: str, cells: Sequence[Any]) -> np.ndarray:
    """Return which cells of a column hold anything; they are read only where the file's statistics leave it open."""
    full = False
    for place in range(file.metadata.num_columns):
        chunks = [file.metadata.row_group(i).column(place) for i in range(file.num_row_groups)]
        if chunks and chunks[0].path_in_schema.split(".")[0] == column:
            counts = [c.statistics.null_count if c.statistics else None for c in chunks]
            full = full or all(n == 0 for n in counts)
    if full:
        return np.ones(len(cells), dtype=bool)
    return np.array([bool(cells[i]) for i in range(len(cells))], dtype=bool)
