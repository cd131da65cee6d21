"""Open whatever a path names: the first registered source that knows it lists its samples, once while nothing changes.

A listing is kept for the next split as long as the source's stamp stays equal, so that a folder that has grown is seen
in the same process.  State: the listings kept.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable

from multissl.sources.base import (
    USUAL,
    FileSource,
    Listing,
    Request,
    Source,
    TableOptions,
    known_sources,
    suffix_of,
)
from multissl.sources.copies import Copies
from multissl.sources.kinds import describe_left_out
from multissl.sources.reading import check_regular
from multissl.sources.remote import local_place
from multissl.sources.splits import SplitSamples, select_split

log = logging.getLogger("multissl")
KEPT = 8
"""Listings that a process keeps, the last ones used."""
_kept: OrderedDict[tuple[type[Source], Request], tuple[Hashable, Listing]] = OrderedDict()


def open_source(
    path: str,
    split: str,
    suffixes: tuple[str, ...],
    kind: str = "image",
    *,
    option: str = "modality.data",
    relabel: Callable[[Listing], Listing] | None = None,
    table: TableOptions = USUAL,
) -> SplitSamples:
    """Return the samples of a split of whatever `path` names: "train", "val", "test", or "all" but a test split.

    `suffixes` are the file types looked for, the preferred one first; `kind` is the column of a table that holds them;
    `table` says how a table is read; `relabel` may change what is known of the samples before they are split; `option`
    is named in errors.
    """
    try:
        listing = list_source(Request(local_place(path), suffixes, kind, table))
        return select_split(relabel(listing) if relabel else listing, split)
    except ValueError as error:
        raise ValueError(f"{option}={path!r}: {error}") from None


def list_source(request: Request) -> Listing:
    """Return the listing of what a request names, a kept one where nothing has changed since it was made."""
    if os.path.exists(request.path) and not os.path.isdir(request.path):
        check_regular(request.path)
    source = find_source(request)
    key, stamp = (type(source), request), source.stamp(request)
    if key not in _kept or _kept[key][0] != stamp:
        listing = source.list_samples(request)
        if listing.left_out:
            said = describe_left_out(len(listing.tags), listing.left_out, listing.unit)
            log.warning("modality.data=%r: %s", request.path, said)
        # what is found equal is kept with the listing, for the next split
        _kept[key] = stamp, listing if listing.copies else listing._replace(copies=Copies(listing.data))
    _kept.move_to_end(key)
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return _kept[key][1]


def find_source(request: Request) -> Source:
    """Return the first registered source that opens a path; raise a ValueError where none does."""
    source = next((each for each in known_sources() if each.matches(request.path)), None)
    if source is not None:
        return source
    if not os.path.exists(request.path):
        raise ValueError(
            f"no such file or folder; give a folder of {request.plural}, a list, a table or shards"
        )
    files = [each for each in known_sources() if isinstance(each, FileSource)]
    known = ", ".join(["a folder", *(suffix for each in files for suffix in each.suffixes)])
    raise ValueError(f"a {suffix_of(request.path) or 'nameless'} file is no source; known: {known}")
