"""Rows of tables and of JSON lines that are held in memory, by column; one that cannot be read says why.

State: none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from multissl.plain_data import parse_json
from multissl.sources.encodings import decode_text, encoding_of
from multissl.sources.reading import unpacked


class Bad(NamedTuple):
    """What stands in place of a row, document or payload that cannot be read."""

    reason: str


Rows = list[dict[str, Any] | Bad]
"""Cells by column, or why a row has none."""


def json_rows(path: str) -> Rows:
    """Return the objects of a file of JSON lines, also one packed by gzip; empty lines are left out."""
    content = unpacked(path)
    if not encoding_of(content).startswith("utf-8"):
        content = decode_text(content).encode()
    lines = enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1)
    return [_json_row(line, f"line {number} of {Path(path).name}") for number, line in lines if line.strip()]


def _json_row(line: bytes, name: str) -> dict[str, Any] | Bad:
    try:
        row = parse_json(line, name)
    except ValueError as error:
        return Bad(str(error))
    return row if isinstance(row, dict) else Bad(f"{name} is no JSON object")
