"""TiCo: its terms against loops, the covariance over steps, missing samples, ranks, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Batch
from multissl.layers.covariance import MovingCovariance
from multissl.layers.teacher import Teacher
from multissl.losses import tico as module
from multissl.losses.tico import moved_covariance, tico_terms
from multissl.objectives.tico import TiCo
from tests.helpers.ranks import run_ranks
from tests.objectives.plain import HEAD, ROWS, START, alone_and_beside, encoders_of, rows
from tests.objectives.planted import of_one_rank, right_and_planted

TEACHER = Teacher.Config(ema=0.5, final_ema=0.5)


def test_the_terms_are_those_of_the_paper() -> None:
    z, target, before = torch.randn(6, 5), torch.randn(6, 5), torch.rand(5, 5)
    covariance = moved_covariance(z, before, 0.75)
    expected, along, away = 0.75 * before, [], []
    for each in F.normalize(z, dim=1):
        expected = expected + 0.25 * torch.outer(each, each) / 6
    torch.testing.assert_close(covariance, expected)
    for a, b in zip(F.normalize(z, dim=1), F.normalize(target, dim=1), strict=True):
        along.append(a @ expected @ a)
        away.append(1 - a @ b)
    terms = tico_terms(z, target, covariance)
    torch.testing.assert_close(terms["covariance"], torch.stack(along).mean())
    torch.testing.assert_close(terms["invariance"], torch.stack(away).mean())


def test_one_point_costs_the_most_and_all_directions_alike_the_least() -> None:
    point, corners = torch.ones(8, 4), torch.eye(4).repeat(2, 1)
    for z, cost in ((point, 1.0), (corners, 1 / 4)):
        terms = tico_terms(z, z, moved_covariance(z, torch.zeros(4, 4), 0.0))
        torch.testing.assert_close(terms["covariance"], torch.tensor(cost))
        assert terms["invariance"].abs() < 1e-6


def test_the_covariance_passes_no_gradient() -> None:
    z = torch.randn(6, 5, requires_grad=True)
    covariance = moved_covariance(z, torch.rand(5, 5), 0.5)
    assert not covariance.requires_grad
    (found,) = torch.autograd.grad(tico_terms(z, z.detach(), covariance)["covariance"], z)
    unit = F.normalize(z, dim=1)
    (expected,) = torch.autograd.grad(((unit @ covariance.clone()) * unit).sum(1).mean(), z)
    torch.testing.assert_close(found, expected)
    assert found.any()


def test_missing_samples_count_for_nothing() -> None:
    z, there = torch.randn(2, 8, 5), torch.ones(2, 8, dtype=torch.bool)
    there[:, 2] = False
    spoilt, kept = alone_and_beside(z, there)
    before = torch.rand(5, 5)
    found, right = moved_covariance(spoilt[0], before, 0.9, there[0]), moved_covariance(kept[0], before, 0.9)
    torch.testing.assert_close(found, right)
    for name, value in tico_terms(kept[0], kept[1], right).items():
        torch.testing.assert_close(tico_terms(spoilt[0], spoilt[1], found, there[0])[name], value)
    assert torch.equal(moved_covariance(spoilt[0], before, 0.9, there[0] & False), before)


def test_half_precision_inputs_are_computed_in_full() -> None:
    z = torch.randn(2, 64, 5) + 1
    covariance = moved_covariance(z[0], torch.zeros(5, 5), 0.9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = moved_covariance(z[0].bfloat16(), torch.zeros(5, 5), 0.9)
        terms = tico_terms(z[0].bfloat16(), z[1].bfloat16(), half)
    assert half.dtype == torch.float32
    for name, value in tico_terms(z[0], z[1], covariance).items():
        torch.testing.assert_close(terms[name], value, rtol=0.02, atol=2e-3)


def test_the_covariance_is_kept_after_the_step_alone() -> None:
    moving, total = MovingCovariance(5, 0.9), torch.zeros(5, 5)
    for _ in range(3):
        z = torch.randn(8, 5)
        before = moving.covariance.clone()
        moving.observe(torch.randn(8, 5))  # a step that is made again observes anew
        moved = moving.observe(z)
        assert torch.equal(moving.covariance, before)
        moving.after_step()
        total = 0.9 * total + 0.1 * F.normalize(z, dim=1).T @ F.normalize(z, dim=1) / 8
        torch.testing.assert_close(moving.covariance, total)
        assert torch.equal(moving.covariance, moved)


def gradients(rank: int, z: Tensor, ranks: int) -> tuple[Tensor, Tensor]:
    """The gradient of this rank's samples, and that of a covariance of its own samples alone."""

    def loss(x: Tensor) -> Tensor:
        covariance = moved_covariance(x[0], torch.eye(5), 0.5)
        return torch.stack([*tico_terms(x[0], x[1], covariance).values()]).sum()

    return right_and_planted(loss, z, rank, ranks, module, "sum_ranks", of_one_rank)


@pytest.mark.ranks
def test_two_ranks_give_the_gradient_of_one_and_a_covariance_of_one_rank_does_not() -> None:
    z = torch.randn(2, 8, 5)
    parts, (expected, _) = run_ranks(2, gradients, z, 2), gradients(0, z, 1)
    torch.testing.assert_close(torch.cat([p[0] for p in parts], 1), expected)
    assert (torch.cat([p[1] for p in parts], 1) - expected).abs().max() > 1e-3


def made(*streams: str, **options: Any) -> tuple[Any, Any]:
    encoders = encoders_of(*streams)
    cfg = TiCo.Config(**{"projector": HEAD, "teacher": TEACHER, **options})
    return cfg.build(encoders, dict.fromkeys(streams, ROWS)), encoders


def test_the_first_view_asks_for_the_teachers_second_one() -> None:
    objective, encoders = made("rows", rho=3.0)
    batch = Batch([rows()])
    losses = objective(encoders, batch, START)
    first, second = batch[0].x.chunk(2)
    z = objective.projectors["rows"](encoders["rows"].linear(first))
    with torch.no_grad():
        t = objective.teacher["projectors"]["rows"](objective.teacher.encoders["rows"].linear(second))
    terms = tico_terms(z, t, moved_covariance(z, torch.zeros(5, 5), 0.9))
    torch.testing.assert_close(
        losses.total, terms["invariance"] + 3 * terms["covariance"], rtol=1e-4, atol=1e-5
    )
    losses.total.backward()
    assert all(p.grad is not None for p in [*encoders.parameters(), *objective.projectors.parameters()])
    assert not any(p.grad is not None for p in objective.teacher.parameters())


def test_slow_state_moves_after_the_step() -> None:
    objective, encoders = made("rows")
    objective(encoders, Batch([rows()]), START)
    assert not objective.covariances["rows"].covariance.any()
    with torch.no_grad():
        encoders["rows"].linear.bias.add_(1)
    before = objective.teacher.encoders["rows"].linear.bias.clone()
    objective.after_step(encoders, START)
    assert objective.covariances["rows"].covariance.trace() == pytest.approx(0.1, abs=1e-5)
    torch.testing.assert_close(objective.teacher.encoders["rows"].linear.bias, before + 0.5)
    history = [{"step": float(s), "stats/std": 0.01} for s in range(0, 200, 10)]
    assert "raise objective.rho" in objective.alarm(history, START)


def test_several_streams_ask_for_each_other() -> None:
    objective, encoders = made("a", "b", symmetric=True)
    assert [(p.num_clean, p.num_global) for p in objective.plans().values()] == [(1, 0), (1, 0)]
    batch = Batch(rows(1, stream=s, present=torch.arange(8) < 6) for s in "ab")
    losses = objective(encoders, batch, START)
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(p.grad is not None for p in [*encoders.parameters(), *objective.projectors.parameters()])
    assert not torch.equal(*(objective.covariances[s].waiting for s in "ab"))


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"objective\.rho=-1: want 0 or more"):
        TiCo.Config(rho=-1)
    with pytest.raises(ValueError, match=r"objective\.beta=1: want 0 or more and below 1"):
        TiCo.Config(beta=1)
    with pytest.raises(ValueError, match=r"set objective\.symmetric=True"):
        made("a", "b")
