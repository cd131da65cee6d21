"""Parquet shards: a column of bytes, of structs of bytes and path, or of paths, and a column of labels.

Cells are read by row group when a sample is drawn, and the last row groups read stay in memory, up to `CACHED` bytes
per shard and process.
"""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from multissl import registry
from multissl.sources.base import Label, Request, label_of
from multissl.sources.names import LABELS, file_columns, pick_column
from multissl.sources.payloads import cell_payload
from multissl.sources.reading import file_errors, parquet_file
from multissl.sources.shards import ShardSource
from multissl.sources.tables import pick

CACHED = 256 << 20
"""Bytes of row groups that a shard keeps in memory."""


class ParquetSource(ShardSource):
    """The rows of a parquet file."""

    suffixes = (".parquet",)

    def read_shard(self, path: str, request: Request) -> tuple[Sequence[Any], Sequence[Label]]:
        """Return the cells of the column that is called like the kind of sample, and the labels."""
        file = parquet_file(path)
        columns = file.schema_arrow.names
        options = request.table
        column = pick(columns, (), options.column) or pick_column(columns, file_columns(request.kind))
        label = _label(file.schema_arrow, column, options.label)
        with file_errors(path, "parquet"):
            labels = file.read([label])[label].to_pylist() if label else [None] * file.metadata.num_rows
        labels = [label_of(cell) if isinstance(cell, list) else cell for cell in labels]
        counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        return ParquetRows(path, column, counts), labels

    def beside(self, path: str, request: Request) -> Sequence[Mapping[str, Any]]:
        """Return the cells of all columns, such as masks, row by row."""
        file = parquet_file(path)
        counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        return RowCells({name: ParquetRows(path, name, counts) for name in file.schema_arrow.names})


def _label(schema: Any, column: str, option: str) -> str:
    """Return the column of the classes, "" for none: one whose cells hold files, as masks, is none.

    Raises a ValueError where an option names such a one.
    """
    types = registry.require("pyarrow.types")
    files = (types.is_struct, types.is_binary, types.is_large_binary)
    plain = [
        field.name for field in schema
        if not any(is_file(field.type.value_type if types.is_list(field.type) else field.type) for is_file in files)
    ]  # fmt: skip
    label = pick(schema.names if option else plain, LABELS, option)
    if label in schema.names and label not in plain:
        raise ValueError(
            f"modality.label={option}: the column holds {schema.field(label).type}, no classes; if these are masks, "
            f"leave the option out and set modality.masks={column}={label}"
        )
    return label


class RowCells(Sequence[Mapping[str, Any]]):
    """Rows as mappings from column to payload."""

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, row: Any) -> Any:
        return Cells(self.columns, row)


class Cells(Mapping[str, Any]):
    """A row, of which a cell is read when it is asked for."""

    def __init__(self, columns: Mapping[str, Sequence[Any]], row: int) -> None:
        self.columns, self.row = columns, row

    def __getitem__(self, name: str) -> Any:
        return self.columns[name][self.row]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


class ParquetRows(Sequence[Any]):
    """The cells of a parquet column, read by row group."""

    def __init__(self, path: str, column: str, counts: list[int]) -> None:
        """Take the number of rows in every row group as `counts`."""
        self.path, self.column, self.counts = path, column, counts
        self.ends = list(itertools.accumulate(counts))
        self.groups: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "groups": OrderedDict()}

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, row: Any) -> Any:
        number = int(np.searchsorted(self.ends, row, side="right"))
        if number not in self.groups:
            table = parquet_file(self.path)
            with file_errors(self.path, "parquet"):
                self.groups[number] = table.read_row_group(number, columns=[self.column])[self.column]
            while len(self.groups) > 1 and sum(g.nbytes for g in self.groups.values()) > CACHED:
                self.groups.popitem(last=False)
        self.groups.move_to_end(number)
        place = row - self.ends[number] + self.counts[number]
        if place >= len(self.groups[number]):
            raise ValueError(
                f"{self.path} cannot be read as parquet (row group {number} has {len(self.groups[number]):,} rows of "
                f"{self.counts[number]:,}): is the file whole?"
            )
        cell = self.groups[number][place].as_py()
        return cell_payload(cell, os.path.dirname(self.path))
