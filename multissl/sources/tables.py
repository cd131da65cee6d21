"""The one opener of tables: csv and its kin, parquet, feather, JSON lines and arrays, xlsx, each also packed by gzip.

Every modality that meets a table opens it here, so that the same table gives the same cells in any format. Cells
keep the type they are written with: text in csv, numbers where a format has them. What they mean is the modality's
part.
Shapes: S rows.  State: what was said.
"""

from __future__ import annotations

import datetime
import logging
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multissl import registry
from multissl.limits import COLUMNS, check_unpacked
from multissl.sources.columns import objects
from multissl.sources.delimited import LONGEST, UNNAMED, delimiter_of, read_delimited
from multissl.sources.json_tables import json_lines, json_table
from multissl.sources.missing import MISSING, is_missing, missing_words
from multissl.sources.names import normal_name
from multissl.sources.reading import check_regular, file_errors, first_line, parquet_file, unpacked
from multissl.sources.rows import Bad, Rows

DELIMITED = (".csv", ".tsv", ".tab", ".psv")
LINES = (".jsonl", ".ndjson")
COLUMNAR = (".parquet", ".pq", ".feather", ".arrow")
SHEETS = (".xlsx", ".xlsm")
TABLES = (*DELIMITED, *COLUMNAR, *LINES, ".json", *SHEETS)
"""Suffixes of tables, each also followed by .gz."""
log = logging.getLogger("multissl")
_said: set[tuple[str, str]] = set()
"""What was noted of which table in this process, so that it is said once."""


@dataclass(slots=True)
class OpenTable:
    """A table by column, cells as they are written, and what is known of its rows."""

    columns: dict[str, Any]
    """Objects [S], None where missing, or an arrow array [S]."""
    broken: dict[int, str] = field(default_factory=dict)
    """Rows that cannot be read, and why; their cells are missing."""
    notes: list[str] = field(default_factory=list)
    delimiter: str = ""
    """What parts its columns, "" where that is settled by the format."""
    words: frozenset[str] = MISSING
    """What stands for missing cells."""
    cleaned: bool = False
    """Whether these are None in its columns already."""
    name: str = ""
    """The file that it was read from, for what is said of it."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def cells(self, name: str) -> np.ndarray:
        """Return the cells of a column, objects [S], None where missing; `data.text` is the entry of a nested one."""
        head, below = _path_of(name, self.columns)
        column = self.columns[head]
        cells = column.tolist() if isinstance(column, np.ndarray) else arrow_cells(column)
        for key in below:
            cells = [cell.get(key) if isinstance(cell, dict) else None for cell in cells]
        return objects([None if is_missing(cell, self.words) else cell for cell in cells])

    def rows(self, names: Iterable[str] | None = None) -> Rows:
        """Return all rows by column, of some columns where they are named."""
        names = list(self.columns) if names is None else list(names)
        columns = [self.cells(name).tolist() for name in names]
        rows: Rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        for row, reason in self.broken.items():
            rows[row] = Bad(reason)
        return rows

    def pick(self, candidates: Sequence[str], option: str = "") -> str:
        """Return the column that an option names, or else the first usual one that is there, "" for none.

        Raises a ValueError where the option names none; upper and lower case are alike.
        """
        return pick(self.columns, candidates, option)


def open_table(
    path: str | os.PathLike[str], *, delimiter: str = "", missing: Iterable[str] = (), longest: int = LONGEST
) -> OpenTable:
    """Return the table of a file; raise a ValueError of one line where it cannot be read.

    `delimiter` "" is found in the file; `missing` are more words for missing cells; `longest` cells are refused.
    """
    place, words = os.fspath(path), missing_words(missing)
    suffix = table_suffix(place)
    check_regular(place)
    if suffix in LINES:
        table = _of_rows(json_lines(place), words)
    elif suffix == ".json":
        table = _of_rows(json_table(place), words)
    elif suffix in SHEETS:
        table = _of_sheet(place, words)
    elif suffix in COLUMNAR:
        table = _of_arrow(_columnar(place, suffix), words)
    else:
        written = read_delimited(place, delimiter_of(delimiter), words, longest)
        table = OpenTable(
            written.columns, written.broken, written.notes, written.delimiter, words, cleaned=True
        )
    COLUMNS.check(len(table.columns), "it has")
    _without_index(table)
    table.name = place
    for note in table.notes:
        say_once(place, f"{Path(place).name}: {note}")
    return table


def say_once(place: str, text: str) -> None:
    """Log what should be known of a table, once in a process; a table is read by several parts of a run."""
    if (place, text) not in _said:
        log.warning("%s", text)
    _said.add((place, text))


def table_suffix(path: str) -> str:
    """Return the suffix of a file in lower case, of a packed table the one below .gz."""
    stem, suffix = os.path.splitext(path.lower())
    below = os.path.splitext(stem)[1] if suffix == ".gz" else ""
    return below if below in (*TABLES, ".txt") else suffix


def pick(columns: Iterable[str], candidates: Sequence[str], option: str = "") -> str:
    """Return the column that an option names, or the first usual one that is there, "" for none."""
    known = list(columns)
    if option:
        head, _ = _path_of(option, known)
        if head in known:
            return option
        near = {normal_name(name): name for name in reversed(known)}
        if normal_name(option) in near:
            return near[normal_name(option)]
        raise ValueError(f"there is no column {option!r}, only {', '.join(known) or 'none'}")
    names = {normal_name(name): name for name in reversed(known)}
    return next((names[normal_name(name)] for name in candidates if normal_name(name) in names), "")


def _path_of(name: str, columns: Iterable[str]) -> tuple[str, list[str]]:
    """Return the column that a name means and the entries below it: `data.text` is `text` in cells of `data`."""
    known = set(columns)
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        head = ".".join(parts[:count])
        if head in known:
            return head, parts[count:]
    return name, []


def _of_rows(rows: Rows, words: frozenset[str]) -> OpenTable:
    """Return a table of rows as JSON holds them."""
    names = dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row)
    cells = {name: objects([r.get(name) if isinstance(r, dict) else None for r in rows]) for name in names}
    broken = {place: row.reason for place, row in enumerate(rows) if isinstance(row, Bad)}
    if not cells and broken:
        raise ValueError(f"none of its rows can be read; the first: {broken[0]}")
    return OpenTable(cells, broken, words=words)


def arrow_cells(column: Any) -> list[Any]:
    """Return the cells of an arrow array; raise a ValueError where they are times that Python cannot hold."""
    try:
        return column.to_pylist()
    except (OverflowError, ValueError) as error:
        raise ValueError(
            f"a column of {column.type} holds what is no time of the years 1 to 9999 ({first_line(error)}): "
            "write it as a number or as text"
        ) from None


def _columnar(path: str, suffix: str) -> Any:
    arrow, packed = registry.require("pyarrow"), path.lower().endswith(".gz")
    if suffix in (".feather", ".arrow"):
        with file_errors(path, "feather"):
            source = arrow.BufferReader(unpacked(path)) if packed else path
            return registry.require("pyarrow.feather").read_table(source)
    if packed:
        with file_errors(path, "parquet"):
            return registry.require("pyarrow.parquet").read_table(arrow.BufferReader(unpacked(path)))
    file = parquet_file(path)
    with file_errors(path, "parquet"):
        return file.read()


def _of_arrow(table: Any, words: frozenset[str]) -> OpenTable:
    names = [str(name) for name in table.column_names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two columns are called {twice[0]!r}: rename one, the header names it twice")
    return OpenTable(dict(zip(names, table.columns, strict=True)), words=words)


def _of_sheet(path: str, words: frozenset[str]) -> OpenTable:
    """Return the first sheet of a workbook, its first row being the header."""
    openpyxl = registry.require("openpyxl")
    with file_errors(path, "xlsx"), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for member in members:
        check_unpacked(member.compress_size, member.file_size, f"{member.filename} of {path}")
    rows = _sheet_rows(path, openpyxl, data_only=True)
    if any(None in row for row in rows):
        _check_calculated(path, _sheet_rows(path, openpyxl, data_only=False), rows)
    header = [None if cell is None else str(cell).strip() for cell in (rows[0] if rows else ())]
    header += [None] * (max(map(len, rows), default=0) - len(header))
    columns: dict[str, Any] = {}
    for place, name in enumerate(header):
        cells = [row[place] if place < len(row) else None for row in rows[1:]]
        if name is None and place and any(cell is not None for cell in cells):
            raise ValueError(f"column {place + 1} has no name: the first line must name all columns")
        if name is not None and name in columns:
            raise ValueError(f"two columns are called {name!r}: rename one, the header names it twice")
        if name is not None or not place:
            columns[name or ""] = objects([_midnight(cell) for cell in cells])
    return OpenTable(columns, words=words)


def _sheet_rows(path: str, openpyxl: Any, *, data_only: bool) -> list[tuple[Any, ...]]:
    """Return the rows of the first sheet that are not empty: formulas, or with `data_only` what they came to."""
    with file_errors(path, "xlsx"):
        book = openpyxl.load_workbook(path, read_only=True, data_only=data_only)
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # or every row would be as wide as the farthest cell
        rows = [row for row in sheet.iter_rows(values_only=True) if any(cell is not None for cell in row)]
        book.close()
    return rows


def _check_calculated(path: str, written: Sequence[Sequence[Any]], values: Sequence[Sequence[Any]]) -> None:
    """Raise a ValueError where a sheet holds formulas without their values, as programs write them."""
    formulas = sum(isinstance(cell, str) and cell.startswith("=") for row in written for cell in row)
    known = sum(cell is not None for row in values for cell in row)
    missing = sum(cell is not None for row in written for cell in row) - known
    if formulas and missing:
        raise ValueError(
            f"{missing:,} cells of {Path(path).name} are formulas that nobody has calculated: open it in a "
            "spreadsheet and save it, or save it as .csv"
        )


def _midnight(cell: Any) -> Any:
    """Return a cell of a sheet; a time of the day stays what it is as text."""
    return cell.isoformat() if isinstance(cell, datetime.time) else cell


def _without_index(table: OpenTable) -> None:
    """Leave out an index that another program wrote as a column."""
    for name in [name for name in table.columns if name.startswith("__index_level_")]:
        table.columns.pop(name)
        table.notes.append(f"column {name!r} is an index and is left out")
    first = next(iter(table.columns), "x")
    if len(table.columns) > 1 and UNNAMED.fullmatch(first):
        table.columns.pop(first)
        table.notes.append("its first column has no name: it is an index and is left out")
