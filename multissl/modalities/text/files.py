"""Where documents come from: lines or paragraphs of a text, JSON lines, tables, parquet, or a folder of files.

A document that cannot be read (it is empty, no UTF-8, or its line is no JSON) keeps its place and says why when it is
drawn. One of more than `LONGEST` characters becomes several, which stay in one split. Files are read anew for every
split.
State: none but what was read; texts are held in memory as tokens.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multissl.contract.data import Sample, Samples
from multissl.modalities.text.tokenizer import Tokens
from multissl.sources.base import Label, Listing
from multissl.sources.copies import IN_MEMORY, Copies, digest_of
from multissl.sources.names import LABELS, SPLIT_WORDS, pick_column, split_in_name
from multissl.sources.opening import open_source
from multissl.sources.payloads import Slice
from multissl.sources.reading import check_regular, file_errors, first_line, parquet_file, read_file
from multissl.sources.rows import Bad, Rows, csv_rows, json_rows
from multissl.sources.splits import classes_of, split_rows

FILES = (".txt", ".md", ".rst")
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
COLUMNS = ("text", "sentence", "content", "document", "body")
LONGEST = 100_000
"""The most characters that a document may have."""


class Texts(NamedTuple):
    """The documents of a split."""

    texts: list[str | Bad]
    labels: np.ndarray
    groups: np.ndarray
    classes: Sequence[str]


def read_texts(data: str, split: str, column: str = "", label: str = "") -> Texts:
    """Return the documents of a split of whatever `data` names.

    `column` and `label` are the columns of a table that are read, "" for those that are usual."""
    suffix = Path(data).suffix.lower()
    if data and (os.path.isdir(os.path.expanduser(data)) or suffix not in (*FILES, *TABLES)):
        source = open_source(data, split, FILES, "text")
        texts = [_file(source.data[row]) for row in source.rows.tolist()]
        return _cut(texts, source.labels[source.rows], source.groups[source.rows], source.classes)
    try:
        listing = _demo() if not data else _listing(os.path.expanduser(data), column, label)
        rows = split_rows(listing._replace(copies=Copies(_contents(listing.data), limit=IN_MEMORY)), split)
    except ValueError as error:
        raise ValueError(f"modality.data={data!r}: {error}") from None
    labels, classes = classes_of(listing.labels)
    nobody = np.full(len(rows), -1)
    return _cut([listing.data[row] for row in rows.tolist()], labels[rows], nobody, classes)


def _contents(texts: Sequence[str | Bad]) -> list[bytes | None]:
    """Return what is equal for equal documents, None for those that cannot be read."""
    return [None if isinstance(text, Bad) else digest_of(text) for text in texts]


def _demo() -> Listing:
    from multissl.modalities.text.demo import documents

    texts, fields = documents()
    return Listing(texts, fields, [""] * len(texts))


def _cut(texts: list[str | Bad], labels: np.ndarray, groups: np.ndarray, classes: Sequence[str]) -> Texts:
    """Return the documents cut into ones of `LONGEST` characters at most."""
    out: list[str | Bad] = []
    rows = []
    for row, text in enumerate(texts):
        parts = [text]
        if isinstance(text, str):
            parts = [text[i : i + LONGEST] for i in range(0, len(text), LONGEST)]
            parts = [p if p.strip() else Bad("holds no text") for p in parts] or [Bad("holds no text")]
        out += parts
        rows += [row] * len(parts)
    return Texts(out, labels[rows], groups[rows], classes)


def _file(data: Any) -> str | Bad:
    """Return the text of a file of a folder, of a member of a shard, or of a cell's bytes or text."""
    name = data.name if isinstance(data, Slice) else data if isinstance(data, str) else "a cell"
    try:
        if isinstance(data, str) and not os.path.isfile(data):
            if os.path.exists(data) and not os.path.isdir(data):
                check_regular(data)
            return data  # a cell that is text
        if isinstance(data, str):
            return _decoded(read_file(data), name)
        return _decoded(data.read() if isinstance(data, Slice) else data, name)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        return Bad(reason if name in reason else f"{name}: {reason}")


def _decoded(content: bytes, name: str) -> str | Bad:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Bad(f"{name} is no UTF-8 text (byte {error.start})")


def _listing(path: str, column: str, label: str) -> Listing:
    if not os.path.isfile(path):
        raise ValueError("no such file or folder; give a .txt, .jsonl, .csv or .parquet file, or a folder")
    suffix = Path(path).suffix.lower()
    beside = path if split_in_name(path) != "train" else re.sub(r"(?i)train(?=[^/\\]*$)", "test", path)
    parts = [_read(path, suffix, column, label)]
    if beside != path and os.path.isfile(beside):
        parts.append(_read(beside, suffix, column, label))
    texts, labels, tags = [], [], []
    for number, (part_texts, part_labels, words) in enumerate(parts):
        texts += part_texts
        labels += part_labels
        split = ("train" if len(parts) > 1 else "") if number == 0 else "test"
        tags += (
            [SPLIT_WORDS.get(word.lower(), "") for word in words] if any(words) else [split] * len(part_texts)
        )
    if not any(isinstance(t, str) for t in texts):
        raise ValueError(
            f"the file holds no text{': ' + next(t.reason for t in texts if isinstance(t, Bad)) if texts else ''}"
        )
    return Listing(texts, labels, tags)


def _read(path: str, suffix: str, column: str, label: str) -> tuple[list[str | Bad], list[Label], list[str]]:
    """Return the documents of a file, their labels, and the split that each row names."""
    if suffix in FILES:
        texts = list(_documents(Path(path).read_bytes(), Path(path).name))
        return texts, [None] * len(texts), [""] * len(texts)
    if suffix == ".parquet":
        file = parquet_file(path)
        known = [*file.schema_arrow.names]
        wanted, where = _columns(known, column, label)
        used: list[str] = [
            *dict.fromkeys([*wanted, *([where] if where else []), *(["split"] if "split" in known else [])])
        ]
        with file_errors(path, "parquet"):
            table = file.read(used).to_pydict()
        rows: Rows = [dict(zip(used, values, strict=True)) for values in zip(*table.values(), strict=True)]
    elif suffix in (".csv", ".tsv"):
        rows, known = csv_rows(path, "\t" if suffix == ".tsv" else ",")
        wanted, where = _columns(known, column, label)
    else:
        rows = json_rows(path)
        known = list(next((r for r in rows if isinstance(r, dict)), {}))
        wanted, where = _columns(known, column, label)
    texts = [r if isinstance(r, Bad) else _joined(r, wanted, i) for i, r in enumerate(rows)]
    labels = [r.get(where) if isinstance(r, dict) and where else None for r in rows]
    labels = [None if v is None else v if isinstance(v, int | str) else str(v) for v in labels]
    return texts, labels, [str(r.get("split") or "") if isinstance(r, dict) else "" for r in rows]


def _columns(known: list[str], column: str, label: str) -> tuple[list[str], str]:
    """Return the columns that hold the text, and the one with the label, "" for none."""
    twice = sorted({name for name in known if known.count(name) > 1})
    if twice:
        raise ValueError(f"two columns are called {twice[0]!r}: rename one")
    wanted = [c.strip() for c in column.split(",")] if column else [pick_column(known, COLUMNS)]
    for name in (*wanted, *([label] if label else [])):
        if name not in known:
            raise ValueError(f"there is no column {name!r}, only {', '.join(known) or 'none'}")
    return wanted, label or pick_column(known, LABELS, required=False)


def _joined(row: dict[str, Any], wanted: list[str], number: int) -> str | Bad:
    cells = [row.get(name) for name in wanted]
    missing = [n for n, c in zip(wanted, cells, strict=True) if not isinstance(c, str)]
    return Bad(f"row {number} has no text in {missing[0]!r}") if missing else " ".join(map(str, cells))


def _documents(content: bytes, name: str) -> Iterator[str | Bad]:
    """Yield the paragraphs of a text where blank lines part them, else its lines."""
    content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    parts = re.split(rb"\n(?:[ \t]*\n)+", content.strip())
    parts = parts if len(parts) > 1 else content.split(b"\n")
    for number, part in enumerate(p for p in parts if p.strip()):
        yield _decoded(part.strip(), f"document {number} of {name}")


class Passage(NamedTuple):
    """A document, and those that come after it until `length` tokens are reached."""

    own: Tokens
    following: tuple[Tokens, ...] = ()


class Documents(Samples):
    """The documents of a split as tokens."""

    def __init__(self, texts: Texts, tokens: list[Tokens], length: int) -> None:
        """Take the tokens of the readable documents, in order."""
        self.labels, self.groups, self.classes = texts.labels, texts.groups, texts.classes
        self.length = length
        bad = [isinstance(t, Bad) for t in texts.texts]
        self.reasons = {i: t.reason for i, t in enumerate(texts.texts) if isinstance(t, Bad)}
        self.place = np.cumsum(~np.array(bad, dtype=bool)) - 1  # among the readable ones
        self.ids = np.concatenate([t.ids for t in tokens])
        self.starts = np.concatenate([t.starts for t in tokens])
        self.ends = np.cumsum([len(t.ids) for t in tokens])
        self.characters = np.array([len(t) for t in texts.texts if isinstance(t, str)])
        """The number of characters of every readable document."""
        self.contents = _contents(texts.texts)
        """Equal for equal documents; None for those that cannot be read."""

    def __len__(self) -> int:
        return len(self.place)

    def class_numbers(self) -> list[int]:
        """Return the label of every document, -1 without one."""
        return self.labels.tolist()

    def tokens(self, number: int) -> Tokens:
        """Return the tokens of a readable document."""
        number %= len(self.ends)
        part = slice(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))
        return Tokens(self.ids[part], self.starts[part])

    def __getitem__(self, index: int) -> Sample:
        who = index, int(self.labels[index]), int(self.groups[index])
        if index in self.reasons:  # said when it is collated, as of a file that does not decode
            return Sample(Bad(self.reasons[index]), *who)
        number = int(self.place[index])
        own, following = self.tokens(number), []
        count = len(own.ids)
        while count < self.length:
            following.append(self.tokens(number + 1 + len(following)))
            count += len(following[-1].ids)
        return Sample(Passage(own, tuple(following)), *who)
