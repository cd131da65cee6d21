"""A learned weighted sum of blocks: beside a loop, where one block alone tells, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from multissl.contract.data import Views
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Features
from multissl.contract.plans import Masking
from multissl.evaluators.probes.training import Trial, train_trials
from multissl.evaluators.probes.weighted_layers import LayerSum, WeightedLayers
from tests.evaluators.clusters import START, Clusters, frozen


def three_blocks(far: float = 0.0) -> FrozenEncoders:
    """Blocks that say nothing, all, and nothing; tokens beside padding, which is `far` away."""

    def encode(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
        made = []
        for v in views:
            v.valid = torch.tensor([True, True, False]).expand(len(v.x), -1)
            noise = torch.randn(len(v.x), 2, generator=torch.Generator().manual_seed(len(v.x)))
            point = v.x - 5
            blocks = [torch.stack([b + 0.5, b - 0.5, b + far], 1) for b in (noise, point, noise.flip(1))]
            made.append(Features(pooled=noise, tokens=blocks[-1], inner=tuple(blocks[3 - inner :])))
        return made

    return FrozenEncoders(encode, torch.device("cpu"), depths={"points": 3})


PROBE = WeightedLayers.Config(lr=(0.3,), steps=150, batch=64)


def test_the_block_that_tells_has_the_largest_weight() -> None:
    modality = Clusters.Config().build()
    probe = PROBE.build()
    figures = probe.run(three_blocks(), modality, START)
    assert figures["top1"] > 95
    assert figures["block"] == 2
    assert figures["weight"] == figures["weight2"] > 50
    assert sum(figures[f"weight{i}"] for i in (1, 2, 3)) == pytest.approx(100)
    assert {*probe.metric_names()} <= {*figures}
    assert probe.run(three_blocks(far=1e4), modality, START) == figures
    assert probe.selected_on == "none"
    assert WeightedLayers.Config().build().selected_on == "a tenth of training"


def test_head_and_weights_are_trained_together_from_equal_weights() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 3, 4, generator=draw), torch.randint(0, 2, (30,), generator=draw)
    torch.manual_seed(1)
    head = LayerSum(3, 4, 2)
    torch.testing.assert_close(head.shares(), torch.full((3,), 1 / 3))
    weight, bias = (p.detach().clone().requires_grad_() for p in head.classifier.parameters())
    scores = torch.zeros(3, requires_grad=True)
    train_trials(
        [Trial(head, 0.5)], lambda h, rows: h(x[rows]), torch.arange(30), y, steps=8, batch=30, warmup=0.0
    )
    solver = torch.optim.AdamW([weight, bias, scores], betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(8):
        total = torch.zeros(30, 4)
        for layer in range(3):
            total = total + scores[layer].exp() / scores.exp().sum() * x[:, layer]
        for group in solver.param_groups:
            group["lr"] = 0.5 * 30 / 256 * (1 + math.cos(math.pi * step / 8)) / 2
        solver.zero_grad()
        F.cross_entropy(total @ weight.T + bias, y).backward()
        solver.step()
    for ours, theirs in (
        (head.scores, scores),
        (head.classifier.weight, weight),
        (head.classifier.bias, bias),
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert scores.abs().min() > 1e-3


def test_tokens_are_normalized_before_their_mean() -> None:
    modality = Clusters.Config().build()
    shown = []
    for normalize in (False, True):
        probe: Any = PROBE.replace(normalize=normalize).build()
        shown.append(probe.read(three_blocks(), modality, "val", 5).inputs[0])
    plain, normal = shown
    assert plain.shape == normal.shape == (5, 3, 2)
    tokens = torch.stack([plain + 0.5, plain - 0.5], 2)
    torch.testing.assert_close(normal, F.layer_norm(tokens, (2,)).mean(2))


def test_an_encoder_without_blocks_gives_no_figure_and_says_so(said: list[str]) -> None:
    whole = replace(frozen(), depths={})
    assert PROBE.build().run(whole, Clusters.Config().build(), START) == {}
    assert said == ["weighted_layers: the encoder hands out no blocks, nothing to measure"]
