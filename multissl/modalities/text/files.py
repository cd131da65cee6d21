"""Where documents come from: lines or paragraphs of a text, JSON lines, tables, parquet, or a folder of files.

A document that cannot be read (it is empty, no UTF-8, or its line is no JSON) keeps its place and says why when it is
drawn. One of more than `LONGEST` characters becomes several, which stay in one split. Files are read anew for every
split.
State: none but what was read; texts are held in memory as tokens.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multissl.contract.data import Sample, Samples
from multissl.modalities.text.markup import PAGE, without_markup
from multissl.modalities.text.tokenizer import Tokens
from multissl.sources.base import Label, Listing, TableOptions, label_of
from multissl.sources.copies import IN_MEMORY, Copies, digest_of
from multissl.sources.encodings import decode_text, encoding_of, is_broken
from multissl.sources.json_tables import chat
from multissl.sources.missing import is_missing
from multissl.sources.names import LABELS, SPLIT_WORDS, pick_column
from multissl.sources.opening import open_source
from multissl.sources.payloads import Slice
from multissl.sources.reading import check_regular, first_line, read_file, unpacked
from multissl.sources.remote import local_place
from multissl.sources.rows import Bad
from multissl.sources.splits import classes_of, split_rows
from multissl.sources.table_files import table_files
from multissl.sources.tables import TABLES, OpenTable, open_table, table_suffix

log = logging.getLogger("multissl")
FILES = (".txt", ".md", ".rst", ".html", ".htm")
COLUMNS = (
    "text", "sentence", "content", "document", "body", "messages", "conversations", "conversation", "caption",
    "transcript", "transcription", "review", "comment", "description", "abstract", "title",
)  # fmt: skip
"""What columns of texts are called, the preferred name first."""
LONGEST = 100_000
"""The most characters that a document may have."""


class Texts(NamedTuple):
    """The documents of a split."""

    texts: list[str | Bad]
    labels: np.ndarray
    groups: np.ndarray
    classes: Sequence[str]


class Columns(NamedTuple):
    """How a table is read: options, "" for what is usual."""

    column: str = ""
    """Those that hold the text, joined by commas."""
    label: str = ""
    delimiter: str = ""
    missing: tuple[str, ...] = ()


def read_texts(
    data: str,
    split: str,
    column: str = "",
    label: str = "",
    delimiter: str = "",
    missing: tuple[str, ...] = (),
) -> Texts:
    """Return the documents of a split of whatever `data` names; the other options are those of a table."""
    columns = Columns(column, label, delimiter, missing)
    place = local_place(data)
    suffix = table_suffix(place)
    files = os.path.isdir(place) and not _holds_tables_alone(place)
    if data and (files or not (os.path.isdir(place) or suffix in (*FILES, *TABLES))):
        source = open_source(
            data, split, FILES, "text", table=TableOptions(column, label, delimiter, missing)
        )
        texts = [_file(source.data[row]) for row in source.rows.tolist()]
        return _cut(texts, source.labels[source.rows], source.groups[source.rows], source.classes)
    try:
        listing = _demo() if not data else _listing(place, columns)
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
    return _document(decode_text(content).removeprefix("\ufeff"), name)


def _document(text: str, name: str) -> str | Bad:
    """Return a document without markup; one that is no UTF-8, or says only that it is missing, cannot be read."""
    if is_broken(text):
        place = next(place for place, character in enumerate(text) if is_broken(character))
        return Bad(f"{name} is no UTF-8 text (byte {len(text[:place].encode())})")
    return Bad(f"{name} holds no text") if is_missing(text) else without_markup(text)


def _holds_tables_alone(folder: str) -> bool:
    """Return whether the rows of tables are the documents of a folder, not the files in it."""
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    plain = [
        name for name in names if name.lower().endswith(FILES) or os.path.isdir(os.path.join(folder, name))
    ]
    return bool(table_files(folder)) and not plain


def _listing(path: str, columns: Columns) -> Listing:
    files = table_files(path, () if os.path.isdir(path) else FILES)
    if not files:
        raise ValueError(
            "no such file or folder; give a .txt, .jsonl, .csv or .parquet file, a folder, or a pattern as "
            "'part-*.jsonl'"
        )
    texts, labels, tags = [], [], []
    for file, split in files:
        part_texts, part_labels, words = _read(file, columns)
        texts += part_texts
        labels += part_labels
        tags += (
            [SPLIT_WORDS.get(word.lower(), "") for word in words] if any(words) else [split] * len(part_texts)
        )
    if not any(isinstance(t, str) for t in texts):
        raise ValueError(
            f"the file holds no text{': ' + next(t.reason for t in texts if isinstance(t, Bad)) if texts else ''}"
        )
    return Listing(texts, labels, tags)


def _read(path: str, columns: Columns) -> tuple[list[str | Bad], list[Label], list[str]]:
    """Return the documents of a file, their labels, and the split that each row names."""
    if table_suffix(path) in FILES:
        texts = list(_documents(unpacked(path), Path(path).name))
        return texts, [None] * len(texts), [""] * len(texts)
    table = open_table(path, delimiter=columns.delimiter, missing=columns.missing)
    wanted, label = _columns(table, columns)
    cells = [table.cells(name).tolist() for name in wanted]
    texts = [_joined(row, wanted, number) for number, row in enumerate(zip(*cells, strict=True))]
    for row, reason in table.broken.items():
        texts[row] = Bad(reason)
    labels = table.cells(label).tolist() if label else [None] * len(texts)
    labels = [label_of(cell) for cell in labels]
    split = table.pick(("split",))
    words = table.cells(split).tolist() if split else [None] * len(texts)
    return texts, labels, ["" if word is None else str(word) for word in words]


def _columns(table: OpenTable, columns: Columns) -> tuple[list[str], str]:
    """Return the columns that hold the text, and the one with the label, "" for none."""
    wanted = [table.pick((), name.strip()) for name in columns.column.split(",")] if columns.column else []
    wanted = wanted or [pick_column(list(table.columns), COLUMNS)]
    return wanted, table.pick(LABELS, columns.label)


def _joined(cells: Sequence[Any], names: Sequence[str], number: int) -> str | Bad:
    """Return the text of a row, the cells one after the other; a conversation is the text of its messages."""
    texts = [cell if isinstance(cell, str) else chat(cell) for cell in cells]
    missing = [name for name, text in zip(names, texts, strict=True) if text is None]
    if not missing:
        return without_markup(" ".join(map(str, texts)))
    if (
        len(cells) > 1
        and len(missing) < len(cells)
        and all(cell is None for cell, text in zip(cells, texts, strict=True) if text is None)
    ):
        return without_markup(" ".join(text for text in texts if text is not None))
    return Bad(f"row {number} holds no text in {missing[0]!r}")


def _documents(content: bytes, name: str) -> Iterator[str | Bad]:
    """Yield the paragraphs of a text where blank lines part them, else its lines; a page of HTML is one document."""
    if encoding_of(content) == "cp1252":
        log.warning("%s: is no UTF-8 and is read as latin-1 (Windows-1252)", name)
    text = decode_text(content).removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").strip()
    if PAGE.match(text):
        text = without_markup(text)
    parts = re.split(r"\n(?:[ \t]*\n)+", text)
    parts = parts if len(parts) > 1 else text.split("\n")
    for number, part in enumerate(p for p in parts if p.strip()):
        yield _document(part.strip(), f"document {number} of {name}")


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
