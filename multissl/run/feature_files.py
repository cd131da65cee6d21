"""Files of features: tables (.parquet, .csv), arrays (.npy, .safetensors) with a table of their rows beside them.

A writer takes rows as they come and keeps none, so a file of any length needs the memory of a few rows.
Shapes: S samples, D width, N tokens.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multissl import registry

Line = Mapping[str, Any]
"""What is said of a sample."""
Write = Callable[[Sequence[Line], np.ndarray], None]
"""Adds lines of words [S] and their features float16 or float32, [S, D] or [S, N, D]."""
TABLES, ARRAYS = (".parquet", ".csv"), (".npy", ".safetensors")
DTYPES = {"float32": "F32", "float16": "F16"}
"""Names of types in safetensors."""


def kind_of(path: Path) -> str:
    """Return the suffix of a file of features, in small letters."""
    return path.suffix.lower()


def rows_file(out: Path) -> Path:
    """Return the table that says of each row of an array which sample it is."""
    return out.with_name(f"{out.name}.rows.csv")


@contextlib.contextmanager
def csv_table(path: Path, names: Sequence[str]) -> Iterator[Write]:
    """Write a table of words and features; of features of no width the words alone."""
    with path.open("w", newline="") as file:
        writer, header = csv.writer(file), list[str]()

        def write(lines: Sequence[Line], features: np.ndarray) -> None:
            if not header:
                header.extend([*names, *(f"f{i}" for i in range(features.shape[1]))])
                writer.writerow(header)
            for line, numbers in zip(lines, features.tolist(), strict=True):
                writer.writerow([*(line.get(name, "") for name in names), *(f"{x:.7g}" for x in numbers)])

        yield write


@contextlib.contextmanager
def parquet_table(path: Path, names: Sequence[str]) -> Iterator[Write]:
    """Write a table of words and features."""
    pyarrow, parquet = registry.require("pyarrow"), registry.require("pyarrow.parquet")
    with contextlib.ExitStack() as opened:
        made: list[Any] = []

        def write(lines: Sequence[Line], features: np.ndarray) -> None:
            if not made:
                words = [pyarrow.field(name, pyarrow.string()) for name in names]
                kind = pyarrow.from_numpy_dtype(features.dtype)
                numbers = [pyarrow.field(f"f{i}", kind) for i in range(features.shape[1])]
                schema = pyarrow.schema([*words, *numbers])
                made.append(opened.enter_context(parquet.ParquetWriter(path, schema)))
            texts = [[line.get(name) for line in lines] for name in names]
            made[0].write_table(pyarrow.table([*texts, *features.T.copy()], schema=made[0].schema))

        yield write


@contextlib.contextmanager
def npy_array(path: Path, rows: int) -> Iterator[Write]:
    """Write an array of so many rows."""
    with path.open("wb") as file:

        def write(_lines: Sequence[Line], features: np.ndarray) -> None:
            if not file.tell():
                np.lib.format.write_array_header_1_0(file, {
                    "descr": np.lib.format.dtype_to_descr(features.dtype), "fortran_order": False,
                    "shape": (rows, *features.shape[1:]),
                })  # fmt: skip
            file.write(np.ascontiguousarray(features).tobytes())

        yield write


@contextlib.contextmanager
def safetensors_array(path: Path, rows: int) -> Iterator[Write]:
    """Write a tensor `features` of so many rows; the package itself wants all of it in memory."""
    with path.open("wb") as file:

        def write(_lines: Sequence[Line], features: np.ndarray) -> None:
            if not file.tell():
                shape = [rows, *features.shape[1:]]
                size = int(np.prod(shape)) * features.dtype.itemsize
                about = {"dtype": DTYPES[features.dtype.name], "shape": shape, "data_offsets": [0, size]}
                header = json.dumps({"features": about}).encode()
                header += b" " * (-len(header) % 8)
                file.write(len(header).to_bytes(8, "little") + header)
            file.write(np.ascontiguousarray(features).tobytes())

        yield write
