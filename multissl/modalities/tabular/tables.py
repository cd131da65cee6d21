"""Where tables come from: files as `sources.tables` opens them, scikit-learn's, a DataFrame, and the built-in demo.

A table is its header and one array per column: numbers as float64 (NaN where a cell is missing), dates as text in one
spelling, anything else as text (None where missing), the same whatever it was written as. A file is read whenever its
table is, and nothing is kept or fitted here; rows that cannot be read are listed in `broken` and skipped later.
The demo: 40 columns, 8 hidden kinds of row. 12 text columns and 8 numbers depend on the kind, each weakly and with
much noise; the other 20 are independent noise. No column tells the kind, and distances between raw rows are
mostly noise: weighted k-NN (20 neighbors) on raw one-hot rows finds 63 % of the kinds, a linear
classifier 80 %, chance being 12.5 %. What columns say about each other is only the kind, so whoever learns to fill
cells in learns it.
Shapes: S rows, C columns.  State: none.
"""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from multissl import registry
from multissl.sources.columns import objects
from multissl.sources.dates import iso_date, read_dates
from multissl.sources.missing import is_missing, missing_words
from multissl.sources.numerals import EXACT, number_columns, plain_text
from multissl.sources.reading import check_regular
from multissl.sources.remote import REMOTE, local_place
from multissl.sources.table_files import table_files
from multissl.sources.tables import TABLES, OpenTable, arrow_cells, open_table, say_once, table_suffix

MEMORY: dict[str, Any] = {}
"""The DataFrames of this process, by the name that stands for them in a recipe file."""
NO_FILE = re.compile(r"demo$|sklearn:|memory:")
"""What names a table that is no file."""
LINE = 1_000_000
"""The most characters that a csv cell may have."""


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


def read_table(
    data: str, option: str = "modality.data", delimiter: str = "", missing: Sequence[str] = ()
) -> Table:
    """Return the table that an option names, a new one each time; errors name the option as it was typed.

    `delimiter` "" is found in the file; `missing` are more words for missing cells.
    """
    try:
        table = _open(data, delimiter, missing)
    except ValueError as error:
        raise ValueError(f"{option}={data!r}: {error}") from None
    if not len(table):
        raise ValueError(f"{option}={data!r}: the file holds no rows below its header")
    if len(table.broken) == len(table):
        raise ValueError(f"{option}={data!r}: none of its rows can be read; the first: {table.broken[0]}")
    return table


def read_splits(
    data: str, option: str = "modality.data", delimiter: str = "", missing: Sequence[str] = ()
) -> dict[str, Table]:
    """Return the tables that an option names by split, `train` among them; errors name the option as it was typed.

    A pattern or a folder names several files: those of a split are one below the other, with the columns of the first.
    """
    try:
        files = (
            []
            if NO_FILE.match(data) and not REMOTE.match(data)
            else table_files(local_place(data), (".txt",))
        )
    except ValueError as error:
        raise ValueError(f"{option}={data!r}: {error}") from None
    if not files or files == [(local_place(data), "")]:
        return {"train": read_table(data, option, delimiter, missing)}
    parts: dict[str, Table] = {}
    for path, split in files:
        table, split = read_table(path, option, delimiter, missing), split or "train"
        parts[split] = appended(parts[split], table, f"{option}={path!r}") if split in parts else table
    return parts


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
    made[:] = [None if np.isnan(v) else plain_text(v) for v in column.tolist()]
    return made


def _open(data: str, delimiter: str, missing: Sequence[str]) -> Table:
    scheme, _, rest = data.partition(":")
    if data == "demo":
        return Table(dict(_demo().columns))
    if scheme == "sklearn":
        return _sklearn(rest)
    if scheme == "memory" and not REMOTE.match(data):
        if data not in MEMORY:
            raise ValueError("a table in the memory of a Python program: only that program can read it")
        return table_of(_frame(MEMORY[data], missing_words(missing)))
    path = local_place(data)
    if not os.path.isfile(path):
        if os.path.exists(path) and not os.path.isdir(path):
            check_regular(path)
        found = "a folder without tables" if os.path.isdir(path) else "no such file"
        raise ValueError(
            f"{found}; give a .csv, .tsv, .parquet, .feather, .jsonl, .json or .xlsx file, a folder of them, "
            "a pattern as 'part-*.csv', sklearn:NAME, or demo"
        )
    if table_suffix(path) not in (*TABLES, ".txt"):
        suffix = table_suffix(path) or "nameless"
        raise ValueError(f"a {suffix} file is no table; known: {', '.join(TABLES)}, each also with .gz")
    return table_of(open_table(path, delimiter=delimiter, missing=missing, longest=LINE))


def table_of(table: OpenTable) -> Table:
    """Return a table by what its cells mean: numbers, dates in one spelling, and text, the same from every format."""
    twice = [name for name, count in Counter(map(str, table.columns)).items() if count > 1]
    if twice:
        raise ValueError(f"two columns are called {twice[0]!r}: rename one")
    words = frozenset[str]() if table.cleaned else table.words
    columns = {str(name): _typed(column, words) for name, column in table.columns.items()}
    texts = {name: column for name, column in columns.items() if not _is_number(column)}
    notes: dict[str, list[str]] = {}
    for name, column in number_columns(texts, table.delimiter).items():
        columns[name] = column.cells
        texts.pop(name)
        for note in column.notes:
            notes.setdefault(f"numbers with {note}", []).append(name)
        if column.words:
            said = ", ".join(map(repr, column.words))
            notes.setdefault(f"{said} among numbers, read as missing", []).append(name)
    for name, column in texts.items():
        cells, places = _distinct(column)
        dates = read_dates(cells)
        columns[name] = (_truths(cells) if dates is None else dates)[places]
        if dates is not None:
            notes.setdefault("dates", []).append(name)
    for note, names in notes.items():
        say_once(table.name, f"modality.data: {note}: {', '.join(names)}")
    return Table(columns, dict(table.broken))


def _is_number(column: Any) -> bool:
    return isinstance(column, np.ndarray) and column.dtype == np.float64


def _distinct(column: Any) -> tuple[np.ndarray, Any]:
    """Return cells of a column of text, objects [U] without space around them, None where missing, and which cell each
    row has: an arrow array holds few cells often, which are read once."""
    places: Any = slice(None)
    if isinstance(column, np.ndarray):
        cells = column.tolist()
    else:
        arrow = registry.require("pyarrow")
        chunks = column.chunks if isinstance(column, arrow.ChunkedArray) else [column]
        coded = arrow.chunked_array(chunks, column.type).dictionary_encode(null_encoding="encode")
        chunks = coded.unify_dictionaries().chunks
        places = np.concatenate([np.zeros(0, np.int64), *(chunk.indices.to_numpy() for chunk in chunks)])
        cells = chunks[0].dictionary.to_pylist() if chunks else []
    return objects([None if cell is None else cell.strip() for cell in cells]), places


def _typed(column: Any, words: frozenset[str]) -> Any:
    """Return a column as numbers, float64 [S], or as text that numbers may hide in: objects or an arrow array."""
    if not isinstance(column, np.ndarray):
        column = _from_arrow(column, words)
        if not isinstance(column, np.ndarray):
            return column
    if column.dtype.kind in "iuf" and not (np.abs(column) >= EXACT).any():
        return column.astype(np.float64)
    cells: list[Any] = column.tolist()
    known = [cell for cell in cells if not is_missing(cell, words)]
    numbers = all(isinstance(v, Real | Decimal) and not isinstance(v, bool | np.bool_) for v in known)
    if known and numbers and not any(isinstance(v, int) and abs(v) >= EXACT for v in known):
        return np.array([np.nan if is_missing(v, words) else float(v) for v in cells], np.float64)
    return objects([None if is_missing(v, words) else _text(v) for v in cells])


def _from_arrow(column: Any, words: frozenset[str]) -> Any:
    """Return an arrow array as numbers, float64, as text without missing words, or as objects [S]."""
    arrow, compute = registry.require("pyarrow"), registry.require("pyarrow.compute")
    types = arrow.types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_floating(column.type) or (types.is_integer(column.type) and not _is_long(compute, column)):
        return column.cast(arrow.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
    if types.is_string(column.type) or types.is_large_string(column.type):
        if not words:
            return column
        absent = arrow.array(sorted(words), column.type)
        gone = compute.is_in(compute.utf8_trim_whitespace(column), value_set=absent)
        return compute.if_else(gone, arrow.scalar(None, column.type), column)
    return objects(arrow_cells(column))


def _is_long(compute: Any, column: Any) -> bool:
    """Return whether a column of whole numbers holds numbers that are too large for a float."""
    bounds = compute.min_max(column).as_py()
    return any(value is not None and abs(value) >= EXACT for value in bounds.values())


def _text(value: Any) -> str:
    """Return a cell as text, equal for equal values of any type."""
    if isinstance(value, float):
        return plain_text(value)
    return iso_date(value) or str(value).strip()


def _truths(cells: np.ndarray) -> np.ndarray:
    """Return a column with True and False in one spelling where it holds nothing else."""
    known = {cell for cell in cells.tolist() if cell is not None}
    if not known or not {cell.lower() for cell in known} <= {"true", "false"}:
        return cells
    return objects([None if cell is None else cell.capitalize() for cell in cells.tolist()])


def _frame(frame: Any, words: frozenset[str]) -> OpenTable:
    """Return a DataFrame of pandas, or a mapping from column to cells, as a table that was opened."""
    names = [str(name) for name in frame]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"two columns are called {twice[0]!r}: rename one")
    columns: dict[str, Any] = {}
    for place, name in enumerate(names):
        series = frame.iloc[:, place] if hasattr(frame, "iloc") else frame[name]
        values = np.asarray(series)
        if values.dtype.kind not in "iuf":
            values = objects([iso_date(v) or v for v in series] if values.dtype.kind == "M" else list(series))
        columns[name] = values
    return OpenTable(columns, words=words)


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
        columns[f"answer {i + 1}"] = objects(["abcdef"[v] for v in level])
    for i in range(8):
        columns[f"reading {i + 1}"] = rng.normal(size=8)[kind] + 3 * rng.normal(size=rows)
    for i in range(20):
        if i % 2:
            columns[f"noise {i + 1}"] = np.exp(rng.normal(size=rows))
        else:
            columns[f"noise {i + 1}"] = objects([f"n{v}" for v in rng.integers(5, size=rows)])
    for name in ("answer 1", "reading 1"):  # a few cells are missing
        gone = rng.random(rows) < 0.05
        columns[name][gone] = None if columns[name].dtype == object else np.nan
    order = rng.permutation(len(columns))
    names = [*columns]
    return Table(
        {**{names[i]: columns[names[i]] for i in order}, "target": objects([f"kind {k}" for k in kind])}
    )
