"""The datasets of Hugging Face: `hf:NAME?revision=...` from the hub or its local copy, `hf:FOLDER` as it was saved.

No dataset runs code of its own. What lies on the hub is looked up once per process; local files are looked at again
when their names, sizes or times have changed.  State: none.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Hashable
from typing import Any
from urllib.parse import parse_qsl

from multissl import registry
from multissl.registry import suggest
from multissl.sources.base import Label, Listing, Request, Source, file_stamps, label_of
from multissl.sources.names import LABELS, SPLIT_WORDS, file_columns, pick_column
from multissl.sources.payloads import Items, Joined
from multissl.sources.tables import pick
from multissl.sources.walking import walk

SCHEME = "hf:"
OPTIONS = ("name", "revision", "split", "data_dir", "data_files")
"""What may follow `hf:NAME?`; other arguments of `load_dataset` are no choice of a recipe."""


class HuggingFaceSource(Source):
    """A dataset by its name on the hub, or by the path of a folder."""

    def matches(self, path: str) -> bool:
        """Return whether the path begins with `hf:`."""
        return path.startswith(SCHEME)

    def stamp(self, request: Request) -> Hashable:
        """Return the size and the time of every local file; () for a dataset of the hub."""
        name, options = _parse(request.path)
        places = [name, options.get("data_dir", ""), *glob.glob(options.get("data_files", ""))]
        files = [
            os.path.join(place, file) for place in places if os.path.isdir(place) for file in walk(place)
        ]
        return file_stamps([*sorted(files), *(place for place in places if os.path.isfile(place))])

    def list_samples(self, request: Request) -> Listing:
        """List the rows of all splits."""
        datasets = registry.require("datasets")
        loaded = _load(request.path, datasets)
        data: list[Any] = []
        labels: list[Label] = []
        tags: list[str] = []
        for split, part in (loaded if isinstance(loaded, dict) else {"": loaded}).items():
            options, names = request.table, part.column_names
            column = pick(names, (), options.column) or pick_column(names, file_columns(request.kind))
            label = pick(names, LABELS, options.label)
            if type(part.features[column]).__name__ == "Image":
                part = part.cast_column(column, datasets.Image(decode=False))
            data.append(Items(part.select_columns([column]), column))
            cells = list(part[label]) if label else [None] * len(part)
            labels += [label_of(cell) if isinstance(cell, list) else cell for cell in cells]
            tags += [SPLIT_WORDS.get(split.lower(), "")] * len(part)
        return Listing(Joined(data), labels, tags)


def _parse(path: str) -> tuple[str, dict[str, str]]:
    """Return the name or folder of a dataset, and the options it is loaded with."""
    name, _, query = path.removeprefix(SCHEME).partition("?")
    options = dict(parse_qsl(query))
    for option in options:
        if option not in OPTIONS:
            raise ValueError(f"a hub dataset has no option {option!r}{suggest(option, OPTIONS)}")
    return name, options


def _load(path: str, datasets: Any) -> Any:
    name, options = _parse(path)
    if any(os.path.exists(os.path.join(name, file)) for file in ("dataset_dict.json", "state.json")):
        return datasets.load_from_disk(name)
    return datasets.load_dataset(name, **options, trust_remote_code=False)
