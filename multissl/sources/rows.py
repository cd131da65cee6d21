"""Rows of tables and of JSON lines that are held in memory, by column; one that cannot be read says why.

State: none.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

from multissl.plain_data import parse_json


class Bad(NamedTuple):
    """What stands in place of a row, document or payload that cannot be read."""

    reason: str


Rows = list[dict[str, Any] | Bad]
"""Cells by column, or why a row has none."""


def csv_rows(path: str, delimiter: str = ",", source: str = "") -> tuple[Rows, list[str]]:
    """Return the rows of a table and its columns; empty lines are left out.

    `source` follows the number of the line in reasons, such as " of a.csv". Bytes that are no UTF-8 spoil the lines
    that hold them and no others.
    """
    csv.field_size_limit(1 << 30)
    rows: Rows = []
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, delimiter=delimiter)
        columns = next(reader, [])
        for cells in reader:
            line = f"line {reader.line_num}{source}"
            if any(0xDC80 <= ord(c) <= 0xDCFF for cell in cells for c in cell):
                rows.append(Bad(f"{line} is no UTF-8 text"))
            elif cells and len(cells) != len(columns):
                rows.append(Bad(f"{line} has {len(cells)} cells, the header {len(columns)}"))
            elif cells:
                rows.append(dict(zip(columns, cells, strict=True)))
    return rows, columns


def json_rows(path: str) -> Rows:
    """Return the objects of a file of JSON lines; empty lines are left out."""
    lines = enumerate(Path(path).read_bytes().splitlines(), start=1)
    return [_json_row(line, f"line {number} of {Path(path).name}") for number, line in lines if line.strip()]


def _json_row(line: bytes, name: str) -> dict[str, Any] | Bad:
    try:
        row = parse_json(line, name)
    except ValueError as error:
        return Bad(str(error))
    return row if isinstance(row, dict) else Bad(f"{name} is no JSON object")
