"""A modality of labeled points in the plane, and encoders of it, as small as evaluators can be tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from multissl.contract.data import Batch, Raw, Sample, Samples, Unreadable, Views
from multissl.contract.encoder import Encoder, Encoders
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Features, Progress
from multissl.contract.modality import Modality
from multissl.contract.plans import Masking, Plans, StreamSpec
from multissl.random import RowRandom
from tests.helpers.stubs import Listed

START = Progress(step=0, total=10)


class Clusters(Modality):
    """Points around `classes` centers on the unit circle; the label is the center. Far from the origin."""

    @dataclass(kw_only=True, slots=True)
    class Config(Modality.Config):
        classes: int = 4
        noise: float = 0.1
        labels: bool = True
        broken: tuple[int, ...] = ()
        pictures: bool = False

    def streams(self) -> dict[str, StreamSpec]:
        return {"points": StreamSpec(kind="columns", shape=(2,), num_tokens=2)}

    def dataset(self, split: str) -> Samples:
        generator = torch.Generator().manual_seed(sum(map(ord, split)))
        label = torch.arange(120 if split == "train" else 60) % self.cfg.classes
        angle = 2 * torch.pi * label / self.cfg.classes
        x = torch.stack([angle.cos(), angle.sin()], 1)
        x = 5 + x + self.cfg.noise * torch.randn(len(x), 2, generator=generator)
        return Listed(
            [
                Sample(data=row, index=i, label=int(y) if self.cfg.labels else -1)
                for i, (row, y) in enumerate(zip(x, label, strict=True))
            ]
        )

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        for sample in samples:
            if sample.index in self.cfg.broken:
                raise Unreadable(sample.index, "broken on purpose")
        return {"x": torch.stack([s.data for s in samples])}

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        return Batch([Views(x=raw["x"], stream="points", role="clean")])

    def pictures(self, views: Views) -> np.ndarray | None:
        """A gray square, the lighter the further to the right."""
        if not self.cfg.pictures:
            return None
        gray = (views.x[:, :1] * 30).clamp(0, 255).byte().numpy()
        return np.broadcast_to(gray[:, :, None, None], (len(gray), 8, 8, 3)).copy()


class Pointwise(Encoder):
    """Applies a module to every row; remembers whether it was ever used in training mode."""

    dim = 2
    """Of the identity; what evaluators measure is as wide as it is."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen_training = inner, False

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        self.seen_training |= self.training
        outs: list[Tensor] = [self.inner(v.x) for v in views]
        return [Features(pooled=out, tokens=out[:, None]) for out in outs]


class Constant(nn.Module):
    """The same features for every row."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), 8) + 1e-4 * torch.randn(
            len(x), 8, generator=torch.Generator().manual_seed(0)
        )


def encoders(inner: nn.Module | None = None) -> Encoders:
    return Encoders({"points": Pointwise(inner or nn.Identity())})


def frozen(inner: nn.Module | None = None) -> FrozenEncoders:
    return FrozenEncoders.of(encoders(inner))
