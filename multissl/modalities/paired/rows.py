"""Pairs by row: rows of one or several sources, what is equal among them numbered, split, and mixed.

They are listed once per process and read by position, so that any step of a run can be drawn again.
Shapes: n rows of a source.  State: none but what was read, and what was said.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from multissl.contract.data import Sample, Samples, Unreadable
from multissl.contract.modality import Modality
from multissl.modalities.paired.files import read_pairs
from multissl.modalities.paired.parts import Options, Pairs, Wanted, joined, one_text_per_row
from multissl.sources.base import Label, Listing
from multissl.sources.copies import Copies, joined_sets
from multissl.sources.kinds import counted
from multissl.sources.parquet import ParquetRows
from multissl.sources.payloads import Joined, Slice, Some
from multissl.sources.splits import classes_of, numbered, split_rows

log = logging.getLogger("multissl")
FILE_NAME = re.compile(
    r"(?i)\S*\.(jpe?g|png|webp|gif|bmp|tiff?|npy|wav|mp3|flac|ogg|mp4|webm|avi|mov)|[\w-]*\d{3,}[\w-]*"
)
"""A caption that tells nothing but where its file lay."""


class Record(NamedTuple):
    """The payload of a sample: what each stream has, None or nothing where it has none."""

    parts: Mapping[str, Any]
    row: int
    same: int
    """Equal for samples that are positives of each other."""
    group: int = -1
    drawn: str = ""
    """With join=label, the split that partners are drawn from."""


def one_place(parts: Mapping[str, Any], place: float) -> dict[str, float]:
    """The same place in time for streams that read one file, by stream; nothing for the others."""
    files = [(name, data) for name, data in parts.items() if isinstance(data, str | Slice)]
    return {name: place for name, data in files if any(n != name and d == data for n, d in files)}


def texts_of(members: Mapping[str, Modality], sample: Sample) -> dict[str, str]:
    """Return the texts of a row, by stream."""
    parts = sample.data.parts if isinstance(sample.data, Record) else {}
    texts = (name for name, member in members.items() if member.payload == "text")
    return {name: parts[name] for name in texts if isinstance(parts.get(name), str)}


def examined_parts(
    members: Mapping[str, Modality], sample: Sample
) -> tuple[dict[str, float], np.ndarray | None]:
    """Return what the parts of a row hold, and the first thumbnail there is; each part is read once.

    Of two parts that are counted alike the unit of the second is followed by its stream.
    """
    extent: dict[str, float] = {}
    pictures = []
    for name, part in sample.data.parts.items():
        if part is not None:
            held, picture = members[name].examined(Sample(part, sample.index))
            extent |= {f"{unit} of {name}" if unit in extent else unit: much for unit, much in held.items()}
            pictures.append(picture)
    if not pictures:
        raise Unreadable(sample.index, f"the row has none of {', '.join(members)}")
    return extent, next((picture for picture in pictures if picture is not None), None)


class Rows:
    """Rows of one or several sources."""

    def __init__(self, cfg: Any, forms: Mapping[str, str], members: Mapping[str, Modality]) -> None:
        """`forms`: file, text or cells, by stream; `cfg`: the options of `Paired`."""
        say_twins(members)
        self.cfg, self.forms = cfg, forms
        read = [name for name in forms if name not in cfg.prompts]
        found = [
            one_text_per_row(s, [n for n in read if forms[n] == "text"])
            for s in _read(cfg, forms, members, read)
        ]
        self.sources = [source for source, _ in found]
        pairs = joined(self.sources)
        self.ends = np.cumsum([0, *(len(s.tags) for s in self.sources)])
        self.labels, self.classes = (numbered if cfg.prompts else classes_of)(pairs.labels)
        parts = dict(pairs.parts)
        for name, templates in cfg.prompts.items():
            parts[name] = [self._prompt(templates, row, v) for row, v in enumerate(pairs.labels)]
        self.parts = {name: parts[name] for name in forms}
        made = {name: np.array([v is not None for v in parts[name]], dtype=bool) for name in cfg.prompts}
        self.has = {name: {**pairs.has, **made}[name] for name in forms}
        origin = np.concatenate(
            [np.asarray(at) + end for (_, at), end in zip(found, self.ends, strict=False)]
        )
        files = equal_rows([origin], {n: self.parts[n] for n in read if forms[n] == "file"})
        self.groups = groups_of(pairs.groups, files)
        known = [files, self.labels] if cfg.prompts else [files]
        self.same = equal_rows(known, self.parts) if cfg.data else _drawn()[-1]
        self.lacking = {name: ~flags & ~pairs.bad for name, flags in self.has.items()}
        self._check(pairs.found)
        if text := self._describe(pairs):
            say_once(cfg.data, text)
        self.copies = [
            Copies(*self._contents(np.arange(start, start + len(source.tags))))
            for source, start in zip(self.sources, self.ends, strict=False)
        ]
        self.readable = np.ones(len(self.labels), dtype=bool)
        if cfg.whole:
            self.readable = ~np.any([*self.lacking.values()], axis=0)
            self.lacking = {name: np.zeros_like(self.readable) for name in self.lacking}
        self.partial = frozenset(name for name, flags in self.lacking.items() if flags.any())
        self.grouped = bool((self.groups >= 0).any())

    def _prompt(self, templates: tuple[str, ...], row: int, label: Label) -> str | None:
        if label is None or label == "":
            return None
        return templates[row % len(templates)].format(called(self.cfg.names, label))

    def _check(self, found: str) -> None:
        """Say what is missing or strange; stop where nothing could be learned."""
        count = len(self.labels)
        for name, flags in self.has.items():
            if not flags.any():
                raise ValueError(
                    f"modality.data: none of {count} rows has a {name}, found {found}{self._way_out(name)}"
                )
        whole = np.sum([flags.astype(int) for flags in self.has.values()], axis=0)
        if not (whole > 1).any():
            raise ValueError(f"modality.data: no row has two of {', '.join(self.has)}, so there are no pairs")
        for name, form in self.forms.items():
            if form == "text" and name not in self.cfg.prompts:
                self._check_texts(name)

    def _describe(self, pairs: Pairs) -> str:
        """Return how many rows are whole, what the others lack, and which files are in none; "" where all are whole."""
        lacking = {name: int(flags.sum()) for name, flags in self.lacking.items() if flags.any()}
        bad = int(pairs.bad.sum())
        files = ", ".join(counted(pairs.left_out))
        if not lacking and not bad:
            return f"files that are in no pair: {files}" if files else ""
        whole = int(np.all([*self.has.values(), ~pairs.bad], axis=0).sum())
        parts = [f"{count:,} without {name}" for name, count in lacking.items()]
        fate = "they are not read (whole=True)" if self.cfg.whole else "they serve what does not ask for it"
        text = f"took {whole:,} of {len(self.labels):,} pairs whole"
        text += f"; {', '.join(parts)}: {fate}" if parts else ""
        text += f"; {bad:,} cannot be read" if bad else ""
        return f"{text}; files that are in no pair: {files}" if files else text

    def _check_texts(self, name: str) -> None:
        texts = [t for t in self.parts[name] if isinstance(t, str)]
        if len(texts) > 1 and len(set(texts)) == 1:
            raise ValueError(
                f"modality.data: every {name} is {texts[0][:60]!r}, nothing tells the pairs apart; name the right "
                "column with modality.columns"
            )
        if sum(bool(FILE_NAME.fullmatch(t.strip())) for t in texts) > len(texts) / 2:
            log.warning(
                "modality.data: most of the %s look like names of files, as %r; name the right column with "
                "modality.columns", name, texts[0][:60],
            )  # fmt: skip

    def _way_out(self, name: str) -> str:
        return (
            "; label them for modality.prompts"
            if name in self.cfg.prompts
            else "; name it with modality.columns"
        )

    def places(self, split: str) -> list[np.ndarray]:
        """The rows of a split that are to be read, source by source."""
        found, problems = [], []
        for source, start, copies in zip(self.sources, self.ends, self.copies, strict=False):
            groups = self.groups[start : start + len(source.tags)].tolist()
            listing = Listing(source.tags, source.labels, source.tags, groups, copies)
            try:
                rows = split_rows(listing, split) + start
                found.append(rows[self.readable[rows]])
            except ValueError as error:
                problems.append(str(error))
        if not found:
            raise ValueError(f"modality.data={self.cfg.data}: {problems[0]}")
        if self.cfg.whole and not sum(map(len, found)):
            raise ValueError(
                f"modality.whole=True: no row of the {split} split has {' and '.join(self.has)}; set it to False, or "
                "add such rows"
            )
        return found

    def split(self, split: str) -> RowsOf:
        """The samples of a split; of train, those of small sources several times where that is asked for."""
        places = self.places(split)
        if split == "train" and self.cfg.temperature > 1:
            counts = repeats([len(p) for p in places], self.cfg.temperature)
            places = [p[np.arange(c) * len(p) // c] for p, c in zip(places, counts, strict=True)]
        return RowsOf(self, np.concatenate(places))

    def contents(self, split: str) -> list[Sequence[Any]]:
        """What two rows have in common where one is a copy of the other."""
        return self._contents(np.concatenate(self.places(split)))

    def known_by(self, split: str) -> list[Sequence[Any]]:
        """Return the payloads of every stream that is read."""
        rows = np.concatenate(self.places(split))
        return [Some(self.parts[name], rows) for name in self.forms if name not in self.cfg.prompts]

    def _contents(self, rows: np.ndarray) -> list[Sequence[Any]]:
        """The files of some rows, any of which may make them copies; without files all that a row holds."""
        read = [name for name in self.forms if name not in self.cfg.prompts]
        files: list[Sequence[Any]] = [
            Some(self.parts[name], rows) for name in read if self.forms[name] == "file"
        ]
        return files or [[tuple(self.parts[name][row] for name in read) for row in rows.tolist()]]

    def training(self, name: str) -> Sequence[Any]:
        """The training payloads of a stream."""
        rows = np.concatenate(self.places("train"))
        return Some(self.parts[name], rows[self.has[name][rows]])


class RowsOf(Samples):
    """Some of the rows."""

    def __init__(self, source: Rows, rows: np.ndarray) -> None:
        self.source, self.rows = source, rows
        self.labels, self.classes = source.labels, source.classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row, source = int(self.rows[index]), self.source
        parts = {name: column[row] for name, column in source.parts.items()}
        label, group = int(source.labels[row]), int(source.groups[row])
        return Sample(Record(parts, row, int(source.same[row]), group), index, label, group)


def _read(
    cfg: Any, forms: Mapping[str, str], members: Mapping[str, Modality], read: list[str]
) -> list[Pairs]:
    if not cfg.data:
        return [_demo(cfg, forms, members)]
    wanted = {}
    for name in read:
        columns = (cfg.columns[name],) if name in cfg.columns else (name, *members[name].columns)
        if forms[name] == "text" and name not in cfg.columns:
            columns = (*columns, *(f"{c}s" for c in columns))  # several texts in a cell
        wanted[name] = Wanted(type(members[name]).__name__, members[name].suffixes, columns, forms[name])
    options, found = Options(wanted, cfg.label, cfg.group, cfg.only, cfg.delimiter, cfg.missing), []
    for path in cfg.data:
        try:
            found.append(read_pairs(path, options))
        except ValueError as error:
            raise ValueError(f"modality.data={path!r}: {error}") from None
    return found


def _demo(cfg: Any, forms: Mapping[str, str], members: Mapping[str, Modality]) -> Pairs:
    """The built-in pairs of pictures and captions; for other streams there is nothing built in."""
    files, texts = ([n for n in members if forms[n] == form] for form in ("file", "text"))
    fits = (
        len(members) == 2
        and len(files) == 1
        and len(texts) == 1
        and not cfg.prompts
        and ".png" in members[files[0]].suffixes
    )
    if not fits or cfg.columns or cfg.only:
        raise ValueError(
            f"modality.data is empty: there are built-in pairs of pictures and captions only, not of "
            f"{', '.join(members)}; give --data a folder, .tar, .parquet, .csv or .jsonl"
        )
    images, captions, labels, tags, _ = _drawn()
    full = np.ones(len(tags), dtype=bool)
    parts = {files[0]: images, texts[0]: captions}
    return Pairs(
        parts, labels, [None] * len(tags), tags, dict.fromkeys(parts, full), ~full, "the built-in pairs"
    )


@functools.cache
def _drawn() -> tuple[Any, ...]:
    from multissl.modalities.paired.demo import CLASSES, captioned

    parts = {word: captioned(word) for word in ("train", "val", "test")}
    images = np.concatenate([p.images for p in parts.values()])
    return (
        images,
        [t for p in parts.values() for t in p.texts],
        [CLASSES[k] for p in parts.values() for k in p.labels],
        [word for word, p in parts.items() for _ in p.texts],
        np.concatenate([p.contents for p in parts.values()]),
    )


_said: set[tuple[tuple[str, ...], str]] = set()


def say_once(data: tuple[str, ...], text: str) -> None:
    """Log what a source of pairs holds, once in a process: its rows are listed anew for the report."""
    if (data, text) not in _said:
        log.warning("modality.data=%s: %s", " ".join(data), text)
    _said.add((data, text))


def say_twins(members: Mapping[str, Modality]) -> None:
    """Say that a modality is paired with itself, which may be a slip."""
    by_kind: dict[type, list[str]] = {}
    for name, member in members.items():
        by_kind.setdefault(type(member), []).append(name)
    for kind, names in by_kind.items():
        if len(names) > 1:
            log.warning("%s are all %s: a modality is paired with itself", " and ".join(names), kind.__name__)


def called(names: Mapping[str, str], label: Label) -> str:
    """What a class is called in a text."""
    return names.get(str(label), str(label).replace("_", " "))


def repeats(counts: Sequence[int], temperature: float) -> list[int]:
    """Draws of an epoch from sources of n rows, in proportion to n^(1/temperature): each row of the largest once."""
    top = max(counts)
    return [round(top * (n / top) ** (1 / temperature)) for n in counts]


def equal_rows(known: Sequence[np.ndarray], parts: Mapping[str, Sequence[Any]]) -> np.ndarray:
    """int64 [n], equal for rows with a text, a file or one of the numbers `known` (-1: none) in common, directly or
    through others."""
    numbers = [[int(v) if v >= 0 else None for v in column] for column in known]
    read = [values for values in parts.values() if not isinstance(values, np.ndarray) and not _lazy(values)]
    columns = ([v if isinstance(v, str | int) else None for v in values] for values in read)
    return joined_sets([*numbers, *columns])


def groups_of(given: Sequence[Label], files: np.ndarray) -> np.ndarray:
    """int64 [n]: the groups of the data, -1 for none; where there are none, rows of one of `files` [n] are a group, so
    that nothing is held out beside texts of the same picture that are trained on."""
    shared = np.bincount(files)[files] > 1
    named = [None if g in (None, "") else f"{g}." for g in given]
    own = [f"file {f}" if s else None for f, s in zip(files.tolist(), shared.tolist(), strict=True)]
    return numbered([o if g is None else g for g, o in zip(named, own, strict=True)])[0]


def _lazy(values: Any) -> bool:
    """Whether items are read from a file when they are asked for."""
    if isinstance(values, Joined):
        return any(map(_lazy, values.parts))
    return _lazy(values.data) if isinstance(values, Some) else isinstance(values, ParquetRows)
