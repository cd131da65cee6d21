"""Shards: files that each hold many samples. Several of them, one after the other, are one source.

A word in a shard's name (train, val, test) is the split of its samples. A new format of shards derives from
`ShardSource`; it is then also found in folders and by patterns.  State: none.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from multissl.sources.base import (
    FileSource,
    Label,
    Listing,
    Request,
    Source,
    file_stamps,
    known_sources,
)  # fmt: skip
from multissl.sources.names import find_test_file, named_files, split_in_name
from multissl.sources.payloads import Joined
from multissl.sources.reading import check_regular


class ShardSource(FileSource):
    """A format of shards; the test shard that lies beside a train shard belongs to it."""

    @abstractmethod
    def read_shard(self, path: str, request: Request) -> tuple[Sequence[Any], Sequence[Label]]:
        """Return the payloads of one shard and their labels."""

    def splits(self, path: str, request: Request) -> Sequence[str]:
        """Return the split of every sample of a shard that was read; empty where it does not say, as by default."""
        return ()

    def beside(self, path: str, request: Request) -> Sequence[Mapping[str, Any]] | None:
        """Return the payloads of other columns of a shard that was read, row by row; by default there are none."""
        return None

    def left_out(self, path: str, request: Request) -> Counter[str]:
        """Return how many parts of a shard that was read are no samples, by the reason; by default none are."""
        return Counter()

    def stamp(self, request: Request) -> Hashable:
        """Return the size and the time of the shard and of its test shard."""
        return file_stamps([request.path, *find_test_file(request.path)])

    def list_samples(self, request: Request) -> Listing:
        """List the samples of the shard, then those of its test shard."""
        return list_shards([request.path, *find_test_file(request.path)], request)


class PatternSource(Source):
    """The shards that a pattern names: `data/*.tar`, `data/{00..12}.tar`, `data/{a,b}.parquet`."""

    def matches(self, path: str) -> bool:
        """Return whether the path is no file or folder itself but names some."""
        return not os.path.exists(path) and bool(named_files(path))

    def stamp(self, request: Request) -> Hashable:
        """Return the size and the time of every shard."""
        return file_stamps(named_files(request.path))

    def list_samples(self, request: Request) -> Listing:
        """List the samples of all shards in order of their names."""
        return list_shards(named_files(request.path), request)


def shard_formats() -> dict[str, ShardSource]:
    """Return the known formats of shards by suffix."""
    formats = [source for source in known_sources() if isinstance(source, ShardSource)]
    return {suffix: source for source in formats for suffix in source.suffixes}


def format_of(path: str, formats: Mapping[str, ShardSource]) -> ShardSource | None:
    """Return the format of a shard by its name, None where it is none."""
    suffix = max((each for each in formats if path.lower().endswith(each)), key=len, default="")
    return formats.get(suffix)


def list_shards(paths: Sequence[str], request: Request) -> Listing:
    """List the samples of several shards, one after the other; their formats may differ."""
    formats = shard_formats()
    data: list[Sequence[Any]] = []
    beside: list[Sequence[Mapping[str, Any]]] = []
    labels: list[Label] = []
    tags: list[str] = []
    left_out: Counter[str] = Counter()
    rows = False
    for path in paths:
        shards = format_of(path, formats)
        if shards is None:
            raise ValueError(f"{path} is no shard; a pattern names {' or '.join(formats)} files")
        check_regular(path)
        shard_data, shard_labels = shards.read_shard(path, request)
        left_out += shards.left_out(path, request)
        data.append(shard_data)
        columns = shards.beside(path, request)
        rows |= columns is not None
        beside.append(columns or [{}] * len(shard_data))
        labels += shard_labels
        tags += shards.splits(path, request) or [split_in_name(path)] * len(shard_labels)
    if not tags:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in left_out.most_common(8))
        found = f", found {left_out.total():,} members ({kinds})" if left_out else ""
        raise ValueError(
            f"no {request.plural} in {', '.join(paths[:3])}{found}; looked for {', '.join(request.suffixes)}"
        )
    return Listing(
        Joined(data), labels, tags, left_out=left_out, unit="members", beside=Joined(beside) if rows else None
    )
