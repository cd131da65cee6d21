"""Columns of tables: objects, or arrow arrays, which several threads work on at once.

Shapes: S cells.  State: none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


def objects(cells: Sequence[Any]) -> np.ndarray:
    """Return cells as an array of objects [S]."""
    made = np.empty(len(cells), object)
    made[:] = cells
    return made


def side_by_side(function: Callable[[Any], Any], columns: Iterable[Any]) -> list[Any]:
    """Return what a function makes of each column; arrow works on several at once."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, columns))


def object_cells(column: Any) -> np.ndarray:
    """Return a column of a table of text as objects [S]."""
    return column if isinstance(column, np.ndarray) else column.to_numpy(zero_copy_only=False)
