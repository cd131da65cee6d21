"""Every registered evaluator with data and encoders that it gives finite figures on, as small as they can be."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multissl import registry
from multissl.contract.abilities import (
    HasAttention,
    HasPixelLabels,
    HasRecordings,
    HasStates,
    HasText,
    HiddenWords,
    PixelLabel,
    Running,
)
from multissl.contract.data import Batch, Mask, Raw, Sample, Samples, Views
from multissl.contract.encoder import Encoders
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Features
from multissl.contract.modality import Modality
from multissl.contract.plans import Masking, Plans, StreamSpec
from multissl.contract.preparation import Constants, Preparation
from multissl.random import RowRandom
from tests.evaluators.clusters import Clusters, Pointwise, frozen
from tests.evaluators.pairs import Facts, Knows
from tests.helpers.stubs import Listed

Change = Callable[[list[Sample]], list[Sample]]
WORDS = 6


def unchanged(samples: list[Sample]) -> list[Sample]:
    return samples


class Subject(Clusters, HasStates, HasRecordings, HasText, HasPixelLabels):
    """Points with labels, groups, states, a second part, words, pixels; `change` is applied to the val split alone."""

    change: Change = staticmethod(unchanged)
    change_states: Callable[[Tensor], Tensor] = staticmethod(lambda states: states)

    def dataset(self, split: str) -> Samples:
        base = super().dataset(split)
        samples = [replace(base[i], group=i // 6) for i in range(len(base))]
        return Listed(self.change(samples) if split == "val" else samples)

    def states(self, split: str) -> tuple[Tensor, tuple[str, ...]]:
        draw = torch.Generator().manual_seed(1)
        data = self.dataset(split)
        samples = [data[i] for i in range(len(data))]
        noise = torch.randn(120, 2, generator=draw)[[s.index for s in samples]]
        plain = super().dataset(split)  # a state is of the world, whatever becomes of the features
        points = torch.stack([plain[s.index].data for s in samples])
        states = points @ torch.tensor([[1.0, 2.0], [0.5, -1.0]]) + 0.3 * noise
        return (self.change_states(states) if split == "val" else states), ("height", "speed")

    def parts(self, sample: Sample) -> tuple[Sample, Sample]:
        draw = torch.Generator().manual_seed(sample.index)
        return sample, replace(sample, data=sample.data + 0.01 * torch.randn(2, generator=draw))

    def with_pixel_labels(self, split: str, kind: PixelLabel) -> list[int]:
        return [*range(len(self.dataset(split)))]

    def pixel_labels(self, sample: Sample, kind: PixelLabel, size: tuple[int, ...] = ()) -> Tensor:
        values = torch.tensor([[sample.label, 3 - sample.label]])
        return values.to(torch.uint8) if kind == "classes" else 1.0 + values

    def films(self, split: str) -> list[list[int]]:
        return [[*range(first, first + 6)] for first in range(0, len(self.dataset(split)), 6)]

    def hidden_words(self, split: str, count: int) -> HiddenWords:
        return HiddenWords(views=[self._words()], nats={"counts": np.linspace(1.0, 2.0, WORDS)})

    def running(self, split: str, count: int) -> Running:
        seen = [torch.ones(WORDS, 1, dtype=torch.bool)]
        return Running(
            views=[self._words()], first_seen=seen, documents=2, symbols=9, characters=50, baseline=3.0
        )

    def _words(self) -> Views:
        hidden = torch.tensor([[True, False]] * WORDS)
        mask = Mask(hidden=hidden, index=2 * torch.arange(WORDS), weight=torch.ones(WORDS))
        x = torch.arange(2.0 * WORDS).reshape(WORDS, 2)
        return Views(x=x, stream="points", role="clean", masks=(mask,))


@functools.cache
def expansion() -> nn.Module:
    """Eight features of a point, of which few matter, so that strengths of penalties do."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh())


def seeing() -> FrozenEncoders:
    """Encoders of points, with an objective that pays for words."""
    return replace(frozen(expansion()), part_errors=lambda views: views.x[:, :1] / 10)


def paying_by_word() -> FrozenEncoders:
    return replace(frozen(expansion()), part_errors=lambda views: views.x[:, 0] / 10)


def two_tokens() -> FrozenEncoders:
    """Encoders of points that give a token for each half of their features."""
    whole = seeing()

    def encode(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
        return [
            replace(f, tokens=f.pooled.unflatten(1, (2, -1))) for f in whole.function(views, masking, inner)
        ]

    return FrozenEncoders(encode, whole.device)


def two_blocks() -> FrozenEncoders:
    """Encoders of points that hand out the point and its features as the outputs of two blocks."""
    whole = seeing()

    def encode(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
        return [
            replace(f, inner=(v.x.repeat(1, 4)[:, None], f.pooled[:, None])[2 - inner :])
            for f, v in zip(whole.function(views, masking, 0), views, strict=True)
        ]

    return FrozenEncoders(encode, whole.device, depths={"points": 2})


class Plain(Preparation):
    """Bytes of pictures as shares of white."""

    def __call__(self, x: Tensor, mask: Tensor | None, constants: Constants) -> tuple[Tensor, Tensor | None]:
        return x.float() / 255, None

    def example(self, rows: int, other: bool = False) -> tuple[Tensor, ...]:
        return (torch.zeros(rows, 3, 4, 4),)


class Photos(Subject):
    """The points as pictures of one color: red is the first coordinate, green the second, a sixteenth of each."""

    def streams(self) -> dict[str, StreamSpec]:
        return {"points": StreamSpec(kind="grid", shape=(3, 4, 4), patch=(2, 2), num_tokens=4)}

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        colors = torch.nn.functional.pad(raw["x"] / 16, (0, 1)).clamp(0, 1)
        return Batch([Views(x=colors[:, :, None, None].expand(-1, -1, 4, 4), stream="points", role="clean")])

    def pictures(self, views: Views) -> np.ndarray:
        return (views.x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def preparation(self, stream: str) -> Preparation:
        return Plain(reads="pictures [B, 3, 4, 4]")


def seeing_photos() -> FrozenEncoders:
    """Encoders of pictures by their mean color."""

    def encode(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
        pooled = [expansion()(16 * v.x[:, :2].mean((2, 3))).detach() for v in views]
        return [Features(pooled=p, tokens=p[:, None]) for p in pooled]

    return FrozenEncoders(encode, torch.device("cpu"))


class Attending(Pointwise, HasAttention):
    """An encoder of points with two heads, which look at either of two tokens."""

    def attention(self, views: Views) -> Tensor:
        return views.x[:, None].sigmoid().repeat(1, 2, 1)


def two_heads() -> FrozenEncoders:
    """Encoders of points that hand out attention."""
    return replace(two_tokens(), modules=Encoders({"points": Attending(nn.Identity())}))


@dataclass(frozen=True)
class Case:
    """An evaluator's options, data and encoders."""

    options: dict[str, Any]
    modality: Callable[[], Modality] = lambda: Subject.Config(noise=0.5).build()
    encoders: Callable[[], FrozenEncoders] = seeing
    needs: str = "torch"
    """A module that the evaluator reads beside the package's own."""

    def build(self, name: str) -> Evaluator:
        return registry.resolve(name, "evaluators").Config(**self.options).build()


CASES: dict[str, Case] = {
    "knn": Case({"k": (5, 20)}),
    "linear_probe": Case({}),
    "linear_grid": Case({"lr": (0.01, 0.1), "steps": 60, "batch": 16}),
    "logistic_regression": Case(
        {"c": (0.01, 1.0), "max_iter": 100, "tolerance": 1e-6, "classical": True}, needs="sklearn"
    ),
    "attentive_probe": Case(
        {"lr": (0.01, 0.1), "weight_decay": (0.01, 0.1), "steps": 30, "batch": 32}, encoders=two_tokens
    ),
    "mlp_probe": Case({"lr": (0.03, 0.3), "layers": (1, 2), "hidden": 8, "steps": 20, "batch": 32}),
    "layer_probe": Case({"k": 5}, encoders=two_blocks),
    "weighted_layers": Case({"lr": (0.03, 0.3), "steps": 20, "batch": 32}, encoders=two_blocks),
    "corruptions": Case(
        {
            "corruptions": ("brightness", "gaussian_noise"),
            "severities": (1, 3),
            "l2": (0.1, 0.001),
            "max_steps": 50,
        },
        modality=lambda: Photos.Config(noise=0.5).build(),
        encoders=seeing_photos,
    ),
    "fine_tune": Case({"lr": (0.01, 0.1), "epochs": 1, "warmup": 0, "batch": 64, "seeds": 2}),
    "few_shot": Case({"per_class": (1, 5), "tries": 2}),
    "k_means": Case({"starts": 2}, needs="sklearn"),
    "class_retrieval": Case({}),
    "group_gaps": Case({"k": 5, "least": 2}),
    "label_free": Case({"samples": 0, "first": 1, "views": 0}, needs="sklearn"),
    "state_probe": Case({}),
    "collapse": Case({}),
    "drift": Case({"k": 5, "max_loss": 0.0}),
    "patches": Case({"tokens": 2}, encoders=two_tokens),
    "few_labels": Case({"labels": 16, "draws": 2, "classical": False}, needs="sklearn"),
    "retrieval": Case({}, modality=lambda: Facts.Config().build(), encoders=Knows),
    "zero_shot": Case({}, modality=lambda: Facts.Config().build(), encoders=Knows),
    "linear_segmentation": Case({"lr": (0.01, 0.1), "steps": 8, "warmup": 0.1}, encoders=two_tokens),
    "linear_depth": Case({"lr": (0.01, 0.1), "steps": 8, "warmup": 0.1, "bins": 8}, encoders=two_tokens),
    "video_propagation": Case({"radius": 0}, encoders=two_tokens),
    "attention_jaccard": Case({}, encoders=two_heads),
    "patch_knn": Case({"k": (1, 5)}, encoders=two_tokens),
    "masked_word": Case({}, encoders=paying_by_word),
    "bits_per_character": Case({}),
    "recording_probe": Case({}),
}
"""By registered name: whoever registers an evaluator writes a line here, and the laws below hold it to them."""


def broken(encoders: FrozenEncoders, value: float, row: int = 3) -> FrozenEncoders:
    """The same encoders, one row of whose every output is not finite."""

    def spoil(values: Tensor) -> Tensor:
        values = values.clone()
        values[row] = value
        return values

    def encode(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
        return [
            replace(
                f, pooled=spoil(f.pooled), tokens=spoil(f.tokens), inner=tuple(map(spoil, f.inner)),
                embedding=None if f.embedding is None else spoil(f.embedding),
            )
            for f in encoders.function(views, masking, inner)
        ]  # fmt: skip

    errors = encoders.part_errors
    spoilt = None if errors is None else lambda views: spoil(errors(views))
    return FrozenEncoders(
        encode, encoders.device, part_errors=spoilt, modules=encoders.modules, depths=encoders.depths
    )
