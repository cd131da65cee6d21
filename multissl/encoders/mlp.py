"""A multilayer perceptron over flattened views: the plain encoder of table rows, and a baseline on any grid.

Shapes: R rows, C columns, F input features, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.data import Views
from multissl.contract.encoder import Encoder
from multissl.contract.learning import Features
from multissl.contract.plans import Masking, StreamSpec


class MLPEncoder(Encoder):
    """Linears, each with norm and GELU; categories enter one-hot. Its one token is the pooled one."""

    @dataclass(kw_only=True, slots=True)
    class Config(Encoder.Config):
        """Options of a perceptron."""

        dims: tuple[int, ...] = (256, 256)
        """Width of each layer; the last one is the encoder's. None: numbers pass as they are, which suits features
        that another encoder has made."""
        norm: bool = True
        """Layer norm after every linear."""

        def __post_init__(self) -> None:
            if self.dims and min(self.dims) < 1:
                raise ValueError(f"dims={self.dims}: want widths of 1 or more, such as 256 256, or none")

    def __init__(self, cfg: Config, spec: StreamSpec) -> None:
        super().__init__()
        if spec.kind == "sequence":
            raise ValueError(
                "the mlp encoder reads columns and grids, this stream is a sequence: use transformer"
            )
        self.levels = spec.cardinalities
        width = sum(max(n, 1) for n in self.levels) or math.prod(spec.shape)
        self.layers = nn.Sequential()
        for out in cfg.dims:
            self.layers.extend(
                [nn.Linear(width, out), nn.LayerNorm(out) if cfg.norm else nn.Identity(), nn.GELU()]
            )
            width = out
        self.dim = width

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Features of every item; views of a grid must all have the size it was built for."""
        assert masking == "none", masking
        assert inner == 0, "a perceptron has no blocks"
        pooled = [self.layers(self._flat(v.x)) for v in views]  # each [R, D]
        return [Features(pooled=p, tokens=p[:, None]) for p in pooled]

    def _flat(self, x: Tensor) -> Tensor:
        """[R, ...] to [R, F], categories one-hot."""
        if any(self.levels):
            columns = zip(x.unbind(1), self.levels, strict=True)
            x = torch.cat([F.one_hot(c.long(), n) if n else c[:, None] for c, n in columns], dim=1)
        first = next(self.parameters(), None)
        return x.flatten(1).to(torch.float32 if first is None else first.dtype)
