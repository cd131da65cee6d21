"""What stands above the rows of a table of text besides its header: Excel's `sep=;`, comments, empty lines, titles.

The first three are skipped, and comments are counted. A title would become the only name, and all columns one: it is
refused, as a header is whose columns are parted by spaces.
State: none.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import dropwhile
from typing import NamedTuple

from multissl.sources.numerals import PLAIN

SEPARATOR = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
"""The line by which spreadsheets say what parts the columns."""
COMMENT = "#"
FEWEST = 2
"""Rows below a header from which they say that it is none."""


class Above(NamedTuple):
    """What comes before the header."""

    lines: int = 0
    """Physical lines."""
    comments: int = 0
    """How many of them say something that is not read."""
    delimiter: str = ""
    """What one of them says that parts the columns."""


def above_header(head: str, delimiters: str) -> Above:
    """Return what stands above the header of a table, by its beginning."""
    lines = [line.strip("\r\n\v\f ") for line in io.StringIO(head, newline="")]
    place, comments, delimiter = 0, 0, ""
    while place < len(lines):
        named = SEPARATOR.fullmatch(lines[place])
        if named and not delimiter:
            delimiter = named[1]
        elif lines[place].startswith(COMMENT) and not _is_header(lines, place, delimiter or delimiters):
            comments += 1
        elif lines[place]:
            break
        place += 1
    return Above(place, comments, delimiter) if place < len(lines) else Above()


def _is_header(lines: Sequence[str], place: int, delimiters: str) -> bool:
    """Return whether a line that begins as a comment does names columns: it is parted as the line below it is.

    `# a,b` does so above numbers alone, as numpy writes it; `#a,b` does above any cells.
    """
    below = next((line for line in lines[place + 1 :] if line), "")
    if below.startswith(COMMENT):
        return False
    spaced = lines[place].startswith(f"{COMMENT} ")
    counts = {sign: (lines[place].count(sign), below.count(sign)) for sign in delimiters}
    alike = [sign for sign, (names, rows) in counts.items() if names == rows > 0]
    if not any(rows for _, rows in counts.values()):
        return not spaced or _is_number(below)
    return any(not spaced or any(map(_is_number, below.split(sign))) for sign in alike)


def check_parted(head: str, read: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Raise a ValueError where a header that is one name belongs to rows of several cells.

    `read` are the first rows by delimiter. Below a title the header comes first, and then numbers in a column of it.
    """
    for delimiter, rows in read.items():
        parted = [*dropwhile(lambda row: len(row) == 1, rows)]
        if len(parted) < len(rows) and _has_header(parted):
            raise ValueError(
                f"the first line is one name, {rows[0][0][:40]!r}, and lines below it are parted by {delimiter!r} into "
                f"{len(parted[0])}: take out what stands above the header"
            )
    words = [line.split() for line in head.splitlines() if line.strip()]
    if _has_header(words):
        raise ValueError(
            f"the header is one name, {' '.join(words[0])[:40]!r}, and all lines are of {len(words[0])} words: if "
            "spaces part the columns, say --modality.delimiter space"
        )


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether rows of several cells each begin with names: a column is of numbers but for its first cell."""
    if len(rows) <= FEWEST or len({len(row) for row in rows}) > 1 or len(rows[0]) < 2:
        return False
    columns = zip(*rows, strict=True)
    return not any(map(_is_number, rows[0])) and any(all(map(_is_number, rest)) for _, *rest in columns)


def _is_number(cell: str) -> bool:
    return PLAIN.fullmatch(cell.strip()) is not None
