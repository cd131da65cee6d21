"""Learning rate and weight decay that the groups of a config really have: first, around the end of the warm-up, last.

Written out with the formulas of the papers, without `multissl.schedules`.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from multissl.contract.encoder import build_encoders
from multissl.contract.learning import ParamRule, Progress
from multissl.engine.learner import Learner
from multissl.engine.optim.adamw import AdamW
from multissl.engine.optim.base import Optimizer
from multissl.engine.optim.lars import LARS
from multissl.engine.optim.sgd import SGD
from tests.helpers.stubs import Net, Points, Spread

STEPS, WARMUP = 40, 5
MOMENTS = (0, 1, WARMUP - 1, WARMUP, WARMUP + 1, 23, STEPS - 1)
SCALED = {
    ("none", 64): 1.0, ("none", 4096): 1.0, ("linear", 64): 0.25, ("linear", 256): 1.0, ("linear", 4096): 16.0,
    ("sqrt", 64): 0.25, ("sqrt", 1024): 1.0, ("sqrt", 4096): 2.0,
}  # fmt: skip
"""The factor on the learning rate by rule and batch: Goyal et al. 2017 for 256 samples, DINOv2 for 1024."""
KINDS: list[type[Optimizer]] = [AdamW, SGD, LARS]


def small() -> Learner:
    specs = Points.Config().build().streams()
    encoders = build_encoders({"points": Net.Config()}, specs)
    return Learner(encoders, Spread.Config().build(encoders, specs))


def built(kind: type[Optimizer], batch_size: int, **options: Any) -> Optimizer:
    return kind.Config(**options).build(small(), [], batch_size)


def rates(optimizer: Optimizer, step: int, total: int = STEPS) -> tuple[float, float]:
    """Learning rate and weight decay of the matrices after a step of the run."""
    returned = optimizer.step(Progress(step=step, total=total))
    (group,) = [g for g in optimizer.torch.param_groups if g["params"][0].ndim > 1]
    assert returned == group["lr"]
    return group["lr"], group["weight_decay"]


def expected_lr(step: int, peak: float, start: float, final: float, total: int = STEPS) -> float:
    """A line from `start` to the peak, which is reached at the last step of the warm-up, then half a cosine."""
    if step < WARMUP:
        return start + (peak - start) * step / (WARMUP - 1)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (total - WARMUP)))


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@pytest.mark.parametrize(("rule", "batch_size"), SCALED)
def test_the_rate_is_scaled_warmed_up_and_lowered_to_an_unscaled_end(
    kind: type[Optimizer], rule: Any, batch_size: int
) -> None:
    options: dict[str, Any] = {"lr": 0.02, "warmup": WARMUP, "warmup_lr": 0.001, "final_lr": 0.0005}
    optimizer = built(kind, batch_size, lr_scaling=rule, **options)
    peak = 0.02 * SCALED[rule, batch_size]
    assert optimizer.lr == pytest.approx(peak)
    for step in MOMENTS:
        assert rates(optimizer, step)[0] == pytest.approx(expected_lr(step, peak, 0.001, 0.0005)), step
    assert rates(optimizer, STEPS)[0] == pytest.approx(0.0005)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_weight_decay_follows_a_cosine_of_its_own_without_warm_up(kind: type[Optimizer]) -> None:
    optimizer = built(kind, 64, lr_scaling="linear", warmup=WARMUP, weight_decay=0.04, final_weight_decay=0.4)
    for step in MOMENTS:
        cosine = 0.4 + (0.04 - 0.4) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        assert rates(optimizer, step)[1] == pytest.approx(cosine), step
    assert rates(optimizer, 0)[1] == pytest.approx(0.04)
    assert rates(optimizer, STEPS)[1] == pytest.approx(0.4)
    constant = built(kind, 64, warmup=WARMUP, weight_decay=0.04)
    assert [rates(constant, step)[1] for step in MOMENTS] == [0.04] * len(MOMENTS)


def test_a_stretched_schedule_ends_before_it_is_over() -> None:
    optimizer = built(
        AdamW,
        256,
        lr=0.02,
        warmup=WARMUP,
        final_lr=0.0,
        weight_decay=0.04,
        final_weight_decay=0.4,
        stretch=1.25,
    )
    for step in MOMENTS:
        lr, decay = rates(optimizer, step)
        assert lr == pytest.approx(expected_lr(step, 0.02, 0.0, 0.0, 50)), step
        assert decay == pytest.approx(0.4 - 0.36 * 0.5 * (1 + math.cos(math.pi * step / 50))), step


def test_rates_in_steps_drop_to_a_tenth_at_each_of_them() -> None:
    optimizer = built(AdamW, 256, lr=0.02, warmup=WARMUP, lr_shape="steps", lr_drops=(20, 30))
    lrs = [rates(optimizer, step)[0] for step in (0, WARMUP - 1, WARMUP, 19, 20, 29, 30, STEPS - 1)]
    assert lrs == pytest.approx([0, 0.02, 0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002])
    at_once = built(AdamW, 256, lr=0.02, warmup=WARMUP, lr_shape="steps", lr_drops=(WARMUP,))
    assert [rates(at_once, step)[0] for step in (WARMUP - 1, WARMUP)] == pytest.approx([0.02, 0.002])


def test_a_constant_rate_stays_at_the_scaled_peak_and_keeps_its_factor() -> None:
    learner = small()
    objective = learner.objective
    assert isinstance(objective, Spread)
    rules = [ParamRule(of=objective.heads, constant=True, lr=0.5)]
    cfg = AdamW.Config(lr=0.02, lr_scaling="linear", warmup=WARMUP, final_lr=0.0)
    optimizer = cfg.build(learner, rules, 512)
    constant = {id(p) for p in objective.heads.parameters()}
    for step in MOMENTS:
        optimizer.step(Progress(step=step, total=STEPS))
        for group in optimizer.torch.param_groups:
            right = 0.02 if id(group["params"][0]) in constant else expected_lr(step, 0.04, 0.0, 0.0)
            assert group["lr"] == pytest.approx(right), step


def test_frozen_parameters_do_not_move_until_their_step_comes() -> None:
    learner = small()
    objective = learner.objective
    assert isinstance(objective, Spread)
    rules = [ParamRule(of=objective.heads, frozen_steps=3)]
    optimizer = AdamW.Config(lr=0.02).build(learner, rules, 64)
    weight = next(p for p in objective.heads.parameters() if p.ndim > 1)
    moved = []
    for step in range(5):
        before = weight.detach().clone()
        for parameter in learner.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step(Progress(step=step, total=STEPS))
        optimizer.zero_grad()
        assert weight.grad is None
        moved.append(not torch.equal(before, weight))
    assert moved == [False, False, False, True, True]
