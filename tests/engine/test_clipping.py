"""Clipping by hand, and that a run does it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from multissl.engine.optim.sgd import SGD
from multissl.parallel.gradients import clip_gradients, largest_gradient
from multissl.run import train as run
from tests.helpers.stubs import recipe


def make_parameter(*gradient: float) -> nn.Parameter:
    made = nn.Parameter(torch.zeros(len(gradient)))
    made.grad = torch.tensor(gradient)
    return made


def test_a_group_too_long_is_scaled_to_the_limit_and_others_stay() -> None:
    long, short = [make_parameter(3.0, 0.0), make_parameter(4.0)], [make_parameter(0.3, 0.4)]
    norms = clip_gradients({"long": long, "short": short}, 1.0)
    assert {name: norm.item() for name, norm in norms.items()} == pytest.approx({"long": 5.0, "short": 0.5})
    for p, expected in zip([*long, *short], ([0.6, 0.0], [0.8], [0.3, 0.4]), strict=True):
        torch.testing.assert_close(p.grad, torch.tensor(expected), rtol=1e-5, atol=0)


def test_a_limit_of_zero_clips_nothing() -> None:
    p = make_parameter(30.0, 40.0)
    assert clip_gradients({"all": [p]}, 0.0)["all"] == 50
    assert p.grad is not None
    assert p.grad.tolist() == [30.0, 40.0]


def test_the_largest_gradient_is_that_of_all_parameters_and_shows_what_is_not_finite() -> None:
    some = [make_parameter(0.5, -3.25), make_parameter(), make_parameter(2.0)]
    assert largest_gradient(some) == 3.25
    assert largest_gradient([nn.Parameter(torch.zeros(2)), make_parameter()]) == 0
    assert largest_gradient([*some, make_parameter(1.0, float("-inf"))]) == float("inf")
    assert largest_gradient([make_parameter(1.0, float("nan")), *some]).isnan()


def train_a_step(folder: Path, clip: float) -> Tensor:
    """All weights of the encoder after one step of plain gradient descent with a learning rate of 1."""
    optim = SGD.Config(lr=1.0, final_lr=1.0, momentum=0.0, weight_decay=0.0)
    run.train(recipe().replace(optim=optim, steps=1, clip=clip, clip_per="module"), folder)
    return torch.cat([t.flatten() for t in load_file(folder / "encoder.safetensors").values()])


def test_a_run_steps_by_the_clipped_gradient(tmp_path: Path) -> None:
    near, far = (train_a_step(tmp_path / name, clip) for name, clip in (("near", 1e-3), ("far", 3e-3)))
    assert (far - near).norm().item() == pytest.approx(2e-3, rel=1e-2)
