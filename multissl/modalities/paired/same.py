"""Pairs by class: one of the first member's samples, and others of its class drawn anew each time it is shown.

State: none but what was read, and which partners could not be.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multissl.contract.data import Raw, Sample, Samples, Unreadable
from multissl.contract.modality import Modality
from multissl.contract.plans import Plans
from multissl.modalities.paired.rows import Record, called, say_twins
from multissl.random import RowRandom

log = logging.getLogger("multissl")


class Same:
    """Samples of the members' own data that share a class."""

    partial: frozenset[str] = frozenset()
    grouped = False

    def __init__(self, cfg: Any, members: Mapping[str, Modality]) -> None:
        say_twins(members)
        self.cfg, self.members, self.first = cfg, members, next(iter(members))
        self.read = [name for name in members if name not in cfg.prompts]
        self._found: dict[tuple[str, str], tuple[Any, dict[str, list[int]]]] = {}
        self._broken: set[tuple[str, str, int]] = set()
        self.classes = self._common("train")
        if not self.classes:
            classes = [f"{n}: {', '.join([*self.of(n, 'train')[1]][:5]) or 'none'}" for n in self.read]
            raise ValueError(
                f"modality.join=label: the members have no class in common ({'; '.join(classes)}); give each its data "
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
        draws, member = rng.fork("partner").rand().tolist(), self.members[name]
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


class SameOf(Samples):
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


def _class_names(data: Samples) -> list[str]:
    """The class of every sample by its name, "" without one."""
    numbers = data.class_numbers()
    return ["" if k < 0 else data.classes[k] if data.classes else str(k) for k in numbers]
