"""What every encoder shares, the set of encoders an objective drives, and towers: encoders with a way into one space.

Shapes: R rows (views times samples), N tokens, D width, P width of the space that streams share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import torch
from torch import nn

from multissl.config import Component
from multissl.config import Config as BaseConfig
from multissl.precision import wide
from multissl.types import Features, Masking, Panel, StreamSpec, Views


class Encoder(Component, nn.Module):
    """Base of encoders: a `Config` whose `build(spec)` gives the module for a stream."""

    group: ClassVar[str] = "encoders"

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of an encoder."""

        def maskings_for(self, spec: StreamSpec) -> frozenset[Masking]:
            """What the encoder could do with a mask on this stream; asked before it is built."""
            return cast(Any, self.owner).maskings

    dim: int
    depth: int = 0
    maskings: frozenset[Masking] = frozenset({"none"})
    kernel: str = "sdpa"
    """The attention kernel of its blocks, which decoders and joint blocks beside it take over."""
    autocast: torch.dtype | None = None
    """Set on every encoder, a teacher's copies too, where batch norm keeps the weights in fp32 and the pass is in half
    precision all the same; features then leave in the weights' precision."""

    locked: bool = False
    """Set by `lock`."""

    def lock(self) -> None:
        """From now on it stays as it is: in evaluation mode whatever is asked, without gradient (LiT)."""
        self.locked = True
        self.requires_grad_(False).train(False)

    def train(self, mode: bool = True) -> Self:
        """Training mode, or evaluation mode; the latter alone where it is locked."""
        return super().train(mode and not self.locked)

    def __call__(self, *args: Any, **kwargs: Any) -> list[Features]:
        """`forward`; in half precision where `autocast` says so, without gradient where it is locked."""
        if self.locked and torch.is_grad_enabled():
            with torch.no_grad():
                return self(*args, **kwargs)
        if self.autocast is None:
            return super().__call__(*args, **kwargs)
        views: Sequence[Views] = args[0] if args else kwargs["views"]
        with torch.autocast(views[0].x.device.type, self.autocast):
            found: list[Features] = super().__call__(*args, **kwargs)
        return [
            replace(
                f, pooled=f.pooled.float(), tokens=f.tokens.float(), inner=tuple(t.float() for t in f.inner)
            )
            for f in found
        ]

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Features of every item, in order."""
        raise NotImplementedError

    def shard_units(self) -> list[nn.Module]:
        """Blocks to checkpoint, compile and shard one by one; none by default."""
        return []

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer-wise decay; without blocks everything is at depth 1."""
        return self.depth + 1

    def start(self) -> None:
        """Take the published weights its options name, if any: once, when a run is built, never when it is read."""

    def expect(self, maskings: frozenset[Masking]) -> None:
        """Told once, before training, what will be asked of it: what is never used is frozen."""

    def panels(self, views: Views) -> list[Panel]:
        """Pictures of what it sees; none by default."""
        return []


class Encoders(nn.ModuleDict):
    """Encoders by stream. `encode` is the one door from an objective to them."""

    def encode(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Features of every item by its stream's encoder; all items of a stream go through it in one call."""
        features: list[Features | None] = [None] * len(views)
        for stream in dict.fromkeys(v.stream for v in views):
            places = [i for i, v in enumerate(views) if v.stream == stream]
            found = self[stream]([views[i] for i in places], masking, inner)
            for place, feature in zip(places, found, strict=True):
                features[place] = feature
        return cast(list[Features], features)

    def only(self, streams: Iterable[str]) -> Encoders:
        """The encoders of some streams, the same modules."""
        return Encoders({s: self[s] for s in streams})

    def widths(self) -> dict[str, int]:
        """D of every stream."""
        return {stream: cast(int, encoder.dim) for stream, encoder in self.items()}

    def kernel(self, stream: str) -> str:
        """The attention kernel of a stream's encoder."""
        return cast(Encoder, self[stream]).kernel

    def shard_units(self) -> list[nn.Module]:
        """The blocks of all encoders, in order."""
        return [unit for encoder in self.values() for unit in cast(Encoder, encoder).shard_units()]


def build_encoders(configs: Mapping[str, Encoder.Config], specs: Mapping[str, StreamSpec]) -> Encoders:
    """Return an encoder for every stream of `specs`; a ValueError for a name that torch's modules cannot hold."""
    encoders = Encoders()
    for stream, spec in specs.items():
        encoder = configs[stream].build(spec)
        try:
            encoders[stream] = encoder
        except (
            KeyError
        ) as error:  # a dot, or the name of a method: parts are attributes, joined by dots in state
            other = f"{stream.replace('.', '_')}_1"
            raise ValueError(
                f"encoders.{stream}: no stream can be called {stream!r} ({error.args[0]}): rename it, such as {other}"
            ) from error
    return encoders


class Tower(Encoder):
    """An encoder and the head that leads from it into a space that several streams share; what pairing ships.

    `pooled` and `tokens` stay the encoder's, so probes read them as ever; `embedding` is the head's output. A head with
    `reads_tokens` takes the tokens and what is real of them, others take what is pooled.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.dim, self.depth, self.maskings, self.kernel = (
            getattr(encoder, n) for n in ("dim", "depth", "maskings", "kernel")
        )

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """The encoder's features with an embedding in fp32, or wider."""
        found: list[Features] = self.encoder(views, masking, inner)
        if getattr(self.head, "reads_tokens", False):
            heads = [self.head(f.tokens, v.valid) for f, v in zip(found, views, strict=True)]
        else:
            heads = [self.head(f.pooled) for f in found]
        return [replace(f, embedding=wide(z)) for f, z in zip(found, heads, strict=True)]

    def shard_units(self) -> list[nn.Module]:
        """The encoder's blocks."""
        return cast(Encoder, self.encoder).shard_units()

    def layer_id(self, name: str) -> int:
        """The encoder's layers; the head is beyond the last."""
        part, _, rest = name.partition(".")
        return cast(Encoder, self.encoder).layer_id(rest) if part == "encoder" else self.depth + 1

    def panels(self, views: Views) -> list[Panel]:
        """The encoder's pictures."""
        return cast(Encoder, self.encoder).panels(views)


def towers(encoders: nn.ModuleDict, heads: nn.ModuleDict) -> Encoders:
    """Towers of the encoders that have a head; the modules themselves, not copies."""
    return Encoders({s: Tower(e, heads[s]) if s in heads else e for s, e in encoders.items()})


def without_heads(encoders: nn.ModuleDict) -> Encoders:
    """The encoders inside towers; encoders that are no towers as they are."""
    return Encoders({s: e.encoder if isinstance(e, Tower) else e for s, e in encoders.items()})
