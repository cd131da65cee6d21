"""The base class of this room: a source lists the samples that lie at a path.

A listing says where the data of every sample lies and what is known of it; the data itself is read later, one sample at
a time and by the modality. Sources hold no state: listings are kept by `opening`, as long as the stamp stays equal.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from multissl import registry
from multissl.sources.copies import Copies

Label = int | str | tuple[int | str, ...] | None
"""The class or the group of a sample: a number, a name, None where it has none; or its classes, where it may have
several."""


def label_of(cell: Any) -> Label:
    """Return the label that a cell of a table holds; a list is the classes of a sample, each once."""
    if isinstance(cell, list | tuple):
        return tuple(dict.fromkeys(each if isinstance(each, int) else str(each) for each in cell))
    return cell if cell is None or isinstance(cell, int) else str(cell)


class TableOptions(NamedTuple):
    """How the rows of a table are read; "" leaves to the table what is usual."""

    column: str = ""
    """The column that holds the samples."""
    label: str = ""
    """The column of the classes."""
    delimiter: str = ""
    """What parts the cells of a table of text."""
    missing: tuple[str, ...] = ()
    """More words that stand for a missing cell."""


USUAL = TableOptions()


class Request(NamedTuple):
    """What a modality looks for, and where."""

    path: str
    suffixes: tuple[str, ...]
    """The file types of its samples in lower case, the preferred one first: `(".png", ".jpg")`."""
    kind: str
    """What a sample is called: the column of a table that holds it."""
    table: TableOptions = USUAL

    @property
    def plural(self) -> str:
        """Return what messages call several samples."""
        return "recordings" if self.kind == "audio" else f"{self.kind}s"


class Listing(NamedTuple):
    """All samples of a source: their data by position, and what is known of each."""

    data: Sequence[Any]
    labels: Sequence[Label]
    tags: Sequence[str]
    """The split of every sample: train, val, test, or "" where the source says nothing."""
    groups: Sequence[Label] | None = None
    copies: Copies | None = None
    """Which samples are equal, so that a split that is drawn keeps them together; by default, as their data are."""
    left_out: Mapping[str, int] = MappingProxyType({})
    """How many files, members or rows are no samples, by the reason: a suffix, or what is wrong with them."""
    unit: str = "files"
    """What is counted there."""
    beside: Sequence[Mapping[str, Any]] | None = None
    """The payloads of other columns, row by row, of samples that are rows."""


class Source(ABC):
    """A format or a place that samples lie in; it is made without arguments and holds no state."""

    @abstractmethod
    def matches(self, path: str) -> bool:
        """Return whether this source opens what a path names."""

    @abstractmethod
    def stamp(self, request: Request) -> Hashable:
        """Return what the listing depends on, such as the names, sizes and times of files, without opening them.

        The listing is kept and used again as long as the stamp stays equal.
        """

    @abstractmethod
    def list_samples(self, request: Request) -> Listing:
        """List all samples; raise a ValueError that says what was found instead where there are none."""


class FileSource(Source):
    """A source that is one file, known by its suffix."""

    suffixes: ClassVar[tuple[str, ...]]
    """The suffixes it opens in lower case: `(".csv", ".tsv")`."""

    def matches(self, path: str) -> bool:
        """Return whether the path is a file with one of the suffixes."""
        return os.path.exists(path) and not os.path.isdir(path) and path.lower().endswith(self.suffixes)

    def stamp(self, request: Request) -> Hashable:
        """Return the size and the time of the file."""
        return file_stamps([request.path])


def known_sources() -> Iterator[Source]:
    """Yield every registered source, ours first; those of other packages are imported when their turn comes."""
    for name in registry.names("sources"):
        cls: type[Source] | None = registry.resolve_or_warn(name, "sources")
        if cls is not None:
            yield cls()


def file_stamps(paths: Iterable[str]) -> tuple[tuple[str, int, int], ...]:
    """Return path, size in bytes and time of the last change in nanoseconds of every file."""
    stats = ((path, os.stat(path)) for path in paths)
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)


def suffix_of(path: str) -> str:
    """Return the suffix of a file name in lower case, with its dot; "" for none."""
    return os.path.splitext(path)[1].lower().removesuffix(".")
