"""Tables of text: cells parted by a comma, semicolon, tab or bar, as text and as they are written.

pyarrow reads them where it is installed and the table is sound; otherwise, and to name a line that is broken, the
reader here does, row by row, with the same cells. The delimiter is the one that parts the header into as many names as
the rows have cells. A first column without a name is an index and is left out.
Shapes: S rows.  State: none.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from multissl import registry
from multissl.limits import COLUMNS
from multissl.sources.above import above_header, check_parted
from multissl.sources.columns import object_cells, objects, side_by_side
from multissl.sources.encodings import decode_text, encoding_of, is_broken
from multissl.sources.missing import MISSING
from multissl.sources.reading import unpacked

DELIMITERS = ",;\t|"
"""Those that are looked for, the most usual first."""
WORDS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "bar": "|", "pipe": "|", "space": " "}
"""Delimiters by name, as an option may say them."""
NAMES = {"\t": "tab", " ": "space"}
NEVER = "\x1f"
"""Parts nothing: the delimiter of a table with a single column."""
HEAD = 1 << 18
"""Characters in which the delimiter is looked for."""
LOOKED_AT = 50
"""Rows in which the delimiter is looked for."""
UNNAMED = re.compile(r"(?:Unnamed: 0|__index_level_0__)?")
"""What the index of a table is called that another program wrote without leaving it out."""
QUOTED = re.compile(r'"(?:[^"]|"")*"')
LONGEST = 1 << 30
"""The most characters of a cell that csv may read; other limits may be lower."""


@dataclass(slots=True)
class Written:
    """A table as it is written: text by column, None where a cell is missing."""

    columns: dict[str, Any]
    """Objects [S], or an arrow array [S] of text."""
    broken: dict[int, str] = field(default_factory=dict)
    """Rows that could not be read, and why; their cells are missing."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the table should know."""
    delimiter: str = ""


class Dialect(NamedTuple):
    """How a table of text is parted."""

    delimiter: str
    names: list[str]
    """Of all columns, "" for the index."""
    lines: int
    """Physical lines down to the end of the header."""
    comments: int = 0
    """How many of them say something that is not read."""


def delimiter_of(option: str) -> str:
    """Return the delimiter that an option says by its sign or its name; raise a ValueError for what is none."""
    delimiter = WORDS.get(option.lower(), option)
    if len(delimiter) > 1 or delimiter in ('"', "\n", "\r"):
        raise ValueError(f"modality.delimiter={option!r}: want one character, or {', '.join(WORDS)}")
    return delimiter


def read_delimited(
    path: str, delimiter: str = "", words: frozenset[str] = MISSING, longest: int = LONGEST
) -> Written:
    """Return a table of text; `delimiter` "" is found in it, `words` stand for missing cells.

    Raises a ValueError where its header cannot be read or is parted by something else than its rows.
    """
    content = unpacked(path)
    encoding, notes = encoding_of(content), []
    if encoding == "cp1252":
        notes.append(
            "is no UTF-8 and is read as latin-1 (Windows-1252): save it as UTF-8 if accents are wrong"
        )
    if delimiter == " ":
        content = _single_spaces(content)
    head = decode_text(content[:HEAD] if not encoding.startswith("utf-16") else content[: 2 * HEAD])
    head = (head if len(content) <= HEAD else head[: head.rfind("\n") + 1]).removeprefix("\ufeff")
    dialect = _dialect(head or decode_text(content), delimiter)
    if dialect.comments:
        notes.append(f"comments above its header are left out, lines: {dialect.comments}")
    COLUMNS.check(len(dialect.names), "its header names")
    columns = _by_arrow(content, encoding, dialect, words, longest)
    broken: dict[int, str] = {}
    if columns is None:
        columns, broken = _by_row(decode_text(content).removeprefix("\ufeff"), path, dialect, words, longest)
    return _named(Written(columns, broken, notes, dialect.delimiter))


def _dialect(head: str, option: str) -> Dialect:
    """Return the delimiter of a table, by its beginning."""
    above = above_header(head, DELIMITERS)
    option = option or above.delimiter
    head = _below(head, above.lines)
    choices = [option] if option else list(DELIMITERS)
    read = {choice: _rows(head, choice) for choice in choices}
    parted = {choice: rows for choice, rows in read.items() if rows and len(rows[0]) > 1}
    best = max(parted, key=lambda choice: _agreement(parted[choice]), default="")
    delimiter = best or option or next((c for c in (*DELIMITERS, NEVER) if c not in head), NEVER)
    reader = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter)
    names = [name.strip() for name in next(reader, [])]
    lines = reader.line_num
    if any(map(is_broken, names)):
        raise ValueError("the header is not UTF-8: save the file as UTF-8")
    _check_header("".join(io.StringIO(head, newline="").readlines()[:lines]), delimiter, option)
    if len(names) == 1 and not option:
        check_parted(head, read)
    rows = parted.get(delimiter, [])[1:]
    if {len(row) for row in rows} == {len(names) + 1}:
        # all rows end with a delimiter, or begin with a name, as R writes it
        names = [*names, ""] if not any(row[-1].strip() for row in rows) else ["", *names]
    return Dialect(delimiter, names, above.lines + lines, above.comments)


def _below(text: str, lines: int) -> str:
    """Return a text without its first lines."""
    return "".join(io.StringIO(text, newline="").readlines()[lines:]) if lines else text


def _single_spaces(content: bytes) -> bytes:
    """Return a table with one space where there are any number of them; as it is where a cell is quoted."""
    if b'"' in content:  # a quoted cell may hold several
        return content
    single = re.sub(rb"[ \t]+", b" ", content)
    return re.sub(rb"(?m)^ | (?=\r?$)", b"", single)


def _rows(head: str, delimiter: str) -> list[list[str]]:
    """Return the first rows of a table that are not empty."""
    rows: list[list[str]] = []
    csv.field_size_limit(LONGEST)
    try:
        for row in csv.reader(io.StringIO(head, newline=""), delimiter=delimiter):
            if row:
                rows.append(row)
            if len(rows) > LOOKED_AT:
                break
    except csv.Error:
        pass
    return rows


def _agreement(rows: Sequence[list[str]]) -> tuple[float, bool, int]:
    """Return the share of rows that have as many cells as the header, whether no name is cut, and the cells."""
    names, rest = rows[0], rows[1:]
    fits = sum(len(row) in (len(names), len(names) + 1) for row in rest)
    return (fits / len(rest) if rest else 1.0), not any('"' in name for name in names), len(names)


def _check_header(line: str, delimiter: str, option: str) -> None:
    """Raise a ValueError where names of the header still hold another delimiter."""
    bare = QUOTED.sub("", line.rstrip("\r\n"))
    others = [other for other in ";\t|" if other != delimiter and other in bare]
    if delimiter != "," and re.search(r",(?=\S)", bare):
        others.append(",")
    if others and not (option and delimiter in bare):
        name, own = NAMES.get(others[0], others[0]), NAMES.get(delimiter, delimiter)
        used = f"parted by {own!r}" if delimiter in bare else "one name"
        raise ValueError(
            f"the header is {used} and still holds {name!r}: say what parts the columns, --modality.delimiter {name!r}"
            + (f" or {own!r}" if delimiter in bare else "")
        )


def _by_arrow(
    content: bytes, encoding: str, dialect: Dialect, words: frozenset[str], longest: int
) -> dict[str, Any] | None:
    """Return the cells by pyarrow, by column; None where it is not installed or refuses the table."""
    if importlib.util.find_spec("pyarrow") is None or encoding.startswith("utf-32"):
        return None
    arrow, reader, compute = map(registry.require, ("pyarrow", "pyarrow.csv", "pyarrow.compute"))
    columns = [str(place) for place in range(len(dialect.names))]
    coding = {"utf-8-sig": "utf8", "utf-8": "utf8"}.get(encoding, encoding)
    try:
        table = reader.read_csv(
            arrow.BufferReader(content),
            read_options=reader.ReadOptions(
                column_names=columns, skip_rows=dialect.lines, encoding=coding, block_size=1 << 24
            ),
            parse_options=reader.ParseOptions(
                delimiter=dialect.delimiter,
                newlines_in_values='"'.encode(coding.replace("utf8", "utf-8")) in content,
            ),
            convert_options=reader.ConvertOptions(
                column_types=dict.fromkeys(columns, arrow.string()), strings_can_be_null=False
            ),
        )
    except arrow.ArrowInvalid:
        return None
    absent = arrow.array(sorted(words), arrow.string())

    def known(column: Any) -> Any:
        if len(column) and (compute.max(compute.utf8_length(column)).as_py() or 0) > longest:
            return None
        gone = compute.is_in(compute.utf8_trim_whitespace(column), value_set=absent)
        return compute.if_else(gone, arrow.scalar(None, arrow.string()), column)

    cells = side_by_side(known, table.columns)
    return None if any(column is None for column in cells) else _by_name(dialect.names, cells)


def _by_row(
    text: str, path: str, dialect: Dialect, words: frozenset[str], longest: int
) -> tuple[dict[str, Any], dict[int, str]]:
    """Return the cells by column, and the rows that cannot be read."""
    count, broken = len(dialect.names), dict[int, str]()
    rows: list[list[str | None]] = []
    for number, cells in _lines(text, dialect, longest):
        line = f"line {number} of {os.path.basename(path)}"
        if isinstance(cells, str):
            broken[len(rows)] = f"{line}: {cells}"
        elif len(cells) != count:
            broken[len(rows)] = f"{line} has {len(cells)} cells, the header names {count}"
        elif any(map(is_broken, cells)):
            broken[len(rows)] = f"{line} is no UTF-8 text"
        rows.append(
            [None] * count
            if len(rows) in broken
            else [None if cell.strip() in words else cell for cell in cells]
        )
    columns = [objects([row[place] for row in rows]) for place in range(count)]
    return _by_name(dialect.names, columns), broken


def _lines(text: str, dialect: Dialect, longest: int) -> Iterator[tuple[int, list[str] | str]]:
    """Yield the line that each row ends on, and its cells or why it has none; empty lines are left out."""
    csv.field_size_limit(longest)
    reader = csv.reader(io.StringIO(_below(text, dialect.lines), newline=""), delimiter=dialect.delimiter)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield dialect.lines + reader.line_num, str(error)
            continue
        if cells is None:
            return
        if cells:
            yield dialect.lines + reader.line_num, cells


def _by_name(names: Sequence[str], columns: Sequence[Any]) -> dict[str, Any]:
    """Return columns by name; those without one, beside the index, by their place. Raises where two have one name."""
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise ValueError(f"two columns are called {twice[0]!r}: rename one, the header names it twice")
    return {
        name or f"\x00{place}": column
        for place, (name, column) in enumerate(zip(names, columns, strict=True))
    }


def _named(table: Written) -> Written:
    """Return a table without its index and without nameless columns that hold nothing, which is noted."""
    names = list(table.columns)
    if len(names) > 1 and UNNAMED.fullmatch("" if names[0] == "\x000" else names[0]):
        table.columns.pop(names[0])
        table.notes.append("its first column has no name: it is an index and is left out")
    for name in [name for name in table.columns if name.startswith("\x00")]:
        if any(cell is not None for cell in object_cells(table.columns[name])):
            raise ValueError(f"column {int(name[1:]) + 1} has no name: the first line must name all columns")
        table.columns.pop(name)
        table.notes.append("its rows end with a delimiter: the nameless empty column is left out")
    return table
