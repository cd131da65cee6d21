"""A linear encoder of columns, and batches for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multissl.contract.data import Views
from multissl.contract.encoder import Encoder, Encoders
from multissl.contract.learning import Features, Progress
from multissl.contract.plans import Masking, StreamSpec
from multissl.layers.heads import MLPHead

ROWS = StreamSpec(kind="columns", shape=(6,), num_tokens=6)
START = Progress(step=0, total=10)
HEAD = MLPHead.Config(hidden=8, out=5, layers=2)


class Linear(Encoder):
    """x [R, 6] to pooled [R, 4]; tokens [R, N, 4] where x is [R, N, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.linear = 4, nn.Linear(6, 4)

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        found = [self.linear(v.x) for v in views]
        return [
            Features(pooled=f.mean(1) if f.ndim == 3 else f, tokens=f if f.ndim == 3 else f[:, None])
            for f in found
        ]


def encoders_of(*streams: str) -> Encoders:
    """An encoder for every stream."""
    return Encoders({s: Linear() for s in streams})


def rows(views: int = 2, batch: int = 8, stream: str = "rows", **extra: Any) -> Views:
    """Global views of random rows."""
    return Views(x=torch.randn(views * batch, 6), stream=stream, role="global", num_views=views, **extra)


def alone_and_beside(z: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """z [V, B, P] with rubbish where `there` [V, B] says no, and the samples that are all there."""
    spoilt = torch.where(there[..., None], z, torch.full_like(z, 1e3))
    return spoilt, z[:, there.all(0)]
