"""Words that stand for a missing cell, the same for every table: pandas' own, a question mark, and those of an option.

State: none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MISSING = frozenset(
    {
        "", "?", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A",
        "NA", "NULL", "NaN", "NaT", "None", "n/a", "nan", "null",
    }
)  # fmt: skip
"""What stands in a cell that is missing."""


def missing_words(more: Iterable[str] = ()) -> frozenset[str]:
    """Return the words that stand for a missing cell, with those of an option."""
    return MISSING | {word.strip() for word in more}


def is_missing(cell: Any, words: frozenset[str] = MISSING) -> bool:
    """Return whether a cell is missing: None, a NaN of any kind, or a text that is one of the words."""
    if isinstance(cell, str):
        return cell.strip() in words
    if cell is None:
        return True
    try:
        return bool(cell != cell)  # NaN and NaT alone differ from themselves
    except (ValueError, TypeError):  # an array, or pandas' NA, which is neither equal nor different
        return type(cell).__name__ == "NAType"
