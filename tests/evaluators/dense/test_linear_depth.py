"""Linear depth, beside a head whose expectation and scores are worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from multissl.evaluators.dense.linear_depth import DepthHead, LinearDepth, depth_loss, depths_by, scores_of
from multissl.evaluators.dense.reading import Dense
from tests.evaluators.clusters import START
from tests.evaluators.dense.scenes import Scenes, blind, seeing

QUICK = {"steps": 25, "batch": 8, "bins": 16, "warmup": 0.2}


def at(values: torch.Tensor, y: float, x: float) -> float:
    """A bilinear value between pixel centers, of coordinates that are clamped to the edge."""
    y, x = (min(max(c, 0.0), n - 1.0) for c, n in zip((y, x), values.shape, strict=True))
    top, left = int(y), int(x)
    low, right = min(top + 1, values.shape[0] - 1), min(left + 1, values.shape[1] - 1)
    a, b = y - top, x - left
    upper = (1 - b) * values[top, left] + b * values[top, right]
    return float((1 - a) * upper + a * ((1 - b) * values[low, left] + b * values[low, right]))


def test_depths_are_those_of_a_loop_over_pixels() -> None:
    torch.manual_seed(0)
    head = DepthHead(3, 5)
    head.eval()
    torch.nn.init.normal_(head.linear.weight)
    pictures = Dense(torch.randn(1, 3, 2, 2), torch.ones(1, 8, 8), torch.zeros(1).numpy(), ["one"])
    made = depths_by(head, pictures, 1.0, 3.0, torch.device("cpu"))[0]
    with torch.no_grad():
        scores = head(pictures.tokens)[0]
    bins = [1.0 + 0.5 * k for k in range(5)]
    for y in range(8):
        for x in range(8):  # 2 x 2 patches enlarged four times are 8 x 8 pixels
            place = ((y + 0.5) / 4 - 0.5, (x + 0.5) / 4 - 0.5)
            share = [max(at(score, *place), 0.0) + 0.1 for score in scores]
            expected = sum(s * b for s, b in zip(share, bins, strict=True)) / sum(share)
            assert float(made[y, x]) == pytest.approx(expected, abs=1e-5)


def test_depth_is_found_by_features_that_tell_it_and_by_no_others() -> None:
    scenes = Scenes.Config(noise=0.1).build()
    figures = LinearDepth.Config(lr=(0.1,), **QUICK).build().run(seeing(), scenes, START)  # type: ignore[arg-type]
    nothing = LinearDepth.Config(lr=(0.1,), **QUICK).build().run(blind(), scenes, START)  # type: ignore[arg-type]
    assert figures["rmse"] < 0.6 < 0.75 < nothing["rmse"]
    assert figures["rmse"].n == 6  # type: ignore[attr-defined]
    assert 0 <= figures["a1"] <= 1


def test_the_rate_is_chosen_on_a_tenth_of_training_and_means_stand_beside_it() -> None:
    scenes = Scenes.Config(noise=0.1).build()
    evaluator = LinearDepth.Config(lr=(1e-7, 0.1), **QUICK).build()  # type: ignore[arg-type]
    assert evaluator.run(seeing(), scenes, START)["lr"] == 0.1
    floors = evaluator.baselines(scenes)
    assert [*floors] == ["raw", "constant", "position"]
    assert floors["raw"] < floors["constant"] == pytest.approx(math.sqrt(2 / 3), abs=0.15)


def test_pictures_without_depth_cost_nothing_and_do_not_count() -> None:
    depths = torch.ones(1, 1, 4, 4, requires_grad=True)
    assert float(depth_loss(depths, torch.zeros(1, 1, 4, 4), 0.5).detach()) == 0
    labels = torch.stack([torch.zeros(4, 4), torch.full((4, 4), 2.0)])
    pictures = Dense(torch.zeros(2, 1, 1, 1), labels, torch.full((2,), -1).numpy(), ["a", "b"])
    scores = scores_of(torch.ones(2, 4, 4), pictures)
    assert scores["rmse"] == 1.0
    assert scores["rmse"].n == 1  # type: ignore[attr-defined]
    assert scores["abs_rel"] == 0.5
