"""The tables that one name stands for: a file and the test file beside it, a pattern as `part-*.csv`, or a folder.

The name of each says its split, as `sst2-dev.parquet` does.  State: none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from multissl.sources.names import find_test_file, named_files, natural_key, split_in_name
from multissl.sources.tables import TABLES, table_suffix


def table_files(place: str, more: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return the tables of a place, each with its split: "" for all where no name says val or test; [] for none.

    A pattern that names a file of another kind is refused, in a folder such files are passed over. `more` are suffixes
    that hold rows, too.
    """
    known = (*TABLES, *more)
    if os.path.isfile(place):
        paths = [place, *(find_test_file(place) if split_in_name(place) == "train" else ())]
    elif os.path.isdir(place):
        names = sorted((name for name in os.listdir(place) if not name.startswith(".")), key=natural_key)
        paths = [os.path.join(place, name) for name in names if table_suffix(name) in known]
    else:
        paths = sorted(named_files(place), key=natural_key)
        if odd := next((path for path in paths if table_suffix(path) not in known), ""):
            raise ValueError(f"the pattern names {odd}, which is no table; known: {', '.join(TABLES)}")
    splits = [split_in_name(path) for path in paths]
    if not {"val", "test"} & {*splits}:
        return [(path, "") for path in paths]
    if "train" not in splits and "" not in splits:
        raise ValueError(
            f"{', '.join(paths)} say that they are for {' and '.join(sorted({*splits}))}: give one to train on"
        )
    return [(path, split or "train") for path, split in zip(paths, splits, strict=True)]
