"""Where tables come from: csv, tsv, parquet, feather, scikit-learn's, a DataFrame in memory, and the built-in demo.

A table is its header and one array per column: numbers as float64 (NaN where a cell is missing), anything else as text
(None where missing). A file is read whenever its table is, and nothing is kept or fitted here; rows that cannot be read
are listed in `broken` and skipped later.
The demo: 40 columns, 8 hidden kinds of row. 12 text columns and 8 numbers depend on the kind, each weakly and with
much noise; the other 20 are independent noise. No column tells the kind, and distances between raw rows are
mostly noise: weighted k-NN (20 neighbors) on raw one-hot rows finds 63 % of the kinds, a linear
classifier 80 %, chance being 12.5 %. What columns say about each other is only the kind, so whoever learns to fill
cells in learns it.
Shapes: S rows, C columns.  State: none.
"""

from __future__ import annotations

import csv
import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from multissl import registry
from multissl.sources.names import find_test_file
from multissl.sources.reading import check_regular, file_errors, parquet_file

MISSING = {"", "?", "NA", "N/A", "NaN", "nan", "null", "None", "NULL"}
"""What stands in a cell of a csv file that is missing."""
MEMORY: dict[str, Any] = {}
"""The DataFrames of this process, by the name that stands for them in a recipe file."""
LINE = 1_000_000
"""The most characters that a csv cell may have."""
WRONG = re.compile("[\udc80-\udcff]")
"""What stands for a byte that is not UTF-8."""


@dataclass(slots=True)
class Table:
    """Columns of equal length, by name."""

    columns: dict[str, np.ndarray]
    broken: dict[int, str] = field(default_factory=dict)
    """Rows that could not be read, and why."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def select(self, rows: np.ndarray) -> Table:
        """Return the table of some rows."""
        place = {int(row): i for i, row in enumerate(rows)}
        broken = {place[row]: why for row, why in self.broken.items() if row in place}
        return Table({name: column[rows] for name, column in self.columns.items()}, broken)


def holding(frame: Any) -> str:
    """Return the option `data` for a DataFrame (or a dict of columns) in memory; other processes refuse it by name."""
    name = f"memory:{type(frame).__name__}#{len(MEMORY)}"
    MEMORY[name] = frame
    return name


def read_table(data: str, option: str = "modality.data") -> Table:
    """Return the table that an option names, a new one each time; errors name the option as it was typed."""
    try:
        table = _open(data)
    except ValueError as error:
        raise ValueError(f"{option}={data!r}: {error}") from None
    if not len(table):
        raise ValueError(f"{option}={data!r}: the file holds no rows below its header")
    return table


def beside(data: str) -> str:
    """Return the test file that lies beside a train file and is named like it, "" for none."""
    return next(iter(find_test_file(data)), "")


def appended(first: Table, second: Table, option: str) -> Table:
    """Return the rows of both tables under the header of the first, which the second must have."""
    lacking = [name for name in first.columns if name not in second.columns]
    if lacking:
        raise ValueError(f"{option}: column {lacking[0]!r} is missing; it has {', '.join(second.columns)}")
    columns = {}
    for name, column in first.columns.items():
        pair = [column, second.columns[name]]
        if pair[0].dtype != pair[1].dtype:
            pair = [texts(c) for c in pair]
        columns[name] = np.concatenate(pair)
    return Table(columns, {**first.broken, **{len(first) + i: why for i, why in second.broken.items()}})


def texts(column: np.ndarray) -> np.ndarray:
    """Return a column as text, None where missing."""
    if column.dtype != np.float64:
        return column
    made = np.empty(len(column), object)
    made[:] = [None if np.isnan(v) else (str(int(v)) if v.is_integer() else repr(float(v))) for v in column]
    return made


def _open(data: str) -> Table:
    scheme, _, rest = data.partition(":")
    if data == "demo":
        return Table(dict(_demo().columns))
    if scheme == "sklearn":
        return _sklearn(rest)
    if scheme == "memory":
        if data not in MEMORY:
            raise ValueError("a table in the memory of a Python program: only that program can read it")
        return _frame(MEMORY[data])
    path = Path(data).expanduser()
    if path.exists() and not path.is_dir():
        check_regular(path)
    if not path.is_file():
        raise ValueError("no such file; give a .csv, .tsv, .parquet or .feather file, sklearn:NAME, or demo")
    match path.suffix.lower():
        case ".csv" | ".tsv" | ".txt":
            return _csv(path, "\t" if path.suffix.lower() == ".tsv" else ",")
        case ".parquet" | ".pq":
            with file_errors(path, "parquet"):
                return _arrow(parquet_file(path).read())
        case ".feather" | ".arrow":
            with file_errors(path, "feather"):
                return _arrow(registry.require("pyarrow.feather").read_table(path))
    raise ValueError(f"a {path.suffix or 'nameless'} file is no table; known: .csv, .tsv, .parquet, .feather")


def _named(names: Sequence[str]) -> list[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"the header names {twice[0]!r} twice: columns need names of their own")
    if "" in names:
        raise ValueError(
            f"column {list(names).index('') + 1} has no name: the first line must name all columns"
        )
    return list(names)


def _csv(path: Path, delimiter: str) -> Table:
    csv.field_size_limit(LINE)
    broken: dict[int, str] = {}
    lines: list[list[str]] = []
    # A byte that is not UTF-8 becomes a lone surrogate, which no text can hold, so that its row is known.
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, delimiter=delimiter)
        header = _named([cell.strip() for cell in next(reader, [])])
        if any(WRONG.search(name) for name in header):
            raise ValueError("the header is not UTF-8: save the file as UTF-8")
        while True:
            try:
                line = next(reader, None)
            except csv.Error as error:
                broken[len(lines)] = f"line {reader.line_num}: {error}"
                line = [""] * len(header)
            if line is None:
                break
            if not line:
                continue
            if len(line) != len(header):
                broken[len(lines)] = (
                    f"line {reader.line_num} has {len(line)} cells, the header names {len(header)}"
                )
                line = [""] * len(header)
            elif WRONG.search("".join(line)):
                broken[len(lines)] = f"line {reader.line_num} is not UTF-8"
                line = [""] * len(header)
            lines.append(line)
    columns = {}
    for name, cells in zip(header, zip(*lines, strict=True), strict=False):
        columns[name] = _objects([None if cell in MISSING else cell for cell in map(str.strip, cells)])
    return Table(columns, broken)


def _objects(cells: Sequence[Any]) -> np.ndarray:
    made = np.empty(len(cells), object)
    made[:] = cells
    return made


def _column(values: Sequence[Any]) -> np.ndarray:
    """Return a column: numbers as float64, anything else as text."""
    known = [v for v in values if v is not None]
    if all(isinstance(v, Real) and not isinstance(v, bool | np.bool_) for v in known):
        return np.array([np.nan if v is None else v for v in values], np.float64)
    cells = [None if v is None else str(v).strip() for v in values]
    return _objects([None if cell in MISSING else cell for cell in cells])


def _arrow(table: Any) -> Table:
    names = _named([str(name) for name in table.column_names])
    return Table(
        {name: _column(column.to_pylist()) for name, column in zip(names, table.columns, strict=True)}
    )


def _frame(frame: Any) -> Table:
    names = _named([str(name) for name in frame])
    columns = {}
    for i, name in enumerate(names):
        series = frame.iloc[:, i] if hasattr(frame, "iloc") else frame[name]
        values = np.asarray(series)
        if values.dtype.kind in "iuf":
            columns[name] = values.astype(np.float64)
        else:
            gone = (
                series.isna().to_numpy() if hasattr(series, "isna") else [v is None for v in values.tolist()]
            )
            columns[name] = _column([None if g else v for g, v in zip(gone, values.tolist(), strict=True)])
    return Table(columns)


def _sklearn(name: str) -> Table:
    loader = getattr(registry.require("sklearn.datasets"), f"load_{name}", None)
    if loader is None:
        raise ValueError("scikit-learn has no such table; try sklearn:breast_cancer")
    table = loader()
    columns = {
        str(n): column.astype(np.float64) for n, column in zip(table.feature_names, table.data.T, strict=True)
    }
    return Table({**columns, "target": np.asarray(table.target, np.float64)})


@functools.cache
def _demo(rows: int = 6000) -> Table:
    rng = np.random.default_rng(20_260_101)
    kind = rng.integers(8, size=rows)  # [S]
    columns: dict[str, np.ndarray] = {}
    for i in range(12):
        usual = rng.integers(6, size=8)  # the level a kind tends to
        other = rng.integers(6, size=rows)
        level = np.where(rng.random(rows) < 0.35, usual[kind], other)
        columns[f"answer {i + 1}"] = _objects(["abcdef"[v] for v in level])
    for i in range(8):
        columns[f"reading {i + 1}"] = rng.normal(size=8)[kind] + 3 * rng.normal(size=rows)
    for i in range(20):
        if i % 2:
            columns[f"noise {i + 1}"] = np.exp(rng.normal(size=rows))
        else:
            columns[f"noise {i + 1}"] = _objects([f"n{v}" for v in rng.integers(5, size=rows)])
    for name in ("answer 1", "reading 1"):  # a few cells are missing
        gone = rng.random(rows) < 0.05
        columns[name][gone] = None if columns[name].dtype == object else np.nan
    order = rng.permutation(len(columns))
    names = [*columns]
    return Table(
        {**{names[i]: columns[names[i]] for i in order}, "target": _objects([f"kind {k}" for k in kind])}
    )
