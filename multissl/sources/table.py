"""A list or table that names one file per row: .txt, .csv or .tsv; names are relative to the list.

A list holds one name per line, and lines that start with # are comments. A table holds the names in a column called
like the kind of sample (`image`), or `path` or `file`; columns `label`, `split` and `group` are used where they exist.
State: none.
"""

from __future__ import annotations

import csv
import os

from multissl.sources.base import FileSource, Listing, Request, suffix_of
from multissl.sources.names import LABELS, PATHS, SPLIT_WORDS, pick_column
from multissl.sources.payloads import Paths


class TableSource(FileSource):
    """The files that a list or a table names."""

    suffixes = (".txt", ".csv", ".tsv")

    def list_samples(self, request: Request) -> Listing:
        """List the named files; whether they exist is seen when they are read."""
        columns = _read_columns(request)
        names = columns.get(pick_column(list(columns), (request.kind, *PATHS)), [])
        if not names:
            raise ValueError(f"the list names no {request.kind}s")
        nothing = [""] * len(names)
        labels = columns.get(pick_column(list(columns), LABELS, required=False), nothing)
        tags = [SPLIT_WORDS.get(word.lower(), "") for word in columns.get("split", nothing)]
        root = os.path.dirname(os.path.abspath(request.path))
        return Listing(Paths(root, names), labels, tags, columns.get("group"))


def _read_columns(request: Request) -> dict[str, list[str]]:
    """Return the cells of every column, by its name in lower case; a list has the one column of its kind."""
    suffix = suffix_of(request.path)
    with open(request.path, newline="", encoding="utf-8-sig") as file:
        if suffix == ".txt":
            lines = [line.strip() for line in file]
            return {request.kind: [line for line in lines if line and not line.startswith("#")]}
        rows = list(csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ","))
    return {name.lower(): [row[name] or "" for row in rows] for name in (rows[0] if rows else {})}
