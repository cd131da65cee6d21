"""The schema of a table: what its training rows say a column is, and how cells become numbers by it.

A number becomes a normal score: its place among 257 quantiles of the training rows, mid-rank for ties, through the
inverse normal distribution (or plainly standardized, scaling=standard). A missing number becomes 0, the middle, and
where the training rows miss any, a column of its own tells so. A category becomes the number of its level; level 0 is
unknown: never seen, or seen in fewer than `rare` training rows, so that it too is trained. A missing category is a
level. A date becomes a number, the time since 1970, and places in year, week and day. Columns that say nothing
(constant, all missing, a different text in every row) are left out, each with its reason. Nothing is fitted to
validation or test rows; the schema is part of what a run saves.
Shapes: S rows, C columns of the encoder, Q quantiles.  State: the schema itself, as JSON.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from multissl.modalities.tabular.tables import Table, texts
from multissl.registry import suggest
from multissl.sources.dates import read_dates, seconds_of
from multissl.sources.missing import MISSING

Kind = Literal["number", "category", "flag"]
Scaling = Literal["quantile", "standard"]
QUANTILES = 257
EDGE = 1 / (2 * QUANTILES)
"""How near to 0 and 1 a rank comes: scores end at +-2.9."""
FAR = 10.0
"""Standardized numbers are cut at this many deviations."""
ODD = 0.02
"""Share of the known cells of a column of numbers that may be no numbers; their rows are unreadable."""
GONE = "(missing)"
SELDOM = 0.1
"""Share of the cells that levels must cover; a column of which they cover less is as good as one of names."""
EPOCH = "time"
CYCLES = {"year": 365.2425 * 86400, "week": 7 * 86400.0, "day": 86400.0}
"""Cycles in which a date stands, and how many seconds each takes."""
FLAT = 1e-6
"""Parts of a date that vary less are constant."""


@dataclass(slots=True)
class Column:
    """One column as the encoder reads it."""

    name: str
    source: str
    """The column of the table that it comes from."""
    kind: Kind
    levels: list[str] = field(default_factory=list)
    """Of a category; the first stands for unknown."""
    knots: list[float] = field(default_factory=list)
    """Of a number: its quantiles, or mean and deviation."""
    part: str = ""
    """Of a date: what of it this column tells, one of `parts_of`."""

    def decode(self, value: float) -> str:
        """A cell as a person would read it."""
        if self.kind != "number":
            return self.levels[int(value)]
        if len(self.knots) == 2:
            found = self.knots[0] + value * self.knots[1]
        else:
            rank = float(torch.special.ndtr(torch.tensor(value, dtype=torch.float64)))
            found = float(np.interp(rank, np.linspace(0, 1, QUANTILES), self.knots))
        if self.part == EPOCH:
            return np.datetime_as_string(np.datetime64(round(found), "s"), unit="D")
        return f"{found:.0f}" if 1e4 <= abs(found) < 1e9 else f"{found:.4g}"


@dataclass(slots=True)
class Schema:
    """All columns, in order, and those left out with the reason."""

    columns: list[Column]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Levels of each column, 0 for a number."""
        return tuple(len(c.levels) for c in self.columns)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {"columns": [asdict(c) for c in self.columns], "left_out": self.left_out}

    @staticmethod
    def from_json(state: dict[str, Any]) -> Schema:
        """The schema that `to_json` wrote."""
        return Schema([Column(**c) for c in state["columns"]], dict(state["left_out"]))

    def encode(self, table: Table) -> tuple[Tensor, dict[int, str], dict[str, str]]:
        """Cells float32 [S, C], rows that cannot be read with the reason, and by column what training never saw.

        Raises where a column of the training data is missing, or holds no number though it held numbers.
        """
        cells = np.zeros((len(table), len(self.columns)), np.float32)
        broken, strange = dict(table.broken), dict[str, str]()
        flagged = {column.source for column in self.columns if column.kind == "flag"}
        readable = np.ones(len(table), bool)
        readable[[*table.broken]] = False
        for place, column in enumerate(self.columns):
            if column.source not in table.columns:
                raise ValueError(
                    f"column {column.source!r} of the training data is missing"
                    f"{suggest(column.source, table.columns)}"
                )
            given = table.columns[column.source]
            if column.kind == "category":
                level = {name: i for i, name in enumerate(column.levels)}
                found = words(given)
                numbered = np.array([level.get(w, -1) for w in found])
                cells[:, place] = numbered.clip(min=0)
                new = (numbered < 0) & readable
                gone = sum(found[row] == GONE for row in np.flatnonzero(new))
                if gone:
                    strange[column.source] = f"{gone} missing cells, and training missed none: unknown"
                elif new.any():
                    strange[column.source] = f"{new.sum()} cells of a level that training rarely or never saw"
                continue
            values, odd = _values(given, column)
            if (len(odd) and odd.all()) or (odd.any() and np.isnan(values).all()):
                held = "dates" if column.part else "numbers"
                raise ValueError(
                    f"column {column.source!r} held {held} in the training data, here it holds "
                    f"{given[np.flatnonzero(odd)[0]]!r}"
                )
            kind = "date" if column.part else "finite number"
            for row in np.flatnonzero(odd).tolist():
                broken.setdefault(row, f"row {row}: {column.source}={given[row]!r} is no {kind}")
            missing = np.isnan(values)
            if column.source not in flagged and (count := int((missing & ~odd & readable).sum())):
                strange[column.source] = (
                    f"{count} missing cells, and training missed none: they become the middle"
                )
            if column.kind == "flag":
                cells[:, place] = missing
            else:
                cells[:, place] = np.where(missing, 0, _scaled(np.where(missing, 0, values), column.knots))
        return torch.from_numpy(cells), broken, strange

    def unread(self, table: Table) -> dict[str, float]:
        """Return by column of a table the share of readable rows whose cell is missing or of an unknown level."""
        readable = np.ones(len(table), bool)
        readable[[*table.broken]] = False
        shares: dict[str, float] = {}
        for column in self.columns:
            cells = table.columns[column.source][readable]
            if column.kind == "category":
                known = {*column.levels[1:]} - {GONE}
                unread = np.array([word not in known for word in words(cells)], bool)
            else:
                unread = np.isnan(_values(cells, column)[0])
            if unread.any():
                shares[column.source] = float(unread.mean())
        return shares


def fit(
    table: Table,
    scaling: Scaling = "quantile",
    rare: int = 2,
    max_levels: int = 100,
    categorical: tuple[str, ...] = (),
) -> Schema:
    """The schema of training rows; raises where no column says anything."""
    columns: list[Column] = []
    left_out: dict[str, str] = {}
    readable = np.ones(len(table), bool)
    readable[[*table.broken]] = False
    for name, given in table.columns.items():
        cells = given[readable]
        values, odd = numbers(cells)
        known = ~np.isnan(values) | odd
        if not known.any():
            left_out[name] = "all cells are missing"
        elif (odd == known).all() and name not in categorical and read_dates(cells) is not None:
            dated = _date_columns(name, cells, scaling)
            columns += dated
            if not dated:
                left_out[name] = "constant"
        elif name in categorical or odd.sum() > ODD * known.sum():
            seen = Counter(words(cells))
            often = [w for w, count in seen.most_common(max_levels) if count >= rare or w == GONE]
            if not often:
                left_out[name] = "a different text in every row"
            elif len(seen) == 1:
                left_out[name] = "constant"
            elif sum(seen[word] for word in often) < SELDOM * len(cells):
                left_out[name] = "hardly any of its texts comes twice"
            else:
                columns.append(Column(name, name, "category", ["(unknown)", *sorted(often)]))
        else:
            found = values[~np.isnan(values)]
            missing = bool(np.isnan(values[~odd]).any())
            if found.min() < found.max():
                columns.append(Column(name, name, "number", [], _knots(found, scaling)))
            elif not missing:
                left_out[name] = "constant"
            if missing:
                columns.append(Column(f"{name} is missing", name, "flag", ["no", "yes"]))
    if not columns:
        raise ValueError(
            "no column says anything: " + ", ".join(f"{n} ({why})" for n, why in left_out.items())
        )
    return Schema(columns, left_out)


def _date_columns(name: str, cells: np.ndarray, scaling: Scaling) -> list[Column]:
    """Return the columns that a date becomes: the time since 1970, and where it stands in year, week and day."""
    seconds, _ = seconds_of(cells.tolist())
    missing = np.isnan(seconds)
    columns = []
    for part, values in parts_of(seconds).items():
        known = values[~missing]
        if known.max() - known.min() > FLAT:
            knots = _knots(known, scaling) if part == EPOCH else [0.0, 1.0]  # a circle stays one
            label = name if part == EPOCH else f"{name} ({part})"
            columns.append(Column(label, name, "number", [], knots, part))
    if missing.any():
        columns.append(Column(f"{name} is missing", name, "flag", ["no", "yes"], part=EPOCH))
    return columns


def parts_of(seconds: np.ndarray) -> dict[str, np.ndarray]:
    """Return what dates tell, seconds since 1970 [S] in UTC: themselves, and sine and cosine of three cycles."""
    parts = {EPOCH: seconds}
    for cycle, length in CYCLES.items():
        angle = 2 * np.pi * np.mod(seconds, length) / length
        parts |= {f"{cycle}, sine": np.sin(angle), f"{cycle}, cosine": np.cos(angle)}
    return parts


def _values(cells: np.ndarray, column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Return what a column of the encoder reads of cells, float64 [S], and which are odd: see `numbers`."""
    if not column.part:
        return numbers(cells)
    seconds, odd = seconds_of(texts(cells).tolist())
    return parts_of(seconds)[column.part], odd


def numbers(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells as float64 [S], NaN where missing or odd, and which are odd: neither missing nor a finite number."""
    if cells.dtype == np.float64:
        odd = np.isinf(cells)
        return np.where(odd, np.nan, cells), odd
    given = cells.tolist()
    try:
        values = np.array([np.nan if cell is None else float(cell) for cell in given], np.float64)
    except ValueError:  # not all are numbers: each different cell is read once
        known = {cell: _number(cell) for cell in set(given)}
        values = np.array([known[cell] for cell in given], np.float64)
    odd = np.isinf(values)
    return np.where(odd, np.nan, values), odd


def _number(cell: str | None) -> float:
    """A cell's number: NaN where it is missing, infinite where it is none."""
    if cell is None or cell in MISSING:
        return np.nan
    try:
        return float(cell)
    except ValueError:
        return np.inf


def words(cells: np.ndarray) -> list[str]:
    """Cells as text [S], missing ones too."""
    return [GONE if cell is None else cell for cell in texts(cells).tolist()]


def _knots(values: np.ndarray, scaling: Scaling) -> list[float]:
    if scaling == "standard":
        return [float(values.mean()), max(float(values.std()), 1e-12)]
    return np.quantile(values, np.linspace(0, 1, QUANTILES)).tolist()


def _scaled(values: np.ndarray, knots: list[float]) -> np.ndarray:
    if len(knots) == 2:
        return np.clip((values - knots[0]) / knots[1], -FAR, FAR)
    # by a power of 2 all places stay what they are, and differences of the largest and smallest numbers finite
    exponent = np.frexp(np.abs(knots).max())[1] + 1
    at, grid = np.ldexp(knots, -exponent), np.linspace(0, 1, QUANTILES)
    values = np.ldexp(values.clip(knots[0], knots[-1]), -exponent)
    # the first and the last of equal quantiles, averaged
    rank = 0.5 * (np.interp(values, at, grid) - np.interp(-values, -at[::-1], -grid[::-1]))
    return torch.special.ndtri(torch.from_numpy(rank.clip(EDGE, 1 - EDGE))).numpy()
