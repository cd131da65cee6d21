"""Decoder: a small transformer that says what lies at hidden places, given the tokens an encoder saw elsewhere.

MAE's decoder (He et al., CVPR 2022, arXiv 2111.06377) and I-JEPA's predictor (Assran et al., CVPR 2023, arXiv
2301.08243) are the same net: embed the seen tokens, put one learned mask token at every wanted place, add positions,
run blocks, norm. Positions are fixed sine-cosine ones on grids, in the order of MAE (column first), learned ones
elsewhere. Tokens go in as [first, seen, wanted]: attention does not care for their order, so nothing is unshuffled.
Shapes: R rows, K seen tokens, Q wanted tokens, N places, D encoder width, d decoder width.  State: none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.config import Component
from multissl.config import Config as BaseConfig
from multissl.contract.abilities import DeclaresParameters
from multissl.contract.data import Mask
from multissl.contract.plans import StreamSpec
from multissl.layers.init import init_linear
from multissl.layers.positions import sincos
from multissl.layers.tokenizers import visible
from multissl.layers.transformer import Trunk


class Places(DeclaresParameters, nn.Module):
    """What a decoder's blocks read of a stream: seen tokens and mask tokens, each with the position of its place."""

    pos_embed: Tensor
    """[1, 1+N, d], the row of the first token before those of the places."""

    def __init__(self, dim: int, init_std: float, width: int, spec: StreamSpec) -> None:
        super().__init__()
        self.dim = dim
        self.embed = nn.Linear(width, dim)
        init_linear(self.embed, init_std)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.normal_(self.mask_token, std=0.02)
        if spec.kind == "grid":
            if dim % 2 ** len(spec.patch):
                raise ValueError(
                    f"decoder dim={dim}: want a multiple of {2 ** len(spec.patch)} for sine-cosine positions"
                )
            self.register_buffer("pos_embed", sincos(spec.grid, dim), persistent=False)
        else:
            self.pos_embed = nn.Parameter(torch.empty(1, 1 + spec.num_tokens, dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def token_parameters(self) -> Iterable[Tensor]:
        """Return the mask token, and the positions where they are learned."""
        return [p for p in (self.mask_token, self.pos_embed) if isinstance(p, nn.Parameter)]

    def assemble(self, seen: Tensor, at: Tensor, wanted: Tensor, first: Tensor | None = None) -> Tensor:
        """Seen tokens [R, K, D] at [R, K], mask tokens for places [R, Q]: [R, (1+)K+Q, d], `first` [R, 1, D] before."""
        rows, prefix = len(seen), 0 if first is None else 1
        x = self.embed((seen if first is None else torch.cat([first, seen], 1)).to(self.embed.weight.dtype))
        table = self.pos_embed.to(x.dtype).expand(rows, -1, -1)  # [R, 1+N, d]
        blank = self.mask_token.to(x.dtype) + gather_tokens(table, wanted + 1)  # [R, Q, d]
        return torch.cat([x + torch.cat([table[:, :prefix], gather_tokens(table, at + 1)], 1), blank], 1)


class Decoder(Component, Places):
    """Blocks over seen tokens and mask tokens; built with (width of the encoder, stream, its attention kernel)."""

    group: ClassVar[str] = "layers"

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of a decoder; the defaults are MAE's."""

        dim: int = 512
        """Channels of every token inside the decoder; a multiple of heads."""
        depth: int = 8
        """Number of blocks."""
        heads: int = 16
        """Attention heads of each block."""
        init_std: float = 0.0
        """Deviation of the initial weights; 0: 1/sqrt(inputs), which is MAE's Xavier start on square layers."""

        def __post_init__(self) -> None:
            for name, low in {"dim": 1, "depth": 1, "heads": 1, "init_std": 0}.items():
                if getattr(self, name) < low:
                    raise ValueError(f"decoder {name}={getattr(self, name)}: want {low} or more")
            if self.dim % self.heads:
                raise ValueError(
                    f"decoder heads={self.heads} does not divide dim={self.dim}: choose heads that do"
                )

    def __init__(self, cfg: Config, width: int, spec: StreamSpec, backend: str = "sdpa") -> None:
        super().__init__(cfg.dim, cfg.init_std, width, spec)
        self.trunk = Trunk(cfg.dim, cfg.depth, cfg.heads, init_std=cfg.init_std, backend=backend)

    def forward(
        self,
        seen: Tensor,
        at: Tensor,
        wanted: Tensor,
        first: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Seen tokens [R, K, D] that lie at [R, K], and wanted places [R, Q], to [R, K, d] and [R, Q, d].

        `first` [R, 1, D] is a token without a place that may be looked at (MAE's class token); `valid` bool [R, K] is
        False on padding.
        """
        prefix, x = 0 if first is None else 1, self.assemble(seen, at, wanted, first)
        if valid is not None:
            valid = F.pad(F.pad(valid, (prefix, 0), value=True), (0, wanted.shape[1]), value=True)
        (out,), _ = self.trunk([x], [valid])
        return out[:, prefix : prefix + at.shape[1]], out[:, prefix + at.shape[1] :]

    def shard_units(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.trunk.blocks)


def gather_tokens(x: Tensor, at: Tensor) -> Tensor:
    """What x [R, N, ...] holds at the places [R, Q]: [R, Q, ...]."""
    index = at.reshape(*at.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
    return x.gather(1, index)


def places(mask: Mask) -> tuple[Tensor, Tensor]:
    """Where a mask of equal counts shows and hides tokens, each in order: int64 [R, K] and [R, Q]."""
    shown = visible(mask)
    order = mask.hidden.to(torch.uint8).argsort(dim=1, stable=True)
    return shown, order[:, shown.shape[1] :]
