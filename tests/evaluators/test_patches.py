"""Patches: tokens that tell classes, tokens that are one, padding, and the alarm when they decay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from multissl.contract.data import Views
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Features
from multissl.contract.plans import Masking
from multissl.engine.judging import alarms
from multissl.evaluators.collapse import mean_cosines
from multissl.evaluators.patches import Patches, evenly
from tests.evaluators.clusters import START, Clusters

CPU = torch.device("cpu")


def encoders(parts: float) -> FrozenEncoders:
    """Three tokens of a point: the point itself, and `parts` times a direction of each token's own."""
    own = torch.eye(5)[2:]

    def encode(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
        made = []
        for v in views:
            point = torch.nn.functional.pad(v.x - 5, (0, 3))  # [R, 5]
            tokens = point[:, None] + parts * own  # [R, 3, 5]
            made.append(Features(pooled=point, tokens=tokens))
        return made

    return FrozenEncoders(encode, CPU)


def measured(parts: float, **options: Any) -> dict[str, float]:
    modality = Clusters.Config(**options).build()
    return Patches.Config(tokens=3, k=5).build().run(encoders(parts), modality, START)


def test_tokens_that_know_the_class_are_classified_and_those_that_are_one_are_alike() -> None:
    same, apart = measured(0.0), measured(1.0)
    assert same["top1"] > 95
    assert same["similarity"] == pytest.approx(1.0)
    assert apart["top1"] > 95
    assert apart["similarity"] == pytest.approx(
        0.5, abs=0.05
    )  # a direction in common, one of each token's own


def test_tokens_that_know_nothing_are_right_as_often_as_chance() -> None:
    assert measured(0.0, noise=50.0)["top1"] == pytest.approx(25, abs=15)


def test_without_labels_likeness_alone_is_measured() -> None:
    assert list(measured(1.0, labels=False)) == ["similarity"]


def test_likeness_is_the_mean_over_pairs() -> None:
    x = torch.randn(4, 5, 3)
    z = torch.nn.functional.normalize(x, dim=2)
    pairs = [[float(z[s, i] @ z[s, j]) for i in range(5) for j in range(5) if i != j] for s in range(4)]
    torch.testing.assert_close(mean_cosines(x.double()).float(), torch.tensor(pairs).mean(1))


def test_padding_is_never_taken() -> None:
    tokens = torch.arange(12.0).reshape(2, 6, 1)
    valid = torch.tensor([[True] * 6, [True, True, False, False, True, True]])
    views = Views(x=torch.zeros(2, 1), stream="points", role="clean", valid=valid)
    assert evenly(tokens, views, 3).squeeze(2).tolist() == [[1.0, 3.0, 5.0], [6.0, 10.0, 11.0]]
    assert evenly(tokens, views, 9).shape == (2, 6, 1)


def test_an_encoder_of_one_token_has_no_patches(said: list[str]) -> None:
    def encode(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
        return [Features(pooled=v.x, tokens=v.x[:, None]) for v in views]

    assert Patches.Config().build().run(FrozenEncoders(encode, CPU), Clusters.Config().build(), START) == {}
    assert "fewer than two tokens" in said[0]


def history(top1: Sequence[float], similarity: Sequence[float]) -> list[dict[str, float]]:
    return [
        {"step": 100.0 * i, "top1": a, "similarity": b}
        for i, (a, b) in enumerate(zip(top1, similarity, strict=True))
    ]


@pytest.mark.parametrize(
    ("top1", "similarity", "said"),
    [
        ([20, 50, 70, 60, 58], [0.5, 0.3, 0.3, 0.5, 0.6], r"k-NN 58\.0 %, 70\.0 % at step 200"),
        ([20, 50, 60, 60, 60], [0.5, 0.3, 0.3, 0.7, 0.8], r"mean cosine 0\.80, 0\.30 at step 100"),
        ([20, 50, 70, 60, 69], [0.5, 0.3, 0.3, 0.8, 0.3], ""),  # on its way back
        ([60, 50, 51], [0.3, 0.9, 0.9], ""),  # what came before training is no measure
        ([20, 50, 70, 71, 72], [0.5, 0.3, 0.2, 0.3, 0.4], ""),
    ],
)
def test_the_alarm_looks_at_the_last_two_measurements(
    top1: list[float], similarity: list[float], said: str
) -> None:
    evaluator = Patches.Config().build()
    text = evaluator.alarm(history(top1, similarity))
    assert bool(text) == bool(said)
    if said:
        assert re.search(said, text)
        assert "lower optim.lr" in text
    lines = [
        {"step": h["step"], "dense/top1": h["top1"], "dense/similarity": h["similarity"]}
        for h in history(top1, similarity)
    ]
    assert alarms({"dense": evaluator}, lines) == ([text] if text else [])


def test_without_labels_likeness_raises_the_alarm() -> None:
    lines = [{"step": 100.0 * i, "similarity": s} for i, s in enumerate((0.5, 0.3, 0.3, 0.7, 0.8))]
    assert "mean cosine 0.80" in Patches.Config().build().alarm(lines)
