"""Numbers as people write them: decimal commas, thousands, currency, per cent, accounting's brackets.

A column of text is one of numbers where at least half of its known cells are. "1,234" and "1.234" alone leave open what
their sign means: cells of the column that do not leave it open decide, then those of other columns, then the delimiter,
as tables with semicolons have decimal commas.
Shapes: S cells.  State: none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from multissl import registry
from multissl.sources.columns import object_cells, side_by_side

Mark = Literal[".", ","]
"""What parts the whole from the fraction."""
PLAIN = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
GROUPS = " '\u2019\u00a0\u202f"
"""What parts thousands whatever the decimal mark is."""
BODY = {
    mark: re.compile(
        rf"(?:[1-9]\d{{0,2}}(?P<group>[{re.escape(other)}{GROUPS}])\d{{3}}(?:(?P=group)\d{{3}})*|\d+)"
        rf"(?:{re.escape(mark)}\d*)?(?:[eE][+-]?\d+)?|{re.escape(mark)}\d+(?:[eE][+-]?\d+)?"
    )
    for mark, other in ((".", ","), (",", "."))
}
"""The digits of a number by its decimal mark."""
CURRENCY = re.compile(r"^(?:[$€£¥₹]|USD|EUR|GBP|CHF|JPY)\s*|\s*(?:[$€£¥₹]|USD|EUR|GBP|CHF|JPY)$")
SAMPLE = 5000
"""Cells that settle the decimal mark, where they leave no doubt."""
CODE = re.compile(r"[+-]?0\d+")
"""A number with leading zeros is a code, such as that of a place."""
EXACT = 2**53
"""Whole numbers from here on are not all different as floats and stay text, but for those with an exponent."""
HALF, FEW, ODD = 0.5, 3, 0.02
"""The least share of numbers in a column of numbers; how many words in it may stand for a missing cell, where they are
more than a share of the known cells that is left to be unreadable."""


class Numeral(NamedTuple):
    """A cell without what is around its digits."""

    digits: str
    sign: str
    percent: bool
    currency: bool


class Column(NamedTuple):
    """A column of numbers, and what was unusual in it."""

    cells: np.ndarray
    """float64 [S], NaN where missing; or text with plain numbers, where some cells are none."""
    notes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    """What stood for missing cells beside the usual words."""


def number_columns(columns: Mapping[str, Any], delimiter: str = "") -> dict[str, Column]:
    """Return the columns of text (objects or an arrow array [S], None where missing) that hold numbers, as these."""
    tried = dict(zip(columns, side_by_side(_plain, columns.values()), strict=True))
    plain = {name: values for name, values in tried.items() if values is not None}
    marks: dict[str, Mark | None] = {
        name: _point(column) if name in plain else _mark(column) for name, column in columns.items()
    }
    votes = Counter(mark for mark in marks.values() if mark)
    decimal_comma = votes[","] > votes["."] or (not votes and delimiter == ";")
    usual: Mark = "," if decimal_comma else "."
    read = {}
    for name, cells in columns.items():
        mark = marks[name] or usual
        if mark == "." and name in plain:
            read[name] = Column(plain[name])
            continue
        column = _read(cells, _counts(cells), mark)
        if column:
            read[name] = column
    return read


def _counts(column: Any) -> Counter[str]:
    """Return how often each known cell stands in a column, without the space around it."""
    if isinstance(column, np.ndarray):
        return Counter(cell.strip() for cell in column.tolist() if cell is not None)
    compute = registry.require("pyarrow.compute")
    counts: Counter[str] = Counter()
    for entry in compute.value_counts(column.drop_null()).to_pylist():
        counts[entry["values"].strip()] += entry["counts"]
    return counts


def plain_text(value: float) -> str:
    """Return a number as text, the same whichever type it had."""
    return str(int(value)) if value.is_integer() and abs(value) < EXACT else repr(value)


def _plain(column: Any) -> np.ndarray | None:
    """Return a column whose known cells are all plain numbers as float64 [S], quickly; None for any other."""
    if isinstance(column, np.ndarray):
        cells = column.tolist()
        known = [cell for cell in cells if cell is not None]
        if not known or any("_" in cell or CODE.match(cell.strip()) for cell in known):
            return None
        try:
            values = np.array([np.nan if cell is None else float(cell) for cell in cells], np.float64)
        except ValueError:
            return None
        missing = len(cells) - len(known)
    else:
        arrow, compute = registry.require("pyarrow"), registry.require("pyarrow.compute")
        missing = column.null_count
        try:
            numbers = _cast(column, arrow.float64())
        except arrow.ArrowInvalid:
            return None
        if (
            missing == len(column)
            or compute.any(compute.match_substring_regex(column, r"^\s*[+-]?0[0-9]")).as_py()
        ):
            return None
        values = numbers.to_numpy(zero_copy_only=False).astype(np.float64)
    finite = np.isfinite(values)
    return (
        values if finite.sum() == len(values) - missing and (np.abs(values[finite]) < EXACT).all() else None
    )


def _cast(column: Any, to: Any) -> Any:
    """Return a column of text as numbers, whatever space is around them; raise an ArrowInvalid where one is none."""
    compute = registry.require("pyarrow.compute")
    try:
        return column.cast(to)
    except registry.require("pyarrow").ArrowInvalid:
        return compute.utf8_trim_whitespace(column).cast(to)


def _stripped(cell: str) -> Numeral | None:
    """Return a cell without sign, brackets, currency and per cent; None where no digits are left."""
    text = cell.replace("\u2212", "-")  # the sign of typography
    brackets = text.startswith("(") and text.endswith(")")
    text = text[1:-1].strip() if brackets else text
    sign = "-" if brackets else ""
    if text[:1] in "+-":
        sign, text = ("-" if text[:1] == "-" else sign), text[1:].strip()
    bare = CURRENCY.sub("", text)
    currency, text = bare != text, bare
    if currency and text[:1] in ("+", "-"):
        sign, text = ("-" if text[0] == "-" else sign), text[1:].strip()
    percent = text.endswith("%")
    text = text[:-1].strip() if percent else text
    if brackets and not (currency or percent or any(b.fullmatch(text) for b in BODY.values())):
        return None
    return Numeral(text, sign, percent, currency) if text[:1].isdigit() or text[:1] in (".", ",") else None


def _mark(column: Any) -> Mark | None:
    """Return the decimal mark that the cells of a column leave no doubt of, None where they do or hold no numbers.

    Its beginning is looked at, and all of it where that leaves a doubt.
    """
    for part in (column[:SAMPLE], column):
        cells = part.tolist() if isinstance(part, np.ndarray) else part.to_pylist()
        counts = Counter(cell.strip() for cell in cells if cell is not None)
        mark = _sure_mark(counts)
        if mark or not any("." in cell or "," in cell for cell in counts):
            return mark
        if counts and not any(_stripped(cell) for cell in counts):
            return None  # text
    return None


def _point(column: Any) -> Mark | None:
    """Return what `_mark` does of a column of plain numbers: a point, where one of them can have no decimal comma."""
    for part in (column[:SAMPLE], column):
        cells = part.tolist() if isinstance(part, np.ndarray) else part.to_pylist()
        pointed = [cell.strip().lstrip("+-") for cell in cells if cell is not None and "." in cell]
        if any(not BODY[","].fullmatch(cell) for cell in pointed):
            return "."
        if not pointed:
            return None
    return None


def _sure_mark(counts: Counter[str]) -> Mark | None:
    sure: Counter[Mark] = Counter()
    numerals = 0
    for cell, count in counts.items():
        numeral = _stripped(cell)
        if numeral is None:
            continue
        fits: list[Mark] = [mark for mark in (".", ",") if BODY[mark].fullmatch(numeral.digits)]
        numerals += count if fits else 0
        if len(fits) == 1:
            sure[fits[0]] += count
    if numerals < HALF * counts.total() or not sure:
        return None
    return "," if sure[","] > sure["."] else "."


def _read(column: Any, counts: Counter[str], mark: Mark) -> Column | None:
    values: dict[str, float] = {}
    decorated: set[str] = set()
    percents: Counter[bool] = Counter()
    for cell in counts:
        if PLAIN.fullmatch(cell) and (mark == "." or "." not in cell):
            values[cell] = float(cell)
            percents[False] += 1
            continue
        numeral = _stripped(cell)
        if numeral and BODY[mark].fullmatch(numeral.digits):
            values[cell] = _value(numeral, mark)
            percents[numeral.percent] += 1
            decorated |= _decorations(numeral, mark)
    numbers = sum(counts[cell] for cell in values)
    if not numbers or numbers < HALF * counts.total() or len(percents) > 1:
        return None  # 5 and 5 % in one column may mean anything
    if any(CODE.fullmatch(cell) for cell in values) or any(_is_long(c, v) for c, v in values.items()):
        return None
    odd = [cell for cell in counts if cell not in values]
    share = 1 - numbers / counts.total()
    words = odd if share > ODD and len(odd) <= FEW and not any(map(_has_digit, odd)) else []
    notes, cells = tuple(sorted(decorated)), object_cells(column)
    if not odd or words:
        made = np.array([values.get(_bare(cell), np.nan) for cell in cells.tolist()], np.float64)
        return Column(made, notes, tuple(sorted(words)))
    texts = {cell: plain_text(value) for cell, value in values.items()}
    made = np.empty(len(cells), object)
    made[:] = [texts.get(_bare(cell), _bare(cell)) for cell in cells.tolist()]
    return Column(made, notes)


def _is_long(cell: str, value: float) -> bool:
    """Return whether a cell has digits that a float does not keep; what has an exponent was measured."""
    return abs(value) >= EXACT and ("e" not in cell.lower() or not np.isfinite(value))


def _bare(cell: str | None) -> Any:
    return None if cell is None else cell.strip()


def _has_digit(text: str) -> bool:
    return any(character.isdigit() for character in text)


def _value(numeral: Numeral, mark: Mark) -> float:
    digits = "".join(c for c in numeral.digits if c not in GROUPS and c != ("," if mark == "." else "."))
    digits = digits.replace(",", ".")
    # the point moves in the text, where it costs no digit
    return float(f"{numeral.sign}{digits}{'e-2' if numeral.percent and 'e' not in digits.lower() else ''}")


def _decorations(numeral: Numeral, mark: Mark) -> set[str]:
    signs = set()
    if mark == "," and "," in numeral.digits:
        signs.add("a decimal comma")
    if any(c in numeral.digits for c in GROUPS) or ("," if mark == "." else ".") in numeral.digits:
        signs.add("thousands")
    if numeral.percent:
        signs.add("per cent, read as shares of 1")
    if numeral.currency:
        signs.add("currency")
    return signs
