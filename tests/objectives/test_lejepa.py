"""LeJEPA: the statistic against loops, what a Gaussian costs, ranks with unequal batches, and what is refused."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.contract.data import Batch
from multissl.contract.learning import Progress
from multissl.losses import sigreg as module
from multissl.losses.sigreg import (
    distance_to_center,
    draw_directions,
    gaussian_cost,
    sigreg,
    slice_statistics,
)
from multissl.objectives.lejepa import LeJEPA
from tests.helpers.ranks import run_ranks
from tests.objectives.plain import HEAD, ROWS, START, alone_and_beside, encoders_of, rows


def directions(width: int = 5, slices: int = 7) -> Tensor:
    return draw_directions(width, slices, 3, torch.zeros((), dtype=torch.float64))


def test_the_statistic_is_the_integral_of_the_paper() -> None:
    z, a = torch.randn(6, 5, dtype=torch.float64), directions()
    steps = torch.linspace(0, 3, 17, dtype=torch.float64).tolist()
    for k in range(7):
        values = []
        for t in steps:
            wave = sum(complex(math.cos(t * h), math.sin(t * h)) for h in (z @ a[:, k]).tolist()) / 6
            values.append(math.exp(-(t**2) / 2) * abs(wave - math.exp(-(t**2) / 2)) ** 2)
        integral = 2 * sum((u + v) / 2 * 3 / 16 for u, v in itertools.pairwise(values))
        torch.testing.assert_close(slice_statistics(z, a)[k].item(), 6 * integral)
    torch.testing.assert_close(sigreg(z, a), slice_statistics(z, a).mean())
    assert sigreg(z, a, reduction="sum") == slice_statistics(z, a).sum()


def test_directions_are_unit_vectors_and_those_of_the_step() -> None:
    like = torch.zeros(())
    one, same, other = (draw_directions(4, 9, step, like) for step in (1, 1, 2))
    torch.testing.assert_close(one.norm(dim=0), torch.ones(9))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_gaussian_costs_the_same_at_any_size_and_a_point_costs_in_proportion_to_it() -> None:
    assert gaussian_cost() == pytest.approx(1.0525, abs=1e-4)
    a = draw_directions(16, 64, 0, torch.zeros(()))
    for count in (16, 256):
        gaussian = sigreg(torch.randn(400, count, 16), a[:, :8]).item()
        assert gaussian == pytest.approx(gaussian_cost(), rel=0.05)
        assert sigreg(torch.zeros(count, 16), a).item() == pytest.approx(0.4022 * count, rel=1e-3)
    uneven = torch.randn(64, 16).sign()  # no Gaussian: what it costs beyond one grows with the samples
    small, large = (sigreg(3 * uneven.repeat(n, 1), a).item() for n in (1, 4))
    assert large == pytest.approx(4 * small, rel=1e-4)


def test_the_gradient_vanishes_where_embeddings_come_to_lie_in_one_point() -> None:
    x, a = torch.randn(64, 16), draw_directions(16, 64, 0, torch.zeros(()))
    sizes = []
    for scale in (1e-1, 1e-2, 1e-3):
        z = (scale * x).requires_grad_()
        sizes.append(torch.autograd.grad(sigreg(z, a), z)[0].norm().item())
    assert sizes[1] / sizes[0] == pytest.approx(0.1, rel=0.2)
    assert sizes[2] / sizes[1] == pytest.approx(0.1, rel=0.05)


def test_statistics_below_the_limit_are_nothing() -> None:
    z, a = torch.randn(40, 5, requires_grad=True), directions().float()
    statistics = slice_statistics(z, a).detach()
    limit = statistics.median().item()
    expected = statistics[statistics >= limit].sum()
    torch.testing.assert_close(sigreg(z, a, clip=limit, reduction="sum").detach(), expected)
    assert not torch.autograd.grad(sigreg(z, a, clip=1e6), z)[0].any()


def test_missing_samples_count_for_nothing() -> None:
    z, a, there = torch.randn(3, 8, 5), directions().float(), torch.ones(3, 8, dtype=torch.bool)
    there[:, 2] = False
    spoilt, kept = alone_and_beside(z, there)
    torch.testing.assert_close(sigreg(spoilt, a, present=there), sigreg(kept, a))
    for centers in (2, 3):
        found = distance_to_center(spoilt, centers, there)
        torch.testing.assert_close(found, distance_to_center(kept, centers))
    assert sigreg(z, a, present=there & False) == 0
    alone = torch.zeros(3, 8, dtype=torch.bool)
    alone[0] = True  # nothing to agree with
    assert distance_to_center(z, 3, alone) == 0
    there = torch.ones(3, 8, dtype=torch.bool)
    there[1, 0] = False
    pair = z[[0, 2], 0]
    expected = (pair - pair.mean(0)).square().mean(-1).sum()
    others = (z[:, 1:] - z[:, 1:].mean(0)).square().mean(-1).sum()
    torch.testing.assert_close(distance_to_center(z, 3, there), (expected + others) / 23)


def test_the_center_is_the_mean_of_the_whole_views_and_is_trained() -> None:
    z = torch.randn(4, 6, 5, requires_grad=True)
    expected = torch.stack([(z[v] - (z[0] + z[1]) / 2).square() for v in range(4)]).mean()
    torch.testing.assert_close(distance_to_center(z, 2), expected)
    assert torch.autograd.grad(distance_to_center(z, 2), z)[0][:2].any()


def test_half_precision_inputs_are_computed_in_full() -> None:
    z, a = torch.randn(2, 64, 5), directions().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = sigreg(z.bfloat16(), a)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, sigreg(z, a), rtol=0.02, atol=0.02)


# --------------------------------------------------------------------------------------------- ranks


def share_of(z: Tensor, rank: int, ranks: int) -> Tensor:
    """This rank's samples: the first has three, the second all others."""
    return z if ranks == 1 else z[:, :3] if rank == 0 else z[:, 3:]


def value_and_gradient(rank: int, z: Tensor, a: Tensor, ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """The value, its gradient, and that of a sum over ranks through which none flows."""
    mine = share_of(z, rank, ranks).clone().requires_grad_()
    value = sigreg(mine, a)
    right = torch.autograd.grad(value, mine)[0] / ranks
    summed = module.sum_ranks
    module.sum_ranks = lambda x: x + (summed(x) - x).detach()
    try:
        return value.detach(), right, torch.autograd.grad(sigreg(mine, a), mine)[0] / ranks
    finally:
        module.sum_ranks = summed


@pytest.mark.ranks
def test_two_ranks_with_unequal_batches_give_value_and_gradient_of_one() -> None:
    z, a = torch.randn(2, 8, 5, dtype=torch.float64), directions()
    value, gradient, _ = value_and_gradient(0, z, a, 1)
    parts = run_ranks(2, value_and_gradient, z, a, 2)
    for part in parts:
        torch.testing.assert_close(part[0], value)
    torch.testing.assert_close(torch.cat([p[1] for p in parts], 1), gradient)
    planted = torch.cat([p[2] for p in parts], 1)
    assert (planted - gradient).abs().max() > 0.1 * gradient.abs().max()


# ------------------------------------------------------------------------------------- the objective


def made(streams: tuple[str, ...] = ("rows",), **options: Any) -> tuple[Any, Any]:
    encoders = encoders_of(*streams)
    cfg = LeJEPA.Config(**{"projector": HEAD, "slices": 32, "num_local": 0, **options})
    return cfg.build(encoders, dict.fromkeys(streams, ROWS)), encoders


def test_the_terms_are_weighed_and_everything_is_trained() -> None:
    objective, encoders = made(weight=0.25)
    losses = objective(encoders, Batch([rows(2)]), START)
    expected = 0.75 * losses.terms["invariance"] + 0.25 * losses.terms["sigreg"]
    torch.testing.assert_close(losses.total.detach(), expected)
    torch.testing.assert_close(losses.stats["over_gaussian"], losses.terms["sigreg"] / gaussian_cost())
    losses.total.backward()
    assert all(p.grad is not None for p in [*encoders.parameters(), *objective.parameters()])


def test_a_step_without_a_teacher_spreads_embeddings_and_brings_views_together() -> None:
    objective, encoders = made(weight=0.2)
    optimizer = torch.optim.SGD([*encoders.parameters(), *objective.parameters()], lr=0.1, momentum=0.9)
    x = torch.randn(32, 6)
    history = []
    for step in range(80):
        views = rows(2, 32)
        views.x = torch.cat([x + 0.3 * torch.randn_like(x) for _ in range(2)])
        losses = objective(encoders, Batch([views]), Progress(step=step, total=80))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append(losses)
    assert history[-1].terms["sigreg"] < 0.5 * history[0].terms["sigreg"]
    assert history[-1].stats["std"] > 0.5


def test_small_views_are_compared_with_the_center_of_the_large_ones() -> None:
    objective, _ = made(num_global=2, num_local=3)
    plan = objective.plans()["rows"]
    assert (plan.num_global, plan.num_local, objective.centers) == (2, 3, 2)
    several, encoders = made(("a", "b"), num_local=3)
    assert [(p.num_clean, p.num_global, p.num_local) for p in several.plans().values()] == [(1, 0, 0)] * 2
    batch = Batch(rows(1, stream=s, present=torch.arange(8) < 6) for s in "ab")
    assert several(encoders, batch, START).total.isfinite()


def test_an_alarm_names_the_option() -> None:
    history = [{"step": float(s), "stats/std": 0.01} for s in range(0, 200, 10)]
    assert "raise objective.weight" in made()[0].alarm(history, START)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight": 0.0}, r"objective\.weight=0\.0: want above 0 and below 1"),
        ({"num_global": 1, "num_local": 0}, "want 2 views or more"),
        ({"num_global": 0}, r"objective\.num_global=0: want 1 or more"),
        ({"knots": 16}, r"objective\.knots=16: want an odd number"),
        ({"t_max": 0.0}, r"objective\.t_max=0\.0: want more than 0"),
        ({"slices": 0}, r"objective\.slices=0: want 1 or more"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LeJEPA.Config(**options)
