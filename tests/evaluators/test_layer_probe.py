"""The block that training samples choose, whatever the scored split would."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Features
from multissl.contract.plans import Masking
from multissl.evaluators.knn import KNN, knn_accuracy
from multissl.evaluators.layer_probe import LayerProbe, choose_block
from multissl.evaluators.linear_probe import LinearProbe
from tests.evaluators.clusters import START, Clusters, frozen


def three_blocks() -> FrozenEncoders:
    """Blocks that say nothing, all, and half."""

    def encode(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
        made = []
        for v in views:
            point = v.x - 5
            noise = torch.randn(len(point), 2, generator=torch.Generator().manual_seed(len(point)))
            blocks = (noise, point, point * torch.tensor([1.0, 0.0]) + 0.3 * noise)
            tokens = [torch.stack([b + 0.5, b - 0.5], 1) for b in blocks]
            made.append(Features(pooled=point, tokens=tokens[-1], inner=tuple(tokens[3 - inner :])))
        return made

    return FrozenEncoders(encode, torch.device("cpu"), depths={"points": 3})


def test_the_block_that_tells_classes_is_chosen_and_scored() -> None:
    modality = Clusters.Config().build()
    figures = LayerProbe.Config(k=5).build().run(three_blocks(), modality, START)
    assert figures["block"] == 2
    assert figures["top1"] == figures["block2"] > 95
    assert figures["block1"] < 50
    assert figures["block1"] < figures["block3"] < 90
    assert figures["block2"] == KNN.Config(k=(5,)).build().run(frozen(), modality, START)["top1"]


def test_the_last_of_equal_blocks_is_chosen_on_a_tenth_of_training() -> None:
    x = torch.eye(4).repeat(10, 1)
    labels = torch.arange(4).repeat(10)
    assert choose_block([x, torch.ones(40, 4), x], labels, votes) == 2


def votes(x: Tensor, y: Tensor, queries: Tensor, truth: Tensor) -> float:
    return knn_accuracy(x, y, queries, truth, (3,), 0.07)[3]


def test_a_linear_head_on_every_block_has_figures_of_its_own() -> None:
    modality = Clusters.Config().build()
    probe = LayerProbe.Config(k=5, linear=(1e-3, 1e-1)).build()
    figures = probe.run(three_blocks(), modality, START)
    alone = LayerProbe.Config(k=5).build()
    assert {n: v for n, v in figures.items() if not n.startswith("linear_")} == alone.run(
        three_blocks(), modality, START
    )
    assert figures["linear_block"] == 2
    linear = LinearProbe.Config(l2=(1e-3, 1e-1), train=5000, queries=2000).build()
    assert figures["linear_top1"] == figures["linear_block2"]
    assert figures["linear_block2"] == linear.run(frozen(), modality, START)["top1"] > 95
    assert figures["linear_block1"] < 50
    assert {"linear_top1", "linear_block"} <= {*probe.metric_names()}
    assert alone.metric_names() == ["top1", "block"]


def test_a_strength_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"linear=\(-1\.0,\): want strengths of 0 or more"):
        LayerProbe.Config(linear=(-1.0,))


def test_an_encoder_without_blocks_is_said(said: list[str]) -> None:
    assert LayerProbe.Config().build().run(frozen(), Clusters.Config().build(), START) == {}
    assert said == ["layer_probe: the encoder hands out no blocks, nothing to measure"]
