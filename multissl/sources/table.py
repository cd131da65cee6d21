"""A list or table that names one file per row: .txt, .csv, .jsonl, .xlsx and others; names are relative to the list.

A list holds one name per line, and lines that start with # are comments. A table, which `tables` opens, holds the names
in a column called like the kind of sample (`image`), or `path` or `file`, or in a column that an option names; columns
`label`, `split` and `group` are used where they exist.  State: none.
"""

from __future__ import annotations

import io
import os
from typing import Any

from multissl.sources.base import FileSource, Listing, Request, label_of
from multissl.sources.encodings import decode_text
from multissl.sources.names import LABELS, SPLIT_WORDS, file_columns, pick_column
from multissl.sources.payloads import Paths
from multissl.sources.reading import unpacked
from multissl.sources.tables import TABLES, OpenTable, open_table, table_suffix


class TableSource(FileSource):
    """The files that a list or a table names."""

    suffixes = (".txt", *(suffix for suffix in TABLES if suffix not in (".parquet", ".pq")))

    def matches(self, path: str) -> bool:
        """Return whether the path is a list or a table, also one packed by gzip."""
        return os.path.exists(path) and not os.path.isdir(path) and table_suffix(path) in self.suffixes

    def list_samples(self, request: Request) -> Listing:
        """List the named files; whether they exist is seen when they are read."""
        root = os.path.dirname(os.path.abspath(request.path))
        if table_suffix(request.path) == ".txt":
            # names may hold what Unicode calls the end of a line
            lines = io.StringIO(decode_text(unpacked(request.path)).removeprefix("\ufeff"), newline=None)
            names = [name for line in lines if (name := line.strip()) and not name.startswith("#")]
            if not names:
                raise ValueError(f"the list names no {request.plural}")
            return Listing(Paths(root, names), [""] * len(names), [""] * len(names))
        return _listing(request, root)


def _listing(request: Request, root: str) -> Listing:
    """Return the samples of a table; rows that name no file are left out, which is said."""
    options = request.table
    table = open_table(request.path, delimiter=options.delimiter, missing=options.missing)
    column = table.pick((), options.column) if options.column else ""
    column = column or pick_column(list(table.columns), file_columns(request.kind))
    names = table.cells(column).tolist()
    rows = [row for row, name in enumerate(names) if isinstance(name, str)]
    if not rows:
        raise ValueError(f"the list names no {request.plural}")
    left_out: dict[str, int] = {}
    if len(rows) < len(names):
        first = next((f" ({reason})" for reason in table.broken.values()), "")
        left_out[f"without a name in {column!r}{first}"] = len(names) - len(rows)
    label = table.pick(LABELS, options.label)
    labels = [label_of(cell) for cell in _cells(table, label, rows)]
    splits = [SPLIT_WORDS.get(str(word).lower(), "") for word in _cells(table, table.pick(("split",)), rows)]
    group = table.pick(("group",))
    groups = [None if v is None else str(v) for v in _cells(table, group, rows)] if group else None
    files = Paths(root, [names[row] for row in rows])
    return Listing(files, labels, splits, groups, left_out=left_out, unit="rows")


def _cells(table: OpenTable, column: str, rows: list[int]) -> list[Any]:
    """Return the cells of some rows of a column, None for each where there is no column."""
    cells = table.cells(column).tolist() if column else []
    return [cells[row] for row in rows] if column else [None] * len(rows)
