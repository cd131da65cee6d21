"""Samples, views and masks: what a modality hands to objectives and encoders.

Shapes: B samples on this rank, V views, R = V*B rows stacked view-major (all rows of view 0, then view 1), N tokens of
a view, D width, C channels or columns, M hidden tokens of the batch (padded, the same every step).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node
from torch.utils.data import Dataset

Role = Literal["clean", "global", "local"]
"""clean: as it is, for pairs and evaluation; global: most of a sample, changed; local: a small part of it, changed."""
ROLES: tuple[Role, ...] = ("clean", "global", "local")
Raw = dict[str, Any]
"""What a worker hands to the device: nested dicts of tensors and masks, nothing else."""


@dataclass(kw_only=True, slots=True)
class Mask:
    """Which tokens of R rows are hidden. Drawn on the CPU by the modality, as geometry is its business."""

    hidden: Tensor
    """bool [R, N]"""
    index: Tensor
    """int64 [M] positions in the flattened [R*N]; padded with 0 to an M that is the same every step."""
    weight: Tensor
    """float32 [M], 1 / (hidden tokens of the same row), 0 on padding."""
    num_hidden: int | None = None
    """Hidden tokens in every row where all rows agree at every step (`drop` needs it), else None."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Mask:
        """Return the mask with a function applied to its tensors."""
        return replace(self, hidden=change(self.hidden), index=change(self.index), weight=change(self.weight))

    def to(self, device: torch.device) -> Mask:
        """Return the same mask on another device."""
        return self.map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self, device: Any = None) -> Mask:
        """Return the same mask in page-locked memory, from which a GPU copies without a wait."""
        return self.map(lambda t: t.pin_memory())

    def rows(self, rows: Tensor) -> Mask:
        """Return what encoders read of some rows (int64 [r]): `hidden` and `num_hidden`.

        The index is left empty, because its places and padding belong to a whole batch.
        """
        return replace(self, hidden=self.hidden[rows], index=self.index[:0], weight=self.weight[:0])

    def counting(self, real: Tensor | None) -> Mask:
        """Return the mask whose index counts the tokens in `real` alone (bool [R, N]; None: all); others weigh 0."""
        if real is None:
            return self
        keep = (self.weight > 0) & real.flatten()[self.index]  # [M]
        counts = (self.hidden & real).sum(1).clamp(min=1)  # [R]
        return replace(self, weight=keep / counts[self.index // real.shape[1]])

    def part(self, low: int, high: int) -> Mask:
        """Return the mask of the rows low..high-1; the index keeps its length, padded with 0."""
        tokens = self.hidden.shape[1]
        inside = (self.weight > 0) & (self.index >= low * tokens) & (self.index < high * tokens)
        return replace(
            self,
            hidden=self.hidden[low:high],
            index=(self.index - low * tokens) * inside,
            weight=self.weight * inside,
        )


# A mask travels whole, from the worker that draws it to the device: loaders and `tree_map` see its tensors.
register_pytree_node(
    Mask,
    lambda m: ([m.hidden, m.index, m.weight], m.num_hidden),
    lambda tensors, num_hidden: _mask(tensors, num_hidden),
)


def _mask(tensors: Iterable[Any], num_hidden: Any) -> Mask:
    hidden, index, weight = tensors
    return Mask(hidden=hidden, index=index, weight=weight, num_hidden=num_hidden)


PER_ROW, PER_SAMPLE = {"length": "rows"}, {"length": "samples"}
"""Marks of the tensor fields of `Views`: an entry for each of its R rows, or of its B samples."""


@dataclass(kw_only=True, slots=True)
class Views:
    """V views of B samples, all of one shape, as one stream's encoder reads them."""

    x: Tensor = field(metadata=PER_ROW)
    """grid [R, C, *space] | sequence int64 [R, L] | columns [R, C]"""
    stream: str
    """Which encoder reads it: "image", "text", ..."""
    role: Role
    num_views: int = 1
    masks: tuple[Mask, ...] = ()
    """One mask as a rule; several where one pass of a teacher serves several predictions (I-JEPA, data2vec 2)."""
    target: Tensor | None = field(default=None, metadata=PER_ROW)
    """What a decoder rebuilds: floats [R, N, T], int64 classes [R, N'], or cells [R, C]. N' may differ from N (T5)."""
    valid: Tensor | None = field(default=None, metadata=PER_ROW)
    """bool [R, N], False on padding, which moves no loss; None means that all tokens are real."""
    condition: Tensor | None = field(default=None, metadata=PER_ROW)
    """[R, A] what leads from the view before to this one: an action, a crop offset."""
    coords: Tensor | None = field(default=None, metadata=PER_ROW)
    """[R, N, g] where the tokens' centers lie in the original sample, each axis of it 0 to 1, in the order of `space`
    (row, column); for objectives that match places."""
    present: Tensor | None = field(default=None, metadata=PER_SAMPLE)
    """bool [B], False where a sample lacks this stream (paired data): a stand-in, which moves no loss, has its rows."""
    sample_id: Tensor | None = field(default=None, metadata=PER_SAMPLE)
    """int64 [B]; equal ids are positives of each other (one caption twice)."""
    group_id: Tensor | None = field(default=None, metadata=PER_SAMPLE)
    """int64 [B], or [B, n] where any equal column counts; equal ids are not negatives of each other (frames of one
    episode)."""
    larger: Tensor | None = field(default=None, metadata=PER_ROW)
    """[R, C, *space] what global views show once more, in more detail and without changes of color, where a plan asks
    for it (`ViewPlan.larger`)."""
    place: Tensor | None = field(default=None, metadata=PER_SAMPLE)
    """int64 [B] each sample's place in the step's batch of all ranks, one after another; noted by the engine. Modules
    that draw for rows (drop path) read it, so that ranks and chunks draw what one pass over everything would."""

    @property
    def mask(self) -> Mask | None:
        """Return the first mask, or None where there is none."""
        return self.masks[0] if self.masks else None

    @property
    def batch(self) -> int:
        """Return the number of samples, B."""
        return len(self.x) // self.num_views

    @property
    def present_rows(self) -> Tensor | None:
        """Return which rows exist, bool [R]; None where all do."""
        return None if self.present is None else self.present.repeat(self.num_views)

    def real_tokens(self, count: int) -> Tensor | None:
        """Return which of `count` tokens of a row are neither padding nor a stand-in's, bool [R, count]; None: all."""
        rows = self.present_rows
        if self.valid is not None and self.valid.shape[1] != count:
            raise ValueError(
                f"{self.stream} says of {self.valid.shape[1]} tokens which are padding, and its encoder gives {count}: "
                "take an encoder with a token for each, such as transformer, or views without padding"
            )
        if rows is None:
            return self.valid
        rows = rows[:, None].expand(-1, count)
        return rows if self.valid is None else rows & self.valid

    def with_mask(self, mask: Mask | None) -> Views:
        """Return the same views under one other mask, or under none."""
        return replace(self, masks=() if mask is None else (mask,))

    def map(self, change: Callable[[Tensor], Tensor]) -> Views:
        """Return the views with a function applied to all tensors, those of masks too."""
        masks = tuple(m.map(change) for m in self.masks)
        return replace(self, masks=masks, **self._tensors(change, change))

    def to(self, device: torch.device) -> Views:
        """Return the same views on another device."""
        return self.map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self, device: Any = None) -> Views:
        """Return the same views in page-locked memory, from which a GPU copies without a wait."""
        return self.map(lambda t: t.pin_memory())

    def part(self, first: int, count: int) -> Views:
        """Return `count` of the views from number `first` on, without a copy; an index keeps its length, padded."""
        if (first, count) == (0, self.num_views):
            return self
        low, high = first * self.batch, (first + count) * self.batch
        masks = tuple(m.part(low, high) for m in self.masks)
        cut = self._tensors(lambda rows: rows[low:high], lambda samples: samples)
        return replace(self, num_views=count, masks=masks, **cut)

    def samples(self, index: Tensor) -> Views:
        """Return the views of some samples only (int64 [b] in 0..B-1).

        Masks keep what an encoder reads, `hidden` and `num_hidden`; their index belongs to a whole batch.
        """
        rows = self.rows_of(index)
        masks = tuple(m.rows(rows) for m in self.masks)
        return replace(self, masks=masks, **self._tensors(lambda t: t[rows], lambda t: t[index]))

    def rows_of(self, index: Tensor) -> Tensor:
        """Return the rows int64 [V*b] of some samples (int64 [b]), view-major."""
        return (torch.arange(self.num_views, device=index.device)[:, None] * self.batch + index).flatten()

    def _tensors(
        self, of_rows: Callable[[Tensor], Tensor], of_samples: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Return every tensor field changed by the function for what it has an entry for."""
        change = {"rows": of_rows, "samples": of_samples}
        values = {f.name: (f.metadata.get("length"), getattr(self, f.name)) for f in fields(self)}
        return {
            name: change[length](value)
            for name, (length, value) in values.items()
            if length and value is not None
        }


class Batch(Sequence[Views]):
    """The views of a step: streams in recipe order, of each first clean, then global, then local views.

    A class of its own, not a list: what wraps modules (sharding, compilation) takes lists and tuples apart.
    """

    __slots__ = ("views",)

    def __init__(self, views: Iterable[Views] = ()) -> None:
        self.views = tuple(views)

    def __len__(self) -> int:
        return len(self.views)

    @overload
    def __getitem__(self, place: int) -> Views: ...

    @overload
    def __getitem__(self, place: slice) -> Batch: ...

    def __getitem__(self, place: int | slice) -> Views | Batch:
        return Batch(self.views[place]) if isinstance(place, slice) else self.views[place]

    def __repr__(self) -> str:
        return f"Batch({', '.join(f'{v.num_views} {v.role} {v.stream}' for v in self.views)})"

    def find(self, stream: str, role: Role) -> Views | None:
        """Return the views of a stream and role, or None where there are none."""
        return next((v for v in self.views if v.stream == stream and v.role == role), None)

    def of(self, stream: str, role: Role) -> Views:
        """Return the views of a stream and role. Raises a ValueError where there are none."""
        views = self.find(stream, role)
        if views is None:
            raise ValueError(
                f"the batch holds no {role} views of {stream}, only {self}: ask for them in plans()"
            )
        return views

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with a function applied to all tensors."""
        return Batch(v.map(change) for v in self.views)

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on another device."""
        return Batch(v.to(device) for v in self.views)

    def pin_memory(self, device: Any = None) -> Batch:
        """Return the same batch in page-locked memory, from which a GPU copies without a wait."""
        return Batch(v.pin_memory() for v in self.views)


@dataclass(frozen=True, slots=True)
class Sample:
    """One item of a dataset, as cheap as it can be: `data` is often a path or bytes that `collate` decodes."""

    data: Any
    index: int
    label: int = -1
    """Class of a labeled sample, -1 without one."""
    group: int = -1
    """Episode, speaker, recording: a group stays in one split and holds no negatives; -1 without one."""
    place: float | None = None
    """Where in a recording global views lie, a share of the room they have; None: each is drawn."""
    beside: Mapping[str, Any] | None = None
    """The payloads of other columns of its row, by name, read when they are asked for; None where it is no row."""


class LabelSets(NamedTuple):
    """The classes of samples that may have several each."""

    has: Tensor
    """bool [S, C]"""
    known: Tensor
    """bool [S], False where nothing is said of a sample; one that has no class at all is known."""
    names: tuple[str, ...]


class Samples(Dataset[Sample], ABC):
    """The samples of one split; map-style, so that any step can be drawn again."""

    classes: Sequence[str] = ()
    """Names of the labels 0, 1, ...; empty where they have none."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    def class_numbers(self) -> list[int]:
        """Return the label of every sample, -1 without one; reads all samples, unless a subclass knows better."""
        return [self._class_number(place) for place in range(len(self))]

    def label_sets(self) -> LabelSets | None:
        """Return the classes of every sample where they may have several; None, by default, where they have one."""
        return None

    def _class_number(self, place: int) -> int:
        try:
            return self[place].label
        except Unreadable:
            return -1


class DataOf(Sequence[Any]):
    """The `data` of samples, read when it is asked for."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: Any) -> Any:
        return self.samples[place].data


class Unreadable(ValueError):
    """A sample that cannot be read. The loader counts it, lists it and takes the next readable one."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index, self.reason = index, reason

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return Unreadable, (self.index, self.reason)
