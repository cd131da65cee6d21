"""Which samples pairs are made of: rows of sources, or samples of several modalities that share a class.

`Rows` lists sources, numbers what is equal, splits and mixes them; `Same` joins the members' own data by class. Both
are made once a process and are read by position, so that any step of a run can be drawn again.
Shapes: n rows of a source.  State: none but what was read.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from multissl.modalities.base import Modality
from multissl.modalities.paired_files import Bad, Options, Pairs, Some, Wanted, joined, read_pairs
from multissl.modalities.readers import Label, Listing
from multissl.modalities.sources import _numbered, split_rows
from multissl.random import RowRandom
from multissl.types import Plans, Raw, Sample, Unreadable

log = logging.getLogger("multissl")
FILE_NAME = re.compile(
    r"(?i)\S*\.(jpe?g|png|webp|gif|bmp|tiff?|npy|wav|mp3|flac|ogg|mp4|webm|avi|mov)|[\w-]*\d{3,}[\w-]*"
)
"""A caption that tells nothing but where its file lay."""
CHOICE = 99
"""The line of random numbers that chooses partners, beside those of the members' views."""


class Record(NamedTuple):
    """The payload of a sample: what each stream has, None or nothing where it has none."""

    parts: Mapping[str, Any]
    row: int
    same: int
    """Equal for samples that are positives of each other."""
    group: int = -1
    drawn: str = ""
    """With join=label, the split that partners are drawn from."""


class Rows:
    """Rows of one or several sources."""

    def __init__(self, cfg: Any, forms: Mapping[str, str], members: Mapping[str, Modality]) -> None:
        """`forms`: file, text or cells, by stream; `cfg`: the options of `Paired`."""
        self.cfg, self.forms = cfg, forms
        read = [name for name in forms if name not in cfg.prompts]
        self.sources = _read(cfg, forms, members, read)
        pairs = joined(self.sources)
        self.ends = np.cumsum([0, *(len(s.tags) for s in self.sources)])
        self.labels, self.classes = _numbered(pairs.labels)
        if len(set(self.labels.tolist())) == 1 and not cfg.prompts:  # one class for all says nothing
            self.labels, self.classes = np.full(len(self.labels), -1), []
        self.groups = _numbered([None if g in (None, "") else str(g) + "." for g in pairs.groups])[0]
        parts = dict(pairs.parts)
        for name, templates in cfg.prompts.items():
            parts[name] = [self._prompt(templates, row, v) for row, v in enumerate(pairs.labels)]
        self.parts = {name: parts[name] for name in forms}
        made = {name: np.array([v is not None for v in parts[name]], dtype=bool) for name in cfg.prompts}
        self.has = {name: {**pairs.has, **made}[name] for name in forms}
        self.same = equal_rows(self.labels if cfg.prompts else None, self.parts) if cfg.data else _drawn()[-1]
        self._check(pairs.found)
        self.partial = frozenset(name for name, flags in self.has.items() if not flags.all())
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
            if not flags.all():
                log.warning(
                    "modality.data: %d of %d rows have no %s; they serve what does not ask for it",
                    count - int(flags.sum()), count, name,
                )  # fmt: skip
        whole = np.sum([flags.astype(int) for flags in self.has.values()], axis=0)
        if not (whole > 1).any():
            raise ValueError(f"modality.data: no row has two of {', '.join(self.has)}, so there are no pairs")
        for name, form in self.forms.items():
            if form == "text" and name not in self.cfg.prompts:
                self._check_texts(name)

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
        """The rows of a split, source by source."""
        found, problems = [], []
        for source, start in zip(self.sources, self.ends, strict=False):
            listing = Listing(source.tags, source.labels, source.tags, source.groups)
            try:
                found.append(split_rows(listing, split) + start)
            except ValueError as error:
                problems.append(str(error))
        if not found:
            raise ValueError(f"modality.data={self.cfg.data}: {problems[0]}")
        return found

    def split(self, split: str) -> RowsOf:
        """The samples of a split; of train, those of small sources several times where that is asked for."""
        places = self.places(split)
        if split == "train" and self.cfg.temperature > 1:
            counts = repeats([len(p) for p in places], self.cfg.temperature)
            places = [p[np.arange(c) * len(p) // c] for p, c in zip(places, counts, strict=True)]
        return RowsOf(self, np.concatenate(places))

    def training(self, name: str) -> Sequence[Any]:
        """The training payloads of a stream."""
        rows = np.concatenate(self.places("train"))
        return Some(self.parts[name], rows[self.has[name][rows]])


class RowsOf(Dataset[Sample]):
    """Some of the rows."""

    def __init__(self, source: Rows, rows: np.ndarray) -> None:
        self.source, self.rows = source, rows
        self.labels, self.classes = source.labels, source.classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row, source = int(self.rows[index]), self.source
        parts = {name: column[row] for name, column in source.parts.items()}
        for part in parts.values():
            if isinstance(part, Bad):
                raise Unreadable(index, part.reason)
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
        wanted[name] = Wanted(type(members[name]).__name__, members[name].suffixes, columns, forms[name])
    options, found = Options(wanted, cfg.label, cfg.group, cfg.only), []
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
    return Pairs(parts, labels, [None] * len(tags), tags, dict.fromkeys(parts, full), "the built-in pairs")


@functools.cache
def _drawn() -> tuple[Any, ...]:
    from multissl.modalities.paired_demo import CLASSES, captioned

    parts = {word: captioned(word) for word in ("train", "val", "test")}
    images = np.concatenate([p.images for p in parts.values()])
    return (
        images,
        [t for p in parts.values() for t in p.texts],
        [CLASSES[k] for p in parts.values() for k in p.labels],
        [word for word, p in parts.items() for _ in p.texts],
        np.concatenate([p.contents for p in parts.values()]),
    )


def called(names: Mapping[str, str], label: Label) -> str:
    """What a class is called in a text."""
    return names.get(str(label), str(label).replace("_", " "))


def repeats(counts: Sequence[int], temperature: float) -> list[int]:
    """Draws of an epoch from sources of n rows, in proportion to n^(1/temperature): each row of the largest once."""
    top = max(counts)
    return [round(top * (n / top) ** (1 / temperature)) for n in counts]


def equal_rows(labels: np.ndarray | None, parts: Mapping[str, Sequence[Any]]) -> np.ndarray:
    """int64 [n], equal for rows with a text, a file or a class of `labels` in common, directly or through others."""
    count = len(next(iter(parts.values())))
    root = list(range(count))

    def find(row: int) -> int:
        while root[row] != row:
            root[row] = root[root[row]]
            row = root[row]
        return row

    known = [] if labels is None else [[int(v) if v >= 0 else None for v in labels]]
    for values in [*known, *parts.values()]:
        first: dict[Any, int] = {}
        if not isinstance(values, np.ndarray) and count and not _lazy(values):
            for row in range(count):
                value = values[row]
                if isinstance(value, str | int):
                    a, b = find(row), find(first.setdefault(value, row))
                    root[max(a, b)] = min(a, b)
    return np.array([find(row) for row in range(count)], dtype=np.int64)


def _lazy(values: Any) -> bool:
    """Whether items are read from a file when they are asked for."""
    inside = getattr(values, "parts", None) or [getattr(values, "data", None)]
    return hasattr(values, "groups") or any(v is not None and v is not values and _lazy(v) for v in inside)


# ------------------------------------------------------------------------------------ joined by class


class Same:
    """Samples of the members' own data that share a class."""

    partial: frozenset[str] = frozenset()
    grouped = False

    def __init__(self, cfg: Any, members: Mapping[str, Modality]) -> None:
        self.cfg, self.members, self.first = cfg, members, next(iter(members))
        self.read = [name for name in members if name not in cfg.prompts]
        self._found: dict[tuple[str, str], tuple[Any, dict[str, list[int]]]] = {}
        self._broken: set[tuple[str, str, int]] = set()
        self.classes = self._common("train")
        if not self.classes:
            told = [f"{n}: {', '.join([*self.of(n, 'train')[1]][:5]) or 'none'}" for n in self.read]
            raise ValueError(
                f"modality.join=label: the members have no class in common ({'; '.join(told)}); give each its data "
                "with modality.members.NAME.data"
            )

    def of(self, name: str, split: str) -> tuple[Any, dict[str, list[int]]]:
        """A member's samples of a split, and their positions by class."""
        if (name, split) not in self._found:
            data: Any = self.members[name].dataset(split)
            by_class: dict[str, list[int]] = {}
            for place, label in enumerate(_class_names(data)):
                if label:
                    by_class.setdefault(label, []).append(place)
            self._found[name, split] = data, by_class
        return self._found[name, split]

    def _common(self, split: str) -> list[str]:
        shared = set.intersection(*(set(self.of(name, split)[1]) for name in self.read))
        return sorted(shared, key=lambda c: (len(c), c) if c.isdigit() else (0, c))

    def split(self, split: str) -> SameOf:
        """The first member's samples of the classes that all members have."""
        return SameOf(self, split, set(self._common(split)))

    def training(self, name: str) -> Sequence[Any] | None:
        """The texts made of classes; what members read themselves they measure themselves."""
        templates = self.cfg.prompts.get(name)
        return templates and [t.format(called(self.cfg.names, c)) for c in self.classes for t in templates]

    def draws(self, name: str) -> bool:
        """Whether a partner is drawn for a stream: all but the first."""
        return name != self.first

    def collate(
        self, name: str, samples: list[Sample], records: list[Record], plans: Plans, rng: RowRandom
    ) -> Raw:
        """What a member makes of a partner for every sample: one of its class, or the next that can be read."""
        draws, member = rng.fork(CHOICE).rand().tolist(), self.members[name]
        names = [self.classes[r.same] for r in records]
        if templates := self.cfg.prompts.get(name):
            texts = [templates[int(u * len(templates))] for u in draws]
            texts = [t.format(called(self.cfg.names, c)) for t, c in zip(texts, names, strict=True)]
            return member.collate(
                [Sample(t, s.index, s.label) for t, s in zip(texts, samples, strict=True)], plans, rng
            )
        while True:
            chosen = [
                self._partner(name, s.index, r.drawn, c, u)
                for s, r, c, u in zip(samples, records, names, draws, strict=True)
            ]
            try:
                return member.collate(chosen, plans, rng)
            except Unreadable as bad:
                split = next(r.drawn for s, r in zip(chosen, records, strict=True) if s.index == bad.index)
                self._mark(name, split, bad)

    def _partner(self, name: str, sample: int, split: str, label: str, draw: float) -> Sample:
        data, by_class = self.of(name, split)
        places = by_class[label]
        start = int(draw * len(places))
        for place in [*places[start:], *places[:start]]:
            if (name, split, place) not in self._broken:
                try:
                    return data[place]
                except Unreadable as bad:
                    self._mark(name, split, Unreadable(place, bad.reason))
        raise Unreadable(sample, f"no {name} of class {label} can be read")

    def _mark(self, name: str, split: str, bad: Unreadable) -> None:
        self._broken.add((name, split, bad.index))
        log.warning("%s %d cannot be read and is no partner of others: %s", name, bad.index, bad.reason)


class SameOf(Dataset[Sample]):
    """The first member's samples of some classes."""

    def __init__(self, source: Same, split: str, classes: set[str]) -> None:
        self.data, by_class = source.of(source.first, split)
        self.name, self.split_name, self.classes = source.first, split, source.classes
        number = {name: i for i, name in enumerate(source.classes)}
        pairs = sorted(
            (p, number[c]) for c, places in by_class.items() if c in classes & {*number} for p in places
        )
        self.places, self.labels = [p for p, _ in pairs], np.array([k for _, k in pairs], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        try:
            found = self.data[self.places[index]]
        except Unreadable as bad:
            raise Unreadable(index, bad.reason) from None
        label = int(self.labels[index])
        record = Record({self.name: found.data}, index, label, drawn=self.split_name)
        return Sample(record, index, label)


def _class_names(data: Any) -> list[str]:
    """The class of every sample by its name, "" without one."""
    labels, rows = getattr(data, "labels", None), getattr(data, "rows", None)
    if labels is not None:
        known = (labels if rows is None else labels[rows]).tolist()
    else:
        known = []
        for place in range(len(data)):
            known.append(-1)
            with contextlib.suppress(Unreadable):
                known[-1] = data[place].label
    classes = getattr(data, "classes", None)
    return ["" if k < 0 else classes[k] if classes else str(k) for k in known]
