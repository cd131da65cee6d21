"""Two streams in memory: numbers and the words that tell their class and their number, some of either missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multissl.contract.data import Batch, Raw, Sample, Samples, Views
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Features
from multissl.contract.modality import Modality
from multissl.contract.plans import Masking, Plans, StreamSpec
from multissl.random import RowRandom

NAMES = ("red_fox", "owl", "bee", "toad")


class Facts(Modality):
    """Sample n is of class n mod 4; its numbers are the one-hot class and the one-hot n, its text names both."""

    @dataclass(kw_only=True, slots=True)
    class Config(Modality.Config):
        count: int = 24
        without: tuple[int, ...] = ()
        """Samples that lack their text."""
        told: bool = True
        """Whether the text tells the sample's number; else all samples of a class have one caption."""
        named: bool = True

    def streams(self) -> dict[str, StreamSpec]:
        return {
            "numbers": StreamSpec(kind="columns", shape=(4 + self.cfg.count,), num_tokens=1),
            "text": StreamSpec(kind="sequence", shape=(8,), num_tokens=8, vocab=256),
        }

    def dataset(self, split: str) -> Samples:
        return Rows(self.cfg)

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        raw: Raw = {}
        if "numbers" in plans:
            raw["numbers"] = torch.stack([torch.as_tensor(s.data["numbers"]) for s in samples])
        if "text" in plans:
            texts = [s.data.get("text", "") for s in samples]
            raw["text"] = torch.stack([self.ids(t) for t in texts])
            raw["present"] = torch.tensor([bool(t) for t in texts])
            raw["id"] = torch.tensor([hash_of(t) for t in texts])
        return raw

    def ids(self, text: str) -> Tensor:
        """The numbers of the class and of the sample that a text tells."""
        words = text.replace("_", " ").strip(".").split()
        kind = [i for i, n in enumerate(NAMES) if n.split("_")[-1] in words]
        number = [int(w) for w in words if w.isdigit()]
        return torch.tensor([kind[0] if kind else 99, number[0] if number else 99, *[0] * 6])

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        views = []
        if "numbers" in plans:
            views.append(Views(x=raw["numbers"], stream="numbers", role="clean"))
        if "text" in plans:
            views.append(
                Views(x=raw["text"], stream="text", role="clean", present=raw["present"], sample_id=raw["id"])
            )
        return Batch(views)

    def pictures(self, views: Views) -> np.ndarray:
        return np.zeros((len(views.x), 20, 10 if views.stream == "text" else 30, 3), np.uint8)


class Rows(Samples):
    def __init__(self, cfg: Facts.Config) -> None:
        self.cfg = cfg
        self.classes = list(NAMES) if cfg.named else []

    def __len__(self) -> int:
        return self.cfg.count

    def __getitem__(self, n: int) -> Sample:
        numbers = torch.zeros(4 + self.cfg.count)
        numbers[n % 4], numbers[4 + n] = 1, 1
        text = {"text": f"a {NAMES[n % 4]} {n if self.cfg.told else ''}"}
        return Sample({"numbers": numbers, **({} if n in self.cfg.without else text)}, n, n % 4)


def hash_of(text: str) -> int:
    return sum(ord(c) * 31**i for i, c in enumerate(text)) % 2**40


class Knows(FrozenEncoders):
    """Encoders that read class and number from either stream: the embedding is what `Facts` says of it."""

    def __init__(self, count: int = 24, blind: bool = False, wrong: bool = False) -> None:
        super().__init__(self.read, torch.device("cpu"))
        self.count, self.blind, self.wrong = count, blind, wrong

    def read(self, views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
        return [self.features(v) for v in views]

    def features(self, v: Views) -> Features:
        if v.stream == "numbers":
            z = v.x.float()
        else:
            z = torch.zeros(len(v.x), 104 + self.count)
            z[torch.arange(len(z)), v.x[:, 0]] = 1
            z[torch.arange(len(z)), 4 + v.x[:, 1].clamp(max=99)] += 1
            z = z[:, : 4 + self.count] + 1e-6
        if self.wrong and v.stream == "text":
            z = z.flip(1)
        return Features(pooled=z, tokens=z[:, None], embedding=None if self.blind else z)
