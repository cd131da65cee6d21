"""The linear head on patches, beside a slow loop that trains it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.abilities import IGNORED
from multissl.evaluators.dense.linear_segmentation import LinearSegmentation, pixel_loss
from tests.evaluators.clusters import START
from tests.evaluators.dense.scenes import Scenes, blind, patches, seeing


def slow_miou(scenes: Scenes, steps: int, lr: float, decay: float, warmup: float, batch: int) -> float:
    """MIoU in percent of a head that is trained and scored by hand."""
    data = scenes.dataset("train")
    tokens = torch.stack(
        [patches(data[i].data[2][None, None])[0].T.reshape(4, 4, 4) for i in range(len(data))]
    )
    labels = torch.stack([scenes.pixel_labels(data[i], "classes").long() for i in range(len(data))])
    torch.manual_seed(0)
    norm, linear = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
    solver = torch.optim.AdamW(
        [
            {"params": [linear.weight], "weight_decay": decay},
            {"params": [linear.bias, norm.weight, norm.bias], "weight_decay": 0.0},
        ],
        lr=lr,
    )
    draw, order = torch.Generator().manual_seed(0), torch.empty(0, dtype=torch.int64)
    rising = int(warmup * steps)
    for step in range(steps):
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(len(data), generator=draw)])
        rows, order = order[:batch], order[batch:]
        share = (
            (step + 1) / rising
            if step < rising
            else (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2
        )
        for group in solver.param_groups:
            group["lr"] = lr * share
        scores = F.interpolate(linear(norm(tokens[rows])), (8, 8), mode="bilinear", align_corners=False)
        known = labels[rows] != IGNORED
        loss = F.cross_entropy(scores.permute(0, 2, 3, 1)[known], labels[rows][known])
        solver.zero_grad()
        loss.backward()
        solver.step()
    norm.eval()
    return slow_score(scenes, lambda token: linear(norm(token)))


def slow_score(scenes: Scenes, scores_of: Callable[[Tensor], Tensor]) -> float:
    """MIoU in percent, a pixel at a time."""
    scored = scenes.dataset("val")
    both, either = [0] * 3, [0] * 3
    for i in range(len(scored)):
        token = patches(scored[i].data[2][None, None])[0].T.reshape(1, 4, 4, 4)
        scores = F.interpolate(scores_of(token), (8, 8), mode="bilinear", align_corners=False)
        guess, truth = scores[0].argmax(0), scenes.pixel_labels(scored[i], "classes")
        for r in range(8):
            for c in range(8):
                if truth[r, c] != IGNORED:
                    a, b = int(truth[r, c]), int(guess[r, c])
                    both[a] += a == b
                    either[a] += 1
                    either[b] += a != b
    return 100 * sum(b / e for b, e in zip(both, either, strict=True)) / 3


def test_the_figure_is_that_of_a_head_that_is_trained_by_hand() -> None:
    scenes = Scenes.Config().build()
    assert isinstance(scenes, Scenes)
    cfg = LinearSegmentation.Config(
        lr=(0.1,), weight_decay=(0.01,), steps=20, batch=8, warmup=0.2, dropout=0.0
    )
    figures = cfg.build().run(seeing(), scenes, START)
    assert figures["miou"] == pytest.approx(slow_miou(scenes, 20, 0.1, 0.01, 0.2, 8), abs=0.3)
    assert figures["miou"] > 50
    assert cfg.build().run(blind(), scenes, START)["miou"] < 30


def test_the_rate_is_chosen_on_a_tenth_of_training_and_floors_stand_beside_it() -> None:
    scenes = Scenes.Config().build()
    evaluator = LinearSegmentation.Config(lr=(1e-6, 0.1), steps=20, batch=8).build()
    assert evaluator.selected_on == "a tenth of training"
    assert evaluator.run(seeing(), scenes, START)["lr"] == 0.1
    floors = evaluator.baselines(scenes)
    assert [*floors] == ["raw", "majority", "position"]
    assert floors["majority"] < floors["raw"]
    assert floors["majority"] == pytest.approx(100 / 9, abs=3)


def test_a_batch_without_a_class_costs_nothing() -> None:
    scores = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = pixel_loss(scores, torch.full((1, 2, 2), IGNORED, dtype=torch.uint8))
    loss.backward()
    assert float(loss.detach()) == 0
    assert bool((scores.grad == 0).all())  # type: ignore[union-attr]
