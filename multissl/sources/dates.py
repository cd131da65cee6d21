"""Dates as people and programs write them, brought to one spelling: `2024-01-31T12:00:00`, in UTC where a zone is said.

A column of text is one of dates where every known cell is. Of 01/02/2024 the column says which is the day, where any of
its numbers is above 12; otherwise dots and dashes mean day before month, and slashes month before day.
State: none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from datetime import UTC, date, datetime
from typing import Any

import numpy as np

from multissl.sources.missing import is_missing

ISO = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?\s?(?:Z|[+-]\d\d:?\d\d)?)?")
YEAR_FIRST = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})(?P<time>[T ].*)?")
YEAR_LAST = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})(?P<time>[T ].*)?")
NAMED = ("%d %b %Y", "%d-%b-%Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d. %B %Y", "%d-%b-%y")
FRACTION = re.compile(r"(\.\d{6})\d+")
"""More digits of a second than are kept."""


def iso_date(value: Any) -> str | None:
    """Return a date of any library in the one spelling, or None where a value is no date."""
    if is_missing(value):  # no time of any library is a date
        return None
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, datetime):  # pandas' timestamps are some, too
        try:
            return _spelt(value)
        except OverflowError:  # of the first or last day, in UTC beyond the years that there are
            return None
    return _spelt(datetime(value.year, value.month, value.day)) if isinstance(value, date) else None


def read_dates(cells: np.ndarray) -> np.ndarray | None:
    """Return a column of text (objects [S], None where missing) in the one spelling; None where it holds no dates."""
    known = {cell for cell in cells.tolist() if cell is not None}
    if not known or not all(isinstance(cell, str) and _looks_dated(cell) for cell in known):
        return None
    read = _reader(known)
    try:
        spelt = {cell: _spelt(read(cell)) for cell in known}
    except (ValueError, OverflowError):  # the latter where UTC is beyond the years that there are
        return None
    made = np.empty(len(cells), object)
    made[:] = [None if cell is None else spelt[cell] for cell in cells.tolist()]
    return made


def seconds_of(cells: list[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """Return the seconds since 1970 of dates, float64 [S], NaN where missing or odd, and which are odd, bool [S]."""
    known: dict[str | None, float] = {None: np.nan}
    for cell in set(cells) - {None}:
        column = np.empty(1, object)
        column[0] = cell
        spelt = read_dates(column)
        known[cell] = np.nan
        if spelt is not None:
            known[cell] = datetime.fromisoformat(spelt[0]).replace(tzinfo=UTC).timestamp()
    values = np.array([known[cell] for cell in cells], np.float64)
    return values, np.isnan(values) & np.array([cell is not None for cell in cells], bool)


def _looks_dated(cell: str) -> bool:
    return bool(8 <= len(cell) <= 40 and (ISO.fullmatch(cell) or YEAR_FIRST.fullmatch(cell) or _other(cell)))


def _other(cell: str) -> bool:
    return bool(YEAR_LAST.fullmatch(cell)) or (cell[:1].isalnum() and any(c.isalpha() for c in cell))


def _reader(known: Collection[str]) -> Callable[[str], datetime]:
    """Return what reads the dates of a column. It raises a ValueError for what is none."""
    parts = [match for cell in known if (match := YEAR_LAST.fullmatch(cell))]
    day_first = not any(int(match[3]) > 12 for match in parts) and (
        any(int(match[1]) > 12 for match in parts) or any(match[2] != "/" for match in parts)
    )

    def read(cell: str) -> datetime:
        if ISO.fullmatch(cell):
            return datetime.fromisoformat(FRACTION.sub(r"\1", cell).replace(" +", "+").replace(" Z", "Z"))
        if match := YEAR_FIRST.fullmatch(cell):
            return _dated(int(match[1]), int(match[3]), int(match[4]), match["time"])
        if match := YEAR_LAST.fullmatch(cell):
            one, other = int(match[1]), int(match[3])
            day, month = (one, other) if day_first else (other, one)
            return _dated(int(match[4]), month, day, match["time"])
        for form in NAMED:
            try:
                return datetime.strptime(cell, form)
            except ValueError:
                continue
        raise ValueError(cell)

    return read


def _dated(year: int, month: int, day: int, time: str | None) -> datetime:
    stamp = f"{year:04}-{month:02}-{day:02}"
    if not time:
        return datetime.fromisoformat(stamp)
    clock = time[1:].strip()
    return datetime.fromisoformat(f"{stamp}T{clock.zfill(5) if clock.count(':') == 1 else clock.zfill(8)}")


def _spelt(value: datetime) -> str:
    value = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    return value.isoformat(timespec="microseconds" if value.microsecond else "seconds")
