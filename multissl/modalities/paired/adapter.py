"""Pairs: several modalities side by side, each feeding a stream, a sample being what belongs together.

Any registered modality can be a member; its single stream is called by the name it has here, and one modality may be
there twice under two names. A sample holds a payload for each stream, as rows of a file tell (paired_files), or it is
joined by class: one of the first member's samples and others of the same class, drawn anew each time, from the other
members' own sources. A stream that a row lacks is filled with the first readable training payload and marked in
`Views.present`, so that nothing depends on batches or ranks; with `whole` such rows are not read. Equal captions (and
equal files) share a sample_id: they are positives of each other, as CLIP-like losses want it. Streams that read one
file, its sound and its frames, show the same time in clean and global views, where their views last as long. Sources of
uneven size are mixed by a temperature: source i is drawn in proportion to n_i^(1/temperature), through an epoch in
which the rows of small ones are repeated.
Shapes: B samples of this rank, V views, R = V*B rows.  State: what the members have fitted.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from multissl.contract.data import Batch, Raw, Sample, Samples, Unreadable, Views
from multissl.contract.learning import Figure
from multissl.contract.modality import Modality, Need
from multissl.contract.plans import CLEAN, Plans, StreamSpec
from multissl.contract.preparation import Preparation
from multissl.modalities.image.adapter import Image
from multissl.modalities.paired.rows import Record, Rows, examined_parts, one_place, texts_of
from multissl.modalities.paired.same import Same
from multissl.modalities.text.adapter import Text
from multissl.modalities.views import group_ids
from multissl.random import RowRandom
from multissl.sources.rows import Bad


def _small() -> dict[str, Modality.Config]:
    return {
        "image": Image.Config(size=32, local_size=16, patch=4),
        "text": Text.Config(length=16, local_length=8, pack=False, vocab=400),
    }


class Paired(Modality):
    """Samples of several modalities."""

    plural = "pairs"

    @dataclass(kw_only=True, slots=True)
    class Config(Modality.Config):
        """Options of pairs."""

        members: dict[str, Modality.Config] = field(default_factory=_small)
        """The modalities by the name of their stream. Their own `data` is read with join=label only."""
        data: tuple[str, ...] = ()
        """One or several sources: a folder, .tar, .parquet (a pattern names several), .csv or .jsonl. Empty: the
        built-in pairs of pictures and captions."""
        join: Literal["row", "label"] = "row"
        """row: what belongs together stands in one row, or under one key, of `data`; label: samples of one class of the
        members' own data belong together."""
        temperature: float = 1.0
        """How evenly several sources are drawn: 1 as they are large, more evens them out."""
        prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)
        """By stream, texts such as "a photo of a {}." which are made of the row's class instead of being read."""
        names: dict[str, str] = field(default_factory=dict)
        """What classes are called in prompts, where that is not as the data has it: "3": "three"."""
        columns: dict[str, str] = field(default_factory=dict)
        """By stream, the column or JSON field that holds it; empty: as the stream is called, or the usual names."""
        label: str = ""
        """The column that holds the class; empty: label, class or target where there is one."""
        group: str = ""
        """The column whose equal values stay in one split and are no negatives; empty: group where there is one."""
        whole: bool = False
        """Read only the rows that have every stream; otherwise a row serves with what it has."""
        only: dict[str, str] = field(default_factory=dict)
        """Rows are read whose column has this value: "label": "1"."""
        delimiter: str = ""
        """What parts the cells of a .csv file, one character or tab, semicolon, bar; empty: found in the file."""
        missing: tuple[str, ...] = ()
        """More words that stand for a missing cell, beside NA, NaN, null, None and what else pandas takes for one."""

        def __post_init__(self) -> None:
            if len(self.members) < 2:
                raise ValueError(
                    f"modality.members holds {', '.join(self.members) or 'nothing'}: want two or more streams; one "
                    "modality may be there twice under two names"
                )
            if not self.temperature >= 1:
                raise ValueError(f"modality.temperature={self.temperature}: want 1 or more")
            for option in ("prompts", "columns"):
                for name in getattr(self, option):
                    if name not in self.members:
                        raise ValueError(
                            f"modality.{option} names {name!r}, no stream; there are {', '.join(self.members)}"
                        )
            for name, templates in self.prompts.items():
                if not templates or any("{}" not in t for t in templates):
                    raise ValueError(
                        f"modality.prompts.{name}={templates}: want texts with {{}} for the class in them"
                    )
            if set(self.prompts) == set(self.members):
                raise ValueError(
                    "modality.prompts makes every stream of the class: nothing is left to be read"
                )
            if self.join == "label" and (self.data or next(iter(self.members)) in self.prompts):
                raise ValueError(
                    "modality.join=label reads the members' own data (modality.members.NAME.data), and its first "
                    "member is no prompt; for a source of pairs set modality.join=row"
                )

        def open_sizes(self) -> list[str]:
            """Return `members` where the sizes of one are left to its data."""
            return ["members"] if any(member.open_sizes() for member in self.members.values()) else []

        def with_sizes(self, saved: Mapping[str, Any]) -> Self:
            """Return the options whose members have the sizes of a recipe's file."""
            known = saved.get("members", {})
            return self.replace(members={n: m.with_sizes(known.get(n, {})) for n, m in self.members.items()})

        def with_tokens(self, sides: Mapping[str, int]) -> Self:
            """Return the options whose members have tokens of the sides of their streams."""
            return self.with_sizes({"members": {name: {"patch": side} for name, side in sides.items()}})

    cfg: Config

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.members: dict[str, Modality] = {name: member.build() for name, member in cfg.members.items()}
        for name, member in self.members.items():
            if member.mixing_option and cfg.join == "row":
                raise ValueError(
                    f"modality.members.{name}.{member.mixing_option} mixes with samples of the member's own data, "
                    "which pairs do not read: set it to 0"
                )
        self._pairs: Rows | Same | None = None
        self._fitted = False
        self._partial: frozenset[str] | None = None
        self._grouped = False
        self._fillers: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pairs": None}  # a worker lists its samples by itself

    def check_plans(self, plans: Plans) -> None:
        """Ask the member of every stream."""
        for stream, plan in plans.items():
            try:
                self.members[stream].check_plans({self._native(stream): plan})
            except ValueError as error:
                raise ValueError(str(error).replace("modality.", f"modality.members.{stream}.")) from None

    def provides(self, stream: str) -> frozenset[Need]:
        """Return what the member of that name provides."""
        return self.members[stream].provides(self._native(stream))

    def lacking(self) -> dict[str, tuple[int, int]]:
        """How many rows lack a stream, and of how many, by stream."""
        source = self.pairs()
        if isinstance(source, Same):
            return {}
        counts = {name: int(flags.sum()) for name, flags in source.lacking.items()}
        return {name: (missing, len(source.labels)) for name, missing in counts.items() if missing}

    @property
    def whole_option(self) -> str:
        """`whole`, where rows are read."""
        return "whole" if self.cfg.join == "row" else ""

    def pairs(self) -> Rows | Same:
        """The samples of all splits, listed once."""
        if self._pairs is None:
            forms = {name: member.payload for name, member in self.members.items()}
            self._pairs = (
                Same(self.cfg, self.members)
                if self.cfg.join == "label"
                else Rows(self.cfg, forms, self.members)
            )
        return self._pairs

    def _native(self, name: str) -> str:
        return next(iter(self.members[name].streams()))

    def _spec(self, name: str) -> StreamSpec:
        found = self.members[name].streams()
        if len(found) != 1:
            raise ValueError(f"modality.members.{name} feeds {', '.join(found)}: a member feeds one stream")
        return next(iter(found.values()))

    def fit(self, payloads: Sequence[Any] | None = None) -> Self:
        """Let the members measure the training payloads, and note which streams may be missing.

        Pairs are fitted to their own source alone.
        """
        if payloads is not None:
            raise ValueError("modality=paired is fitted to its own source: call fit() without payloads")
        self._learn()
        return self

    def _fit(self) -> None:
        """Let the members measure the training payloads, where they do not know what they need."""
        if not self._fitted:
            self._fitted = True
            for name, member in self.members.items():
                member.fit(self.pairs().training(name))
            self.cfg = self.cfg.replace(members={name: member.cfg for name, member in self.members.items()})
            lines = {
                n: m.sizing.replace("--modality.", f"--modality.members.{n}.")
                for n, m in self.members.items()
            }
            drawn = self.cfg.join == "row" and not self.cfg.data
            self.sizing = (
                "" if drawn else "; ".join(f"{name}: {line}" for name, line in lines.items() if line)
            )

    def streams(self) -> dict[str, StreamSpec]:
        """A stream for each member."""
        return {name: self._spec(name) for name in self.members}

    def dataset(self, split: str) -> Samples:
        """The samples of a split: "train", "val", "test" or "all"; of join=label the splits of the first member."""
        self._learn()
        return self.pairs().split(split)

    def contents(self, split: str) -> list[Sequence[Any]]:
        """Return the files of the rows, or all that they hold; of join=label what the first member says."""
        self._learn()
        source = self.pairs()
        if isinstance(source, Same):
            return self.members[source.first].contents(split)
        return source.contents(split) if self.cfg.data else []

    def known_by(self, split: str) -> list[Sequence[Any]]:
        """Return what every stream of a row is; of join=label what the first member's samples are."""
        self._learn()
        source = self.pairs()
        if isinstance(source, Same):
            return self.members[source.first].known_by(split)
        return source.known_by(split) if self.cfg.data else []

    def thumbnail(self, sample: Sample) -> np.ndarray | None:
        """Return the thumbnail of the first stream that has one."""
        if not isinstance(sample.data, Record):
            return None
        parts = ((self.members[name], part) for name, part in sample.data.parts.items() if part is not None)
        pictures = (member.thumbnail(Sample(part, sample.index)) for member, part in parts)
        return next((picture for picture in pictures if picture is not None), None)

    def extent(self, sample: Sample) -> dict[str, float]:
        """Return what the parts hold."""
        return self.examined(sample)[0]

    def examined(self, sample: Sample) -> tuple[dict[str, float], np.ndarray | None]:
        """Return what the parts hold, and the first thumbnail there is; each part is read once."""
        if not isinstance(sample.data, Record) or self.cfg.join == "label":
            return super().extent(sample), self.thumbnail(sample)
        return examined_parts(self.members, sample)

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        """What the members make of their payloads, by stream; which are there, and who the samples are.

        A sample with none of the streams asked for is unreadable. Where it is one stream, plain payloads will do.
        """
        self._learn()
        records = [self._record(s, plans) for s in samples]
        raw: dict[str, Any] = {"streams": {}, "present": {}}
        draws = rng.fork("place").rand().tolist()
        places = [one_place(r.parts, draw) for r, draw in zip(records, draws, strict=True)]
        for name, member in self.members.items():
            if name not in plans:
                continue
            asked, lines = {self._native(name): plans[name]}, rng.fork(f"member {name}")
            parts = [r.parts.get(name) for r in records]
            source = self._pairs
            if isinstance(source, Same) and source.draws(name) and any(r.drawn for r in records):
                raw["streams"][name] = source.collate(name, samples, records, asked, lines)
            else:
                given = [
                    Sample(self._filler(name) if p is None else p, s.index, s.label, place=where.get(name))
                    for s, p, where in zip(samples, parts, places, strict=True)
                ]
                raw["streams"][name] = member.collate(given, asked, lines)
                here = torch.tensor([p is not None for p in parts])
                if len(plans) > 1 and (name in (self._partial or ()) or not here.all()):
                    raw["present"][name] = here
        raw["sample_id"] = torch.tensor([r.same for r in records])
        if self._grouped:
            raw["group_id"] = group_ids((r.group, r.row) for r in records)
        return raw

    def _learn(self) -> None:
        """What must not depend on a batch: which streams may be missing, and whether there are groups."""
        if self._partial is None:
            self._fit()
            self._partial, self._grouped = self.pairs().partial, self.pairs().grouped
        if self.cfg.join == "label":
            self.pairs()

    def _record(self, sample: Sample, plans: Plans) -> Record:
        data = sample.data
        if not isinstance(data, Record):
            by_stream = data if isinstance(data, Mapping) and set(data) <= set(self.members) else None
            if not by_stream and len(plans) > 1:
                raise Unreadable(
                    sample.index, f"want a mapping with {' and '.join(plans)}, got {type(data).__name__}"
                )
            parts = dict(by_stream) if by_stream else {next(iter(plans)): data}
            data = Record(parts, sample.index, sample.index)
        for part in data.parts.values():
            if isinstance(part, Bad):
                raise Unreadable(sample.index, part.reason)
        if not data.drawn and not any(data.parts.get(name) is not None for name in plans):
            raise Unreadable(sample.index, f"row {data.row} has no {' and no '.join(plans)}")
        return data

    def _filler(self, name: str) -> Any:
        """The first training payload of a stream that can be read."""
        if name not in self._fillers:
            asked, rng = {self._native(name): CLEAN}, RowRandom((0, 0), 0, 1, 1)
            reason = "there is none"
            for data in self.pairs().training(name) or ():
                try:
                    self.members[name].collate([Sample(data, 0)], asked, rng)
                except Unreadable as bad:
                    reason = bad.reason if reason == "there is none" else reason
                    continue
                self._fillers[name] = data
                break
            else:
                raise ValueError(f"modality.data: no {name} of the training rows can be read: {reason}")
        return self._fillers[name]

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        """The members' views under the names of their streams."""
        batch: list[Views] = []
        for name, member in self.members.items():
            if name not in plans:
                continue
            found = member.views(
                raw["streams"][name], {self._native(name): plans[name]}, rng.fork(f"member {name}")
            )
            ids = {"sample_id": raw["sample_id"], "group_id": raw.get("group_id")}
            batch += [replace(v, stream=name, present=raw["present"].get(name), **ids) for v in found]
        return Batch(batch)

    def describe(self, sample: Sample) -> dict[str, str]:
        """The texts of a row, by stream, so that features of one stream can be paired with them again."""
        return texts_of(self.members, sample)

    def _own(self, views: Views) -> Views:
        return replace(views, stream=self._native(views.stream))

    def preparation(self, stream: str) -> Preparation:
        """Return that of the member."""
        return self.members[stream].preparation(self._native(stream))

    def baselines(self) -> dict[str, Any]:
        """Those that all members have: the raw input, and what else is called alike."""
        self._fit()
        own = {name: member.baselines() for name, member in self.members.items()}
        shared = [n for n in next(iter(own.values())) if all(n in found for found in own.values())]

        def baseline(kind: str, views: Views) -> Tensor:
            return own[views.stream][kind](self._own(views))

        return {n: functools.partial(baseline, n) for n in shared}

    def figures(self, batch: Batch) -> list[Figure]:
        """Some samples, a line each, and the members' own pictures of other views."""
        from multissl.modalities.paired.figures import side_by_side

        clean = [v for v in batch if v.role == "clean"]
        drawn = [(v.stream, self.pictures(v), v.present) for v in clean]
        found = side_by_side([(s, p, here) for s, p, here in drawn if p is not None])
        for name, member in self.members.items():
            if other := [self._own(v) for v in batch if v.stream == name and v.role != "clean"]:
                found += [replace(f, title=f"{f.title}: {name}") for f in member.figures(Batch(other))]
        return found

    def pictures(self, views: Views) -> np.ndarray | None:
        """The member's pictures of clean views."""
        return self.members[views.stream].pictures(self._own(views))

    def state(self) -> dict[str, Any]:
        """The members' states, which streams may be missing, and whether there are groups."""
        self._learn()
        return {
            "members": {name: member.state() for name, member in self.members.items()},
            "partial": sorted(self._partial or ()),
            "grouped": self._grouped,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Read new samples as the training's were."""
        for name, member in self.members.items():
            member.restore(state["members"][name])
        self.cfg = self.cfg.replace(members={name: member.cfg for name, member in self.members.items()})
        self._partial, self._grouped = frozenset(state["partial"]), state["grouped"]
