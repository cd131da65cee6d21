"""An encoder turns views into features and knows no loss; objectives reach the encoders of all streams in one way.

Shapes: R rows (views times samples), N tokens, D width, P width of the space that streams share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self, cast

import torch
from torch import nn

from multissl.config import Component
from multissl.config import Config as BaseConfig
from multissl.contract.data import Views
from multissl.contract.learning import Features, Figure
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Masking, StreamSpec
from multissl.precision import at_least_fp32


class Encoder(Component, nn.Module, ABC):
    """Base of encoders: a `Config` whose `build(spec)` gives the module for a stream."""

    group: ClassVar[str] = "encoders"

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of an encoder."""

        owner: ClassVar[type[Encoder]]

        def build(self, spec: StreamSpec) -> Encoder:
            """Return the encoder of a stream, with initial weights."""
            return super(Encoder.Config, self).build(spec)

        def maskings_for(self, spec: StreamSpec) -> frozenset[Masking]:
            """Return what the encoder could do with a mask on this stream; asked before it is built."""
            return self.owner.maskings

        def token_side(self) -> int:
            """Return the side of a token in pixels that the network itself fixes; 0 where it takes its stream's."""
            return 0

    dim: int
    depth: int = 0
    """Its blocks, by which layer-wise decay counts."""
    gives_blocks: bool = True
    """Whether it can hand out the outputs of its blocks as `Features.inner`: those of a pyramid have several widths."""
    maskings: frozenset[Masking] = frozenset({"none"})
    kernel: str = "sdpa"
    """The attention kernel of its blocks, which decoders and joint blocks beside it take over."""
    autocast: torch.dtype | None = None
    """Set on every encoder, a teacher's copies too, where batch norm keeps the weights in fp32 and the pass is in half
    precision all the same; features then leave in the weights' precision."""
    locked: bool = False
    """Set by `lock`."""
    any_size: bool = False
    """Whether it reads views of other sizes than its stream's, grids in multiples of the patch."""

    def trains_batch_norm(self) -> bool:
        """Return whether it holds batch norm that takes statistics of what it sees; that of a locked one does not."""
        norms = (m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        return any(norm.training for norm in norms)

    if TYPE_CHECKING:  # torch types whatever a module does not declare as a tensor
        __getattr__: None  # type: ignore[assignment]

    @abstractmethod
    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Return the features of every item, in order; items of different shapes may share one packed pass."""

    def __call__(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Call `forward`; in half precision where `autocast` says so, without gradient where it is locked."""
        if self.locked and torch.is_grad_enabled():
            with torch.no_grad():
                return self(views, masking, inner)
        if self.autocast is None:
            return super().__call__(views, masking, inner)
        with torch.autocast(views[0].x.device.type, self.autocast):
            features: list[Features] = super().__call__(views, masking, inner)
        return [
            replace(
                f,
                pooled=f.pooled.float(),
                tokens=f.tokens.float(),
                inner=tuple(t.float() for t in f.inner),
                inner_pooled=tuple(t.float() for t in f.inner_pooled),
            )
            for f in features
        ]

    def load_pretrained(self) -> None:
        """Take the published weights its options name, if any: once, when a run is built, never when it is read."""

    def prepare_for(self, maskings: frozenset[Masking]) -> None:
        """Freeze what is never used under the maskings that training will ask for; called once, before training."""

    def shard_units(self) -> list[nn.Module]:
        """Return its blocks, to checkpoint, compile and shard one by one, in that order; none by default."""
        return []

    def layer_id(self, name: str) -> int:
        """Return a parameter's depth for layer-wise decay: 0 the input, 1..depth the blocks, depth+1 the rest."""
        return self.depth + 1

    def figures(self, views: Views) -> list[Figure]:
        """Draw what it sees in clean views; nothing by default."""
        return []

    def attend_plainly(self) -> None:
        """Attend by torch's own attention, whatever kernel it was trained with; by default it does already."""

    def lock(self) -> None:
        """Keep it as it is from now on: in evaluation mode whatever is asked, without gradient (LiT)."""
        self.locked = True
        self.requires_grad_(False).train(False)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, or evaluation mode; the latter alone where it is locked."""
        return super().train(mode and not self.locked)


class EncodeFunction(ABC):
    """The only way from an objective to its encoders. Stand-ins with this method chunk or remember."""

    @abstractmethod
    def encode(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Return the features of every item, each by the encoder of its stream, all items of a stream in one call."""


class Encoders(PerStream[Encoder], EncodeFunction):
    """Encoders by stream."""

    def encode(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Return the features of every item; all items of a stream go through its encoder in one call."""
        features: list[Features | None] = [None] * len(views)
        for stream in dict.fromkeys(v.stream for v in views):
            places = [i for i, v in enumerate(views) if v.stream == stream]
            mine = self[stream]([views[i] for i in places], masking, inner)
            for place, feature in zip(places, mine, strict=True):
                features[place] = feature
        return cast(list[Features], features)

    def subset(self, streams: Iterable[str]) -> Encoders:
        """Return the encoders of some streams, the same modules."""
        return Encoders({s: self[s] for s in streams})

    def widths(self) -> dict[str, int]:
        """Return D of every stream."""
        return {stream: encoder.dim for stream, encoder in self.items()}

    def kernel(self, stream: str) -> str:
        """Return the attention kernel of a stream's encoder."""
        return self[stream].kernel

    def shard_units(self) -> list[nn.Module]:
        """Return the blocks of all encoders, in order."""
        return [unit for encoder in self.values() for unit in encoder.shard_units()]


def build_encoders(configs: Mapping[str, Encoder.Config], specs: Mapping[str, StreamSpec]) -> Encoders:
    """Return an encoder for every stream of `specs`."""
    return Encoders({stream: configs[stream].build(spec) for stream, spec in specs.items()})


@dataclass(frozen=True, slots=True)
class SharedSpace:
    """The way from several streams' encoders into one space."""

    heads: Mapping[str, nn.Module]
    """By stream; a stream without one does not lead there."""
    reads_tokens: bool = False
    """Whether the heads take (tokens [R, N, D], valid [R, N] or None) instead of what is pooled [R, D]."""

    def towers(self, encoders: Encoders) -> Encoders:
        """Return towers of the encoders that have a head, the others as they are; the modules themselves, no copies."""
        return Encoders(
            {
                stream: Tower(encoder, self.heads[stream], self.reads_tokens)
                if stream in self.heads
                else encoder
                for stream, encoder in encoders.items()
            }
        )


class Tower(Encoder):
    """An encoder and the head that leads from it into a space that several streams share; what pairing ships.

    `pooled` and `tokens` stay the encoder's, so probes read them as ever; `embedding` is the head's output.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, reads_tokens: bool = False) -> None:
        super().__init__()
        self.encoder, self.head, self.reads_tokens = encoder, head, reads_tokens
        self.dim, self.depth, self.gives_blocks = encoder.dim, encoder.depth, encoder.gives_blocks
        self.maskings, self.kernel = encoder.maskings, encoder.kernel
        self.any_size = encoder.any_size

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Return the encoder's features with an embedding in fp32, or wider."""
        features = self.encoder(views, masking, inner)
        if self.reads_tokens:
            points = [self.head(f.tokens, v.valid) for f, v in zip(features, views, strict=True)]
        else:
            points = [self.head(f.pooled) for f in features]
        return [replace(f, embedding=at_least_fp32(z)) for f, z in zip(features, points, strict=True)]

    def shard_units(self) -> list[nn.Module]:
        """Return the encoder's blocks."""
        return self.encoder.shard_units()

    def layer_id(self, name: str) -> int:
        """Return the encoder's layers; the head is beyond the last."""
        part, _, rest = name.partition(".")
        return self.encoder.layer_id(rest) if part == "encoder" else self.depth + 1

    def attend_plainly(self) -> None:
        """Let the encoder do so."""
        self.encoder.attend_plainly()

    def figures(self, views: Views) -> list[Figure]:
        """Draw what the encoder sees."""
        return self.encoder.figures(views)


def without_heads(encoders: Encoders) -> Encoders:
    """Return the encoders inside towers, and encoders that are no towers as they are."""
    return Encoders({s: e.encoder if isinstance(e, Tower) else e for s, e in encoders.items()})
