"""Pairs of files: the members of one key in an archive or a folder, in webdataset's naming.

`key.jpg`, `key.txt` and `key.json` belong together, a key being the name up to its first dot; what is called
`key.STREAM.jpg` belongs to that stream. The fields of the JSON member serve as columns.  State: none.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from multissl.limits import LABEL_BYTES
from multissl.modalities.paired.parts import Options, Pairs, cell_of, cells_of, made, texts_of_cell
from multissl.plain_data import parse_json
from multissl.sources.archives import members
from multissl.sources.encodings import decode_text, is_broken
from multissl.sources.folder import NAMELESS
from multissl.sources.names import first_dot, last_dot, read_folders
from multissl.sources.reading import first_line, read_file
from multissl.sources.rows import Bad
from multissl.sources.tables import TABLES, pick
from multissl.sources.walking import walk

FIELDS = (".json", ".cls", ".txt")
"""Members that say something of a key whatever streams there are."""


class Member(NamedTuple):
    """A file of an archive or a folder."""

    name: str
    data: Any
    read: Callable[[], bytes]


def archive_members(path: str) -> Iterator[Member]:
    """Yield the files of an archive."""
    for part in members(path):
        if part.name.endswith((".json", ".cls")):
            LABEL_BYTES.check(part.size, f"{part.name} of {path} has")
        yield Member(part.name, part, part.read)


def folder_members(root: str) -> Iterator[Member]:
    """The files below a folder, in order of their names."""
    for name in sorted(walk(root)):
        path = Path(root, name)
        yield Member(name.replace(os.sep, "/"), str(path), functools.partial(read_file, path))


def keyed(members: Iterator[Member], options: Options) -> Pairs:
    """A row for each key, the name up to its first dot, or to its last where that leads to what a stream takes."""
    keys: dict[str, dict[str, Member]] = {}
    known = {*FIELDS, *(suffix for want in options.streams.values() for suffix in want.suffixes)}
    named = {f".{stream}{suffix}" for stream in options.streams for suffix in known}
    dotted: list[Member] = []
    nameless = 0
    for member in members:
        key, suffix = first_dot(member.name)
        if not key.rpartition("/")[2] or not suffix:
            nameless += 1
            continue
        if suffix in known or suffix in named:
            keys.setdefault(key, {})[suffix] = member
        else:
            dotted.append(member)
    first = set(keys)
    for member in dotted:  # names with dots
        key, suffix = _last_dot(member.name, named)
        if first_dot(member.name)[0] in first or suffix not in known | named:
            key, suffix = first_dot(member.name)
        keys.setdefault(key, {})[suffix] = member
    rows: list[dict[str, Any]] = []
    fields: list[dict[str, Any] | Bad] = []
    for key, found in keys.items():
        record = _fields(found)
        fields.append(record)
        rows.append({} if isinstance(record, Bad) else _payloads(key, found, record, options))
    kinds = Counter(suffix for found in keys.values() for suffix in found)
    found = ", ".join(s for s, _ in kinds.most_common(8)) or "nothing"
    if any(count == 1 and suffix in TABLES for suffix, count in kinds.items()):
        found += " (a table of pairs is read where modality.data names it, not its folder)"
    left_out = Counter({suffix: count for suffix, count in kinds.items() if suffix not in known | named})
    kept = [i for i, row in enumerate(rows) if isinstance(fields[i], Bad) or _holds(row)]
    if not kept:  # what is missing is said of all keys
        left_out, kept = Counter(), [*range(len(rows))]
    names, alone = [*keys], {*range(len(rows))} - {*kept}
    left_out += Counter(suffix for i in alone for suffix in keys[names[i]] if suffix in known | named)
    classes, tags = read_folders([names[i].split("/") for i in kept])
    pairs = made([rows[i] for i in kept], [fields[i] for i in kept], options, found, classes, tags)
    return pairs._replace(left_out=left_out + Counter({NAMELESS: nameless}))


def _holds(row: dict[str, Any]) -> bool:
    """Return whether a row has a payload of any stream."""
    return any(payload is not None for payload in row.values())


def _last_dot(name: str, named: set[str]) -> tuple[str, str]:
    """Return the key and the suffix of a member cut at its last dot, that of a stream staying before it."""
    key, suffix = last_dot(name)
    above, stream = last_dot(key)
    return (above, stream + suffix) if stream + suffix in named else (key, suffix)


def _fields(found: dict[str, Member]) -> dict[str, Any] | Bad:
    """What the .json and .cls members of a key say."""
    record: dict[str, Any] = {}
    if ".cls" in found:
        record["label"] = found[".cls"].read().decode(errors="replace").strip()
    if ".json" in found:
        try:
            given = parse_json(found[".json"].read(), found[".json"].name)
        except (OSError, ValueError) as error:
            return Bad(first_line(error))
        if not isinstance(given, dict):
            return Bad(f"{found['.json'].name} is no JSON object")
        record |= given
    return record


def _payloads(key: str, found: dict[str, Member], record: dict[str, Any], options: Options) -> dict[str, Any]:
    """The payloads of a key by stream."""
    row: dict[str, Any] = {}
    suffix_of: dict[str, str] = {}
    for stream, want in options.streams.items():
        own = [f".{stream}{suffix}" for suffix in want.suffixes]
        suffix = next((s for s in (*own, *want.suffixes) if s in found), "")
        if want.form == "cells":
            row[stream] = cells_of(record, {}, options) or None
        elif suffix:
            twin = next((s for s, used in suffix_of.items() if used == suffix), "")
            if twin and options.streams[twin].kind == want.kind:
                raise ValueError(
                    f"{twin} and {stream} are both {want.kind}, and {key}{suffix} would be both: call the files "
                    f"{key}.{twin}{suffix} and {key}.{stream}{suffix}"
                )
            suffix_of[stream] = suffix
            row[stream] = _text(found[suffix], options) if want.form == "text" else found[suffix].data
        elif column := pick(record, want.columns) or next((c for c in want.columns if "." in c), ""):
            value = cell_of(record, column)
            row[stream] = texts_of_cell(value, options) if want.form == "text" else value or None
    return row


def _text(member: Member, options: Options) -> str | Bad | None:
    text = decode_text(member.read()).removeprefix("\ufeff").strip()
    if is_broken(text):
        return Bad(f"{member.name} is no UTF-8 text")
    return texts_of_cell(text, options)
