"""The contract: what crosses the borders between modalities, encoders, objectives and the engine.

Modalities make views, encoders make features, objectives make losses, one trainer takes the step.
Shapes: B samples on this rank, V views, R = V*B rows stacked view-major (all rows of view 0, then view 1),
N tokens of a view, D width, C channels or columns, M hidden tokens of the batch (padded, the same every step).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

if TYPE_CHECKING:
    import numpy as np
    from torch.utils.data import Dataset

    from multissl.random import RowRandom

Role = Literal["clean", "global", "local"]
Masking = Literal["none", "replace", "drop", "causal"]
"""What an encoder does with a view's mask: ignore it; put the mask token on hidden tokens (iBOT, BERT); leave
hidden tokens out (MAE); or ignore it and let every token see only those before it (next-token prediction)."""
Raw = dict[str, Any]
"""What a worker hands to the device: nested dicts of tensors, nothing else."""


@dataclass(kw_only=True, slots=True)
class Mask:
    """Which tokens of R rows are hidden. Drawn on the CPU by the modality: geometry is its business."""

    hidden: Tensor
    """bool [R, N]"""
    index: Tensor
    """int64 [M] positions in the flattened [R*N]; padded with 0 to an M that is the same every step."""
    weight: Tensor
    """float32 [M], 1 / (hidden tokens of the same row), 0 on padding."""
    num_hidden: int | None = None
    """Hidden tokens in every row where all rows agree (`drop` needs it), else None."""

    def to(self, device: torch.device) -> Mask:
        """The same mask on another device."""
        return Mask(
            hidden=self.hidden.to(device, non_blocking=True),
            index=self.index.to(device, non_blocking=True),
            weight=self.weight.to(device, non_blocking=True),
            num_hidden=self.num_hidden,
        )


@dataclass(kw_only=True, slots=True)
class Views:
    """V views of B samples, all of one shape, as one stream's encoder reads them."""

    x: Tensor
    """grid [R, C, *space] | sequence int64 [R, L] | columns [R, C]"""
    stream: str
    """Which encoder reads it: "image", "text", ..."""
    role: Role
    num_views: int = 1
    masks: tuple[Mask, ...] = ()
    """One mask as a rule; several where one pass of a teacher serves several predictions (I-JEPA, data2vec 2)."""
    target: Tensor | None = None
    """What a decoder rebuilds: floats [R, N, T], int64 classes [R, N'], or cells [R, C]. N' may differ from N (T5)."""
    valid: Tensor | None = None
    """bool [R, N], False on padding; None means that all tokens are real."""
    condition: Tensor | None = None
    """[R, A] what leads from the view before to this one: an action, a crop offset."""
    coords: Tensor | None = None
    """[R, N, g] where the tokens' centres lie in the original sample, each axis of it 0 to 1, in the order of `space`
    (row, column); for objectives that match places."""
    present: Tensor | None = None
    """bool [B], False where a sample lacks this stream (paired data)."""
    sample_id: Tensor | None = None
    """int64 [B]; equal ids are positives of each other (one caption twice)."""
    group_id: Tensor | None = None
    """int64 [B], or [B, n] where any equal column counts; equal ids are not negatives of each other (frames of one
    episode)."""

    @property
    def mask(self) -> Mask | None:
        """The first mask, or None."""
        return self.masks[0] if self.masks else None

    @property
    def batch(self) -> int:
        """B, the number of samples."""
        return len(self.x) // self.num_views

    def with_mask(self, mask: Mask | None) -> Views:
        """The same views under one other mask, or under none."""
        return replace(self, masks=() if mask is None else (mask,))

    def part(self, first: int, count: int) -> Views:
        """`count` of the views from number `first` on, without a copy; an index keeps its length, padded."""
        if (first, count) == (0, self.num_views):
            return self
        low, high = first * self.batch, (first + count) * self.batch
        by_row = {"x", "target", "valid", "condition", "coords"}
        cut = {n: value[low:high] for n in by_row if (value := getattr(self, n)) is not None}
        masks = []
        for m in self.masks:
            tokens = m.hidden.shape[1]
            inside = (m.weight > 0) & (m.index >= low * tokens) & (m.index < high * tokens)
            index, weight = (m.index - low * tokens) * inside, m.weight * inside
            masks.append(Mask(hidden=m.hidden[low:high], index=index, weight=weight, num_hidden=m.num_hidden))
        return replace(self, num_views=count, masks=tuple(masks), **cut)

    def to(self, device: torch.device) -> Views:
        """The same views on another device."""
        moved = {
            f.name: value.to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, masks=tuple(m.to(device) for m in self.masks), **moved)

    def samples(self, index: Tensor) -> Views:
        """The views of some samples only (int64 [b] in 0..B-1).

        Masks keep what an encoder reads, `hidden` and `num_hidden`; their index belongs to a whole batch.
        """
        rows = (torch.arange(self.num_views, device=index.device)[:, None] * self.batch + index).flatten()
        by_row = {"x", "target", "valid", "condition", "coords"}
        picked = {
            f.name: value[rows if f.name in by_row else index]
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        masks = tuple(
            Mask(hidden=m.hidden[rows], index=m.index[:0], weight=m.weight[:0], num_hidden=m.num_hidden)
            for m in self.masks
        )
        return replace(self, masks=masks, **picked)


Batch = list[Views]
"""Streams in recipe order, then clean, global, local."""


@dataclass(kw_only=True, slots=True)
class Features:
    """What an encoder makes of R rows."""

    pooled: Tensor
    """[R, D]"""
    tokens: Tensor
    """[R, N, D] without class and register tokens; the visible ones, in order, under `drop`."""
    inner: tuple[Tensor, ...] = ()
    """Outputs of the last blocks asked for, first to last, each [R, N, D], before the final norm."""
    embedding: Tensor | None = None
    """[R, P] where the row lies in the space that streams share, of a shipped tower; None without such a space."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewPlan:
    """What an objective asks of one stream; declared once, checked before the first batch."""

    num_clean: int = 0
    """Canonical views without augmentation, for pairs and for evaluation."""
    num_global: int = 0
    num_local: int = 0
    mask_ratio: tuple[float, float] | None = None
    """Range of the hidden share of a global view; a fixed ratio is (r, r)."""
    mask_share: float = 1.0
    """Share of the global views that are masked at all."""
    num_masks: int = 1
    """Masks for each view, for objectives that make several predictions from one pass."""
    context_ratio: tuple[float, float] | None = None
    """Range of the share of tokens that a context shows. Where it is given, a view has one mask more, the first, which
    hides all but the context, and the context holds no token that another mask hides (I-JEPA)."""
    corrupt: bool = False
    """Replace the hidden values by other plausible values; the mask then tells where (VIME, denoising)."""
    target: bool = False
    coords: bool = False
    """Tell where the tokens of global and local views lie in the sample (`Views.coords`)."""
    inner: int = 0
    """How many last blocks' outputs the objective reads."""

    def __post_init__(self) -> None:
        low, high = self.mask_ratio or (0.0, 0.0)
        if not 0 <= low <= high < 1:
            raise ValueError(f"mask_ratio={self.mask_ratio}: want 0 <= low <= high < 1")
        if not 0 <= self.mask_share <= 1:
            raise ValueError(f"mask_share={self.mask_share}: want a share between 0 and 1")


Plans = Mapping[str, ViewPlan]
CLEAN = ViewPlan(num_clean=1)
"""The plan of every evaluator: one canonical view."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamSpec:
    """What encoders and decoders must know of a stream to be built for it."""

    kind: Literal["grid", "sequence", "columns"]
    shape: tuple[int, ...]
    """(C, *space) of a global view | (L,) | (C,)"""
    num_tokens: int
    """Tokens of a global view."""
    patch: tuple[int, ...] = ()
    """Token size along each space axis of a grid."""
    vocab: int = 0
    """Symbols of a sequence."""
    cardinalities: tuple[int, ...] = ()
    """Levels of each column, 0 for a number."""
    condition_dim: int = 0
    target_dim: int = 0
    """T: floats, classes or cells to predict for a token."""
    target_tokens: int = 0
    """N' where the target is not as long as the view, else 0."""
    target_kind: Literal["values", "classes", "cells"] = "values"
    channels: tuple[str, ...] = ()
    """Names of the channels or columns, where they have any."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One item of a dataset, as cheap as it can be: `data` is often a path or bytes that `collate` decodes."""

    data: Any
    index: int
    label: int = -1
    """Class of a labelled sample, -1 without one."""
    group: int = -1
    """Episode, speaker, recording: a group stays in one split and holds no negatives; -1 without one."""
    place: float | None = None
    """Where in a recording global views lie, a share of the room they have; None: each is drawn."""


class Unreadable(ValueError):
    """A sample that cannot be read. The loader counts it, lists it and takes the next readable one."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index, self.reason = index, reason

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return Unreadable, (self.index, self.reason)


@dataclass(kw_only=True, slots=True)
class Losses:
    """A scalar to differentiate, its named unweighted terms, and numbers that only describe."""

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def weigh(
        terms: dict[str, Tensor], weights: Mapping[str, float], stats: dict[str, Tensor] | None = None
    ) -> Losses:
        """The weighted sum of terms; a weight of 0 leaves its term out of the graph."""
        used = [weights[name] * value for name, value in terms.items() if weights[name] != 0]
        return Losses(
            total=torch.stack(used).sum(),
            terms={name: value.detach() for name, value in terms.items()},
            stats={name: value.detach() for name, value in (stats or {}).items()},
        )


# FSDP2 finds the tensors of a forward's output by pytree; through them it knows when the backward pass begins.
register_pytree_node(
    Losses,
    lambda losses: ([losses.total, losses.terms, losses.stats], None),
    lambda parts, _: Losses(total=parts[0], terms=parts[1], stats=parts[2]),  # type: ignore[index]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where the run stands: `step` of `total`, counted from 0."""

    step: int
    total: int
    epoch_steps: float = 1.0
    """Steps in which every sample is drawn once, on average."""

    @property
    def epoch(self) -> int:
        """Full passes over the data so far."""
        return int(self.step / self.epoch_steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamRule:
    """How the optimizer treats the parameters whose name holds `match`; names start with encoders. or objective."""

    match: str
    lr: float = 1.0
    """Factor on the learning rate."""
    decay: float = 1.0
    """Factor on the weight decay."""
    frozen_steps: int = 0
    """Steps at the start in which the learning rate is 0."""
    constant: bool = False
    """Stay at the learning rate that others reach after the warm-up: no warm-up and no decay (SimSiam's predictor)."""


class Panel(NamedTuple):
    """One picture of the report."""

    title: str
    image: np.ndarray
    """uint8 [H, W, 3]"""
    caption: str = ""


@runtime_checkable
class Modality(Protocol):
    """Turns a data source into views. Holds no parameters and names no objective."""

    def streams(self) -> dict[str, StreamSpec]:
        """The streams it feeds, by name."""
        ...

    def offered(self, stream: str) -> frozenset[str]:
        """Of {"local", "mask", "masks", "drop" (equally many hidden tokens in every row), "target", "condition",
        "corrupt", "coords"}: what plans may ask for in a stream."""
        ...

    def dataset(self, split: str) -> Dataset[Sample]:
        """Samples of "train", "val" or "test"; map-style, so that any step can be drawn again."""
        ...

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        """In a worker: decode, crop, stack, draw masks. Raises `Unreadable` for a sample it cannot read."""
        ...

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        """On raw's device: everything else. A pure function of its arguments."""
        ...

    def floors(self) -> dict[str, Any]:
        """Classical features that learning has to beat: name -> function of clean `Views` to [R, F]."""
        ...

    def panels(self, batch: Batch) -> list[Panel]:
        """Pictures of a batch as the encoder sees it."""
        ...

    def pictures(self, views: Views) -> np.ndarray | None:
        """Clean views as pictures, uint8 [R, H, W, 3]; None where they are none."""
        ...

    def state(self) -> dict[str, Any]:
        """What was fitted to the training data (statistics, schema, vocabulary) as JSON values."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave, so that new data is read as the training data was."""
        ...


class Encoder(Protocol):
    """An nn.Module from views to features. Knows no loss."""

    dim: int
    maskings: frozenset[Masking]
    depth: int
    """Blocks whose outputs it can hand out as `Features.inner`."""

    def __call__(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Features of every item, in order; items of different shapes may share one packed pass."""
        ...

    def shard_units(self) -> list[nn.Module]:
        """Its blocks: checkpointed, compiled and sharded one by one, in that order."""
        ...

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer-wise decay: 0 the input, 1..depth the blocks, depth+1 the rest."""
        ...

    def panels(self, views: Views) -> list[Panel]:
        """Pictures of what it sees in clean views; may be empty."""
        ...


class Encode(Protocol):
    """The one door from an objective to its encoders. Stand-ins with this method chunk or remember."""

    def encode(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Features of every item, each by the encoder of its stream, all items of a stream in one call."""
        ...


class Evaluator(Protocol):
    """Measures encoders on clean views."""

    def run(self, encoders: Encode, modality: Modality, progress: Progress) -> dict[str, float]:
        """Figures by name; the engine adds the evaluator's own name in front."""
        ...
