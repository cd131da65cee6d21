"""The datasets of torchvision: `torchvision:CIFAR10?root=FOLDER&download=1`, what follows the ? being their arguments.

They are downloaded only where `download=1` says so. Those of a fixed size are looked at again when an entry of the root
folder has changed, those that are a folder of pictures when any name below it has.  State: none.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Hashable
from typing import Any
from urllib.parse import parse_qsl

from multissl.registry import suggest
from multissl.sources.base import Label, Listing, Request, Source, file_stamps
from multissl.sources.payloads import Items, Joined
from multissl.sources.walking import walk

SCHEME = "torchvision:"
UNPICKLES = ("LSUN",)
"""Datasets that unpickle a file of their folder without comparing its digest: they would run whatever it says."""


class TorchvisionSource(Source):
    """A dataset of torchvision by its name."""

    def matches(self, path: str) -> bool:
        """Return whether the path begins with `torchvision:`."""
        return path.startswith(SCHEME)

    def stamp(self, request: Request) -> Hashable:
        """Return what lies in the root folder; () for a dataset without one."""
        from torchvision.datasets import DatasetFolder

        build, options = _parse(request.path)
        root = str(options.get("root", ""))
        if not os.path.isdir(root):
            return ()
        if issubclass(build, DatasetFolder):
            return tuple(sorted(walk(root)))
        return file_stamps(sorted(entry.path for entry in os.scandir(root)))

    def list_samples(self, request: Request) -> Listing:
        """List the items of all splits that the dataset knows."""
        build, options = _parse(request.path)
        data: list[Any] = []
        labels: list[Label] = []
        tags: list[str] = []
        for split, argument in _splits(build).items():
            try:
                part = build(**{**argument, **options})
            except (ValueError, RuntimeError, TypeError) as error:
                if isinstance(error, ValueError) and "split" in argument and data:
                    continue  # this dataset knows no such split
                raise ValueError(f"{error} (options follow a ?, as in ?root=FOLDER&download=1)") from None
            labels += _labels(part)
            tags += [split] * len(part)
            data.append(Items(part))
        return Listing(Joined(data), labels, tags)


def _parse(path: str) -> tuple[type, dict[str, Any]]:
    """Return the class that a path names, and the arguments it is made with."""
    from torchvision import datasets

    name, _, query = path.removeprefix(SCHEME).partition("?")
    known = [each for each in datasets.__all__ if isinstance(getattr(datasets, each), type)]
    if name in UNPICKLES:
        raise ValueError(
            f"torchvision's {name} reads a pickled index, which could run any code, and is not opened: give a folder, "
            "tar shards or parquet"
        )
    if name not in known:
        raise ValueError(f"torchvision has no dataset {name!r}{suggest(name, known)}")
    options = {key: int(text) if text.isdigit() else text for key, text in parse_qsl(query)}
    return getattr(datasets, name), options


def _splits(build: type) -> dict[str, dict[str, Any]]:
    """Return the argument that selects each split of a dataset; one nameless split where it takes none."""
    accepted = inspect.signature(build).parameters
    if "train" in accepted:
        return {"train": {"train": True}, "test": {"train": False}}
    if "split" in accepted:
        return {split: {"split": split} for split in ("train", "val", "test")}
    return {"": {}}


def _labels(part: Any) -> list[Label]:
    """Return the label of every item where the dataset holds them in one place, else None for each."""
    for labels in (getattr(part, "targets", None), getattr(part, "_labels", None)):
        if labels is not None and len(labels):
            return [int(label) for label in labels]
    return [None] * len(part)
