"""The rows that a table's options name, or that were handed over, apart from what is fitted to them.

Shapes: S rows.  State: none.
"""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from multissl.modalities.tabular import schema as schemas
from multissl.modalities.tabular import views as draws
from multissl.modalities.tabular.tables import Table, appended, read_splits, read_table
from multissl.registry import suggest
from multissl.sources.missing import MISSING
from multissl.sources.names import normal_name
from multissl.sources.tables import say_once

log = logging.getLogger("multissl")
UNNAMED = "target"
"""The label's column where no option names it; a table may lack it."""
LIKELY = (
    "target", "label", "class", "targets", "labels", "classes", "y", "outcome", "response", "fine_label",
    "coarse_label",
)  # fmt: skip
"""What columns are called that are to be predicted, the likeliest first, in the spelling of `normal_name`."""
PART = re.compile(r"(?:label|target)s?_.+|.+_(?:label|target|class)")
"""Names of which a part says so, as target_name."""

ANSWERS = ("survived", "diagnosis", "species", "churn", "churned", "exited", "fraud", "is_fraud")
"""What a column is called that is to be predicted where none is called like a label."""
LAST = re.compile(r"(?:.+_)?(?:income|salary|wage|price|quality|grade|rating|medv|default)")
"""What it is called where it is the last one, too."""


class TableOptions(Protocol):
    """What is read here of the options of the tabular modality, which imports this file."""

    data: str
    test: str
    label: str
    group: str
    ignore: tuple[str, ...]
    categorical: tuple[str, ...]
    inputs: tuple[str, ...]
    delimiter: str
    missing: tuple[str, ...]


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
    table, counts = _rows(cfg)
    own = [("group", cfg.group), *(("ignore", n) for n in cfg.ignore)]
    own += [("categorical", n) for n in cfg.categorical] + [("inputs", n) for n in cfg.inputs]
    if cfg.label != UNNAMED:
        own.append(("label", cfg.label))
    for option, name in own:
        if name and name not in table.columns:
            raise ValueError(f"modality.{option} names column {name!r}{suggest(name, table.columns)}")
    label, leaks = _labels(table, cfg)
    groups = schemas.words(table.columns.pop(cfg.group)) if cfg.group else None
    answers = table.columns.pop(label, None) if label else None
    for name in (*cfg.ignore, *leaks):
        table.columns.pop(name, None)
    if not table.columns:
        not_inputs = ", ".join(
            map(repr, dict.fromkeys(n for n in (label, cfg.group, *cfg.ignore, *leaks) if n))
        )
        raise ValueError(
            f"modality.data={cfg.data!r}: no column is left to be an input beside {not_inputs}: leave out fewer, "
            "--modality.label '' makes the label an input"
        )
    copies = equal_rows(table)
    splits = draws.split(counts, groups, copies)
    if not len(splits["train"]):
        raise ValueError(
            f"modality.data={cfg.data!r}: of {counts[0]:,} rows none is left to train on, as one in ten is for "
            "validation and one for the test: give more rows that are not equal, or of more groups"
        )
    numbered = {g: i for i, g in enumerate(dict.fromkeys(groups or ()))}
    return TableSource(
        table=table,
        label=answers,
        splits=splits,
        groups=[numbered[g] for g in groups] if groups else [-1] * len(table),
        copies=copies,
    )


def _rows(cfg: TableOptions) -> tuple[Table, tuple[int, int, int]]:
    """Return the rows of all files, and how many are of files for train, val and test, in this order."""
    parts = read_splits(cfg.data, "modality.data", cfg.delimiter, cfg.missing)
    if cfg.test:
        parts["test"] = read_table(cfg.test, "modality.test", cfg.delimiter, cfg.missing)
    table = parts["train"]
    for split in ("val", "test"):
        if split in parts:
            given = split == "test" and cfg.test
            option = (
                f"modality.test={cfg.test!r}" if given else f"modality.data={cfg.data!r}, file for {split}"
            )
            table = appended(table, parts[split], option)
    train, val, test = (len(parts[split]) if split in parts else 0 for split in ("train", "val", "test"))
    return table, (train, val, test)


def _labels(table: Table, cfg: TableOptions) -> tuple[str, list[str]]:
    """Return the column of the label, "" for none, and others that look like one and are no input; both are said."""
    if not cfg.label:
        return "", []
    away = {cfg.group, *cfg.ignore, *cfg.inputs}
    spelt = {normal_name(name): name for name in reversed(table.columns) if name not in away}
    likely = [spelt[name] for name in LIKELY if name in spelt]
    likely += [name for place, name in spelt.items() if PART.fullmatch(place) and name not in likely]
    last = normal_name(next(reversed(table.columns), ""))
    likely = (
        likely or [spelt[n] for n in (*ANSWERS, *([last] if LAST.fullmatch(last) else [])) if n in spelt][:1]
    )
    label = cfg.label if cfg.label in table.columns else next(iter(likely), "")
    leaks = [name for name in likely if name != label]
    if not label:
        log.warning(
            "modality.data: no column is called %r, so all are read: if one is the label, name it by "
            "modality.label, else set that empty",
            UNNAMED,
        )
        return "", []
    if leaks:
        say_once(
            cfg.data,
            f"modality.data: {label!r} is the label; {', '.join(map(repr, leaks))} look like labels, too, and are no "
            f"input: --modality.inputs {' '.join(map(shlex.quote, leaks))} makes them inputs, --modality.label NAME "
            "names another label",
        )
    elif label != cfg.label:
        say_once(
            cfg.data,
            f"modality.data: column {label!r} is the label and no input: --modality.label NAME names another, "
            "--modality.label '' makes it an input",
        )
    return label, leaks


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
    cells[:] = [None if v is None or w in MISSING else w for v, w in zip(values, words, strict=True)]
    return cells
