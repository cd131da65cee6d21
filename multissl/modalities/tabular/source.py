"""The rows that a table's options name, or that were handed over, apart from what is fitted to them.

Shapes: S rows.  State: none.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from multissl.modalities.tabular import schema as schemas
from multissl.modalities.tabular import views as draws
from multissl.modalities.tabular.tables import Table, appended, beside, read_table
from multissl.registry import suggest

log = logging.getLogger("multissl")
UNNAMED = "target"
"""The label's column where no option names it; a table may lack it."""


class TableOptions(Protocol):
    """What is read here of the options of the tabular modality, which imports this file."""

    data: str
    test: str
    label: str
    group: str
    ignore: tuple[str, ...]
    categorical: tuple[str, ...]


@dataclass(kw_only=True, slots=True)
class TableSource:
    """Rows with their label, their splits and who belongs together."""

    table: Table
    """The columns that views may show."""
    label: np.ndarray | None
    """The label's column [S], None without one."""
    splits: dict[str, np.ndarray]
    """Rows of each split, int64."""
    groups: list[int]
    """The group of each row, -1 where rows have none."""
    copies: np.ndarray
    """Equal for rows whose columns in `table` are equal, int64 [S]."""


def read_source(cfg: TableOptions) -> TableSource:
    """Return the rows of `data` and of the test file, without the columns that no view shows.

    Raises `ValueError` where a file cannot be read or an option names a column that is not there.
    """
    table = read_table(cfg.data)
    count, test = len(table), cfg.test or beside(cfg.data)
    if test:
        table = appended(table, read_table(test, "modality.test"), f"modality.test={test!r}")
    own = [("group", cfg.group), *(("ignore", n) for n in cfg.ignore)]
    own += [("categorical", n) for n in cfg.categorical]
    if cfg.label == UNNAMED and UNNAMED not in table.columns:
        log.warning(
            "modality.data: no column is called %r, so all are read: if one is the label, name it by "
            "modality.label, else set that empty",
            UNNAMED,
        )
    else:
        own.append(("label", cfg.label))
    for option, name in own:
        if name and name not in table.columns:
            raise ValueError(f"modality.{option} names column {name!r}{suggest(name, table.columns)}")
    groups = schemas.words(table.columns.pop(cfg.group)) if cfg.group else None
    label = table.columns.pop(cfg.label, None) if cfg.label else None
    for name in cfg.ignore:
        table.columns.pop(name, None)
    copies = equal_rows(table)
    numbered = {g: i for i, g in enumerate(dict.fromkeys(groups or ()))}
    return TableSource(
        table=table,
        label=label,
        splits=draws.split(len(table), count, groups, copies),
        groups=[numbered[g] for g in groups] if groups else [-1] * len(table),
        copies=copies,
    )


def source_of(rows: Sequence[Mapping[str, Any]], cfg: TableOptions) -> TableSource:
    """Return mappings from column to cell as training rows without label."""
    names = dict.fromkeys(name for row in rows for name in row)
    own = {cfg.label, cfg.group, *cfg.ignore}
    columns = {n: as_column([row.get(n) for row in rows]) for n in names if n not in own}
    everyone, nobody = np.arange(len(rows)), np.arange(0)
    table = Table(columns)
    return TableSource(
        table=table,
        label=None,
        splits={"train": everyone, "val": nobody, "test": nobody, "all": everyone},
        groups=[-1] * len(rows),
        copies=equal_rows(table),
    )


def equal_rows(table: Table) -> np.ndarray:
    """Return int64 [S], equal for rows that are equal in all columns; one that cannot be read equals no other."""
    numbers = np.zeros(len(table), np.int64)
    numbers[[*table.broken]] = 1 + np.arange(len(table.broken))
    for column in table.columns.values():
        if column.dtype == np.float64:
            codes = np.unique(column, return_inverse=True)[1]
        else:
            known: dict[object, int] = {}
            codes = np.array([known.setdefault(cell, len(known)) for cell in column.tolist()], np.int64)
        # both are below S, so that their pairs have numbers of their own
        numbers = np.unique(numbers * (len(table) + 1) + codes, return_inverse=True)[1]
    return numbers


def as_column(values: Sequence[Any]) -> np.ndarray:
    """Return cells [S] as numbers, float64, where all known ones are numbers, else as text."""
    if all(isinstance(v, int | float | None) and not isinstance(v, bool) for v in values):
        return np.array([np.nan if v is None else v for v in values], np.float64)
    cells = np.empty(len(values), object)
    words = [str(int(v) if isinstance(v, float) and v.is_integer() else v).strip() for v in values]
    cells[:] = [None if v is None or w in schemas.MISSING else w for v, w in zip(values, words, strict=True)]
    return cells
