"""What the encoders around other people's networks share: rows of one shape in one call, blocks, layers, tokens.

Published networks declare nothing; the names inside them are their library's contract, and they are read here alone.
Shapes: R rows, N tokens, D width, H*W places of a map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from multissl.contract.abilities import DeclaresParameters
from multissl.contract.data import Views
from multissl.contract.encoder import Encoder
from multissl.contract.learning import Features
from multissl.contract.plans import StreamSpec

TOKENS = ("cls_token", "mask_token", "register_tokens", "pos_embed")
"""What libraries call tokens and tables of positions, at times with more behind it (pos_embedding, cls_token_1)."""
SCALES = ("norm", "gamma")
"""What they call norms and LayerScale, whose parameters may have several axes: [D, 1, 1]."""


class ReadsPublishedNames(ABC):
    """An encoder whose library knows other names for its network's tensors than those in memory."""

    @abstractmethod
    def read_published(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return tensors under the network's own names; `config` is what lies beside them, {} without any."""


class Wrapped(DeclaresParameters, Encoder):
    """An encoder around a network `net`, whose parameters keep their names behind `net.`."""

    net: Any

    def wrap(self, net: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Hold the network; what it registers before its blocks is its input, what comes later its end."""
        self.net, self.blocks, self.depth = net, list(blocks), len(blocks)
        inside = {id(p): i for i, block in enumerate(blocks, 1) for p in block.parameters()}
        self.layers: dict[str, int] = {}
        reached = not blocks  # without blocks there is one layer
        for name, parameter in net.named_parameters():
            reached = reached or id(parameter) in inside
            self.layers[f"net.{name}"] = inside.get(id(parameter), self.depth + 1 if reached else 0)

    def shard_units(self) -> list[nn.Module]:
        """The blocks of the network, where they are known."""
        return list(self.blocks)

    def layer_id(self, name: str) -> int:
        """0 before the blocks, i+1 for block i, depth+1 for the rest."""
        return self.layers.get(name, self.depth + 1)

    def token_parameters(self) -> Iterable[Tensor]:
        """Return what the network calls a token or positions, and all inside a module of such a name."""
        return [p for name, p in self.net.named_parameters() if any(token in name for token in TOKENS)]

    def patch_parameters(self) -> Iterable[Tensor]:
        """Return what the network calls its patch embedding, where that comes before its blocks."""
        named = self.net.named_parameters()
        return [p for name, p in named if "patch_embed." in name and self.layer_id(f"net.{name}") == 0]

    def undecayed_parameters(self) -> Iterable[Tensor]:
        """Return what the network calls a norm or the scale of a branch."""
        return [p for name, p in self.net.named_parameters() if any(scale in name for scale in SCALES)]

    def input(self, x: Tensor) -> Tensor:
        """x as the network reads it: symbols as they are, numbers in its weights' precision."""
        weight = next(self.net.parameters(), None)
        symbols = not x.is_floating_point() and x.dtype != torch.uint8
        return x if symbols or weight is None else x.to(weight.dtype)


def by_size(views: Sequence[Views], net: Callable[[Views], Features]) -> list[Features]:
    """Features by a network without masks: items of one shape share a call, and batch norm sees them together."""
    if len(views) == 1:  # nothing is compared: in an exported program sizes are symbols
        alone = views[0]
        return [net(Views(x=alone.x, valid=alone.valid, stream=alone.stream, role="clean"))]
    features: list[Features | None] = [None] * len(views)
    sizes = [(v.x.shape[1:], v.valid is None) for v in views]
    for size in dict.fromkeys(sizes):
        places = [i for i, other in enumerate(sizes) if other == size]
        some = [views[i] for i in places]
        valid = None if size[1] else torch.cat([cast(Tensor, v.valid) for v in some])
        found = net(Views(x=torch.cat([v.x for v in some]), valid=valid, stream=some[0].stream, role="clean"))
        rows = [len(v.x) for v in some]
        parts = zip(
            places,
            found.pooled.split(rows),
            found.tokens.split(rows),
            by_item(found.inner, rows),
            by_item(found.inner_pooled, rows),
            strict=True,
        )
        for i, pooled, tokens, taps, pooled_taps in parts:
            features[i] = Features(pooled=pooled, tokens=tokens, inner=taps, inner_pooled=pooled_taps)
    return cast(list[Features], features)


def by_item(taps: Sequence[Tensor], rows: list[int]) -> list[tuple[Tensor, ...]]:
    """Return outputs of blocks, each of all rows, as those of each item, which has so many of the rows."""
    return list(zip(*(t.split(rows) for t in taps), strict=True)) if taps else [()] * len(rows)


def tokens_of(out: Tensor) -> Tensor:
    """A network's output [R, D], [R, D, H, W] or [R, N, D] as tokens [R, N, D]."""
    match out.ndim:
        case 2:
            return out[:, None]
        case 3:
            return out
        case 4:
            return out.flatten(2).mT
        case _:
            raise ValueError(
                f"the network gives {tuple(out.shape)}: want [R, D], a map [R, D, H, W] or tokens [R, N, D]"
            )


def mean_of(tokens: Tensor, valid: Tensor | None = None) -> Tensor:
    """The mean of the real tokens [R, N, D] over N, in fp32 or wider: [R, D]."""
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    if valid is None:
        return tokens.mean(1, dtype=dtype)
    weight = valid.to(dtype) / valid.sum(1, keepdim=True).clamp(min=1)  # [R, N]
    return (tokens.to(dtype) * weight[:, :, None]).sum(1)


def picture_only(name: str, spec: StreamSpec) -> None:
    """Refuse a stream that is no grid of two axes."""
    if spec.kind != "grid" or len(spec.shape) != 3:
        raise ValueError(
            f"the {name} encoder reads pictures [C, H, W], this stream is a {spec.kind} of shape {spec.shape}: "
            "use transformer"
        )
