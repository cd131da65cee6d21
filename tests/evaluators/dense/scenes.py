"""Pictures with a label for every pixel, and an encoder of their patches, as small as protocols can be tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multissl.contract.abilities import IGNORED, HasPixelLabels, PixelLabel
from multissl.contract.data import Batch, Raw, Sample, Samples, Unreadable, Views
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Features
from multissl.contract.plans import Masking, Plans, StreamSpec
from multissl.random import RowRandom
from tests.helpers.stubs import Listed

SIDE, PATCH = 8, 2


class Scenes(HasPixelLabels):
    """Pictures [1, 8, 8] of classes 0 to 2 in blocks of patches; a pixel's brightness is its class, plus noise."""

    @dataclass(kw_only=True, slots=True)
    class Config(HasPixelLabels.Config):
        noise: float = 0.3
        train: int = 20
        val: int = 6
        broken: tuple[int, ...] = ()
        """Pictures of the val split whose mask cannot be read."""
        beyond: int = -1
        """The picture of the val split whose mask holds the class 7."""
        labeled: bool = True

    def streams(self) -> dict[str, StreamSpec]:
        return {
            "picture": StreamSpec(kind="grid", shape=(1, SIDE, SIDE), patch=(PATCH, PATCH), num_tokens=16)
        }

    def dataset(self, split: str) -> Samples:
        draw = torch.Generator().manual_seed(sum(map(ord, split)))
        count = self.cfg.train if split == "train" else self.cfg.val
        samples = []
        for i in range(count):
            classes = torch.randint(3, (4, 4), generator=draw).repeat_interleave(2, 0).repeat_interleave(2, 1)
            light = classes + self.cfg.noise * torch.randn(SIDE, SIDE, generator=draw)
            samples.append(Sample(data=(split, classes, light), index=i, group=i // 2))
        return Listed(samples)

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        return {"x": torch.stack([s.data[2] for s in samples])[:, None]}

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        return Batch([Views(x=raw["x"], stream="picture", role="clean")])

    def with_pixel_labels(self, split: str, kind: PixelLabel) -> list[int]:
        return [*range(len(self.dataset(split)))] if self.cfg.labeled else []

    def pixel_labels(self, sample: Sample, kind: PixelLabel, size: tuple[int, ...] = ()) -> Tensor:
        split, classes, _ = sample.data
        if split == "val" and sample.index in self.cfg.broken:
            raise Unreadable(sample.index, "broken on purpose")
        if kind == "depth":
            return 1.0 + classes
        labels = classes.to(torch.uint8)
        labels[0, 0] = IGNORED
        if split == "val" and sample.index == self.cfg.beyond:
            labels[3, 3] = 7
        return labels


def patches(x: Tensor) -> Tensor:
    """Return the pixels of every patch [R, 16, 4] of pictures [R, 1, 8, 8], in reading order."""
    rows = [
        x[:, 0, r : r + PATCH, c : c + PATCH].flatten(1)
        for r in range(0, SIDE, PATCH)
        for c in range(0, SIDE, PATCH)
    ]
    return torch.stack(rows, 1)


def seeing() -> FrozenEncoders:
    """Encoders whose tokens are the pixels of patches."""

    def encode(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
        return [Features(pooled=patches(v.x).mean(1), tokens=patches(v.x)) for v in views]

    return FrozenEncoders(encode, torch.device("cpu"))


def blind() -> FrozenEncoders:
    """Encoders whose tokens say nothing."""

    def encode(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
        return [Features(pooled=torch.ones(len(v.x), 4), tokens=torch.ones(len(v.x), 16, 4)) for v in views]

    return FrozenEncoders(encode, torch.device("cpu"))
