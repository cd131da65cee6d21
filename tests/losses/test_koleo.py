from __future__ import annotations

import pytest
import torch
from torch import Tensor

from multissl.losses.koleo import grouped_koleo, koleo
from multissl.parallel.ranks import world
from tests.helpers.ranks import run_ranks


def slow(x: Tensor) -> Tensor:
    unit = x / x.norm(dim=1, keepdim=True)
    nearest = [min((u - v).norm() for j, v in enumerate(unit) if j != i) for i, u in enumerate(unit)]
    return -torch.stack(nearest).log().mean()


def test_it_is_minus_the_mean_log_distance_to_the_nearest_other() -> None:
    x = torch.randn(9, 4, dtype=torch.float64)
    torch.testing.assert_close(koleo(x).mean(), slow(x), atol=1e-6, rtol=0)


def test_only_directions_count() -> None:
    x = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(koleo(x * torch.rand(6, 1).double().add(0.5)), koleo(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equal_rows_give_a_finite_loss_and_gradient_in_any_precision(dtype: torch.dtype) -> None:
    x = torch.ones(4, 8, dtype=dtype, requires_grad=True)
    loss = grouped_koleo(x, 4)
    loss.backward()
    assert loss.dtype == torch.float32
    assert 10 < loss.item() < 20  # near its maximum
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_autocast_does_not_reach_it() -> None:
    x = torch.randn(8, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = koleo(x)
    torch.testing.assert_close(inside, koleo(x), atol=0, rtol=0)


def test_the_gradient_reaches_both_ends_of_a_pair() -> None:
    # Rows 0 and 1 are each other's neighbors; row 2's is row 1, and row 2 is nobody's.
    angles = torch.tensor([0.0, 0.5, 1.5])
    x = torch.stack([angles.cos(), angles.sin()], dim=1).requires_grad_()
    (grad,) = torch.autograd.grad(koleo(x)[2], x)
    assert grad[1].norm() > 0.1
    assert grad[2].norm() > 0.1
    assert not grad[0].any()


def test_groups_are_apart_and_a_last_smaller_one_counts() -> None:
    x = torch.randn(10, 4)
    parts = [koleo(x[:4]), koleo(x[4:8]), koleo(x[8:])]
    torch.testing.assert_close(grouped_koleo(x, 4), torch.cat(parts).mean())
    torch.testing.assert_close(grouped_koleo(x, 64), koleo(x).mean())


def test_rows_that_are_not_there_are_nobodys_neighbors() -> None:
    """Of the second group one row is left, which has no neighbor; of the third none."""
    x = torch.randn(12, 4, requires_grad=True)
    here = torch.tensor([True, False, True, True, False, True] + [False] * 6)
    loss = grouped_koleo(x, 4, present=here)
    torch.testing.assert_close(loss, koleo(x[[0, 2, 3]]).mean())
    (grad,) = torch.autograd.grad(loss, x)
    assert not grad[~here].any()
    assert not grad[5].any()
    assert grouped_koleo(x, 4, present=torch.zeros(12, dtype=torch.bool)) == 0


@pytest.mark.parametrize(("batch", "group"), [(1, 64), (65, 64), (5, 4)])
def test_a_row_without_a_neighbor_is_refused(batch: int, group: int) -> None:
    with pytest.raises(ValueError, match=f"koleo_group={group}, and a batch of {batch} leaves one alone"):
        grouped_koleo(torch.randn(batch, 3), group)


def on_rank(rank: int, x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    mine = x.chunk(world())[rank].clone().requires_grad_()
    loss = grouped_koleo(mine, group)
    return loss.detach(), torch.autograd.grad(loss, mine)[0] / world()


def groups_on_rank(rank: int, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [on_rank(rank, x, group) for group in (2, 4, 8, 6, 64)]


@pytest.mark.ranks
def test_the_groups_do_not_depend_on_the_ranks() -> None:
    x = torch.randn(8, 5)
    parts = run_ranks(2, groups_on_rank, x)
    for i, expected in enumerate(groups_on_rank(0, x)):
        torch.testing.assert_close(torch.stack([p[i][0] for p in parts]).mean(), expected[0])
        torch.testing.assert_close(torch.cat([p[i][1] for p in parts]), expected[1])
