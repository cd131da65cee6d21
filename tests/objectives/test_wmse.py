from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.contract.data import Batch
from multissl.contract.learning import Progress
from multissl.losses.wmse import groupings, whiten, wmse_loss
from multissl.objectives.wmse import WMSE
from multissl.parallel.collectives import gather
from tests.helpers.ranks import run_ranks
from tests.objectives.plain import HEAD, ROWS, START, encoders_of, rows

NARROW = HEAD.replace(out=3)


def made(*streams: str, **options: Any) -> tuple[Any, Any]:
    encoders = encoders_of(*streams)
    cfg = WMSE.Config(**{"projector": NARROW, "group": 8, **options})
    return cfg.build(encoders, dict.fromkeys(streams, ROWS)), encoders


def test_white_groups_have_mean_0_and_the_identity_as_covariance() -> None:
    x = torch.randn(5, 32, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64) + 3
    white = whiten(x)
    covariance = white.mT @ white / 31
    torch.testing.assert_close(white.mean(1), torch.zeros(5, 4, dtype=torch.float64))
    torch.testing.assert_close(covariance, torch.eye(4, dtype=torch.float64).expand(5, 4, 4))


def test_groups_are_whitened_one_by_one() -> None:
    x = torch.randn(3, 16, 4)
    torch.testing.assert_close(whiten(x)[1], whiten(x[1]))


def test_equal_views_cost_nothing_and_unrelated_ones_about_2() -> None:
    z = torch.randn(1, 256, 4)
    order = torch.arange(256).unflatten(0, (4, 64))
    assert wmse_loss(z.expand(2, -1, -1), order).abs() < 1e-5
    assert 1.7 < wmse_loss(torch.randn(2, 256, 4), order) < 2.3


def test_every_sample_is_in_one_group_of_each_draw_and_steps_differ() -> None:
    orders = groupings(24, 8, 3, step=5)
    assert orders.shape == (3, 3, 8)
    assert all(torch.equal(o.flatten().sort().values, torch.arange(24)) for o in orders)
    assert torch.equal(orders, groupings(24, 8, 3, step=5))
    assert not torch.equal(orders, groupings(24, 8, 3, step=6))
    assert not torch.equal(orders[0], orders[1])


def test_no_global_random_state_is_drawn_from() -> None:
    objective, encoders = made("rows")
    batch, before = Batch([rows()]), torch.get_rng_state()
    objective(encoders, batch, START)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_gradient_flows_through_the_whitening_of_both_views() -> None:
    z = torch.randn(2, 16, 3, dtype=torch.float64, requires_grad=True)
    order = torch.arange(16).unflatten(0, (2, 8))
    assert torch.autograd.gradcheck(lambda z: wmse_loss(z, order, 0.1), z)
    (found,) = torch.autograd.grad(wmse_loss(z, order), z)
    assert (found.abs().amax((1, 2)) > 1e-4).all()


def test_half_precision_inputs_are_computed_in_full() -> None:
    a = torch.randn(256, 8)
    z, order = torch.stack([a, a + 0.5 * torch.randn(256, 8)]), torch.arange(256).unflatten(0, (4, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = wmse_loss(z.bfloat16(), order)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, wmse_loss(z, order), rtol=0, atol=0.05)


def grad(rank: int, z: Tensor, ranks: int) -> Tensor:
    mine = z.chunk(ranks, 1)[rank].clone().requires_grad_()
    everyone = gather(mine.transpose(0, 1).contiguous()).transpose(0, 1)
    return torch.autograd.grad(wmse_loss(everyone, groupings(16, 8, 2, 3)), mine)[0] / ranks


@pytest.mark.ranks
def test_two_ranks_give_the_gradient_of_one() -> None:
    z = torch.randn(2, 16, 3)
    torch.testing.assert_close(torch.cat(run_ranks(2, grad, z, 2), 1), grad(0, z, 1))


def test_everything_is_trained_and_steps_group_differently() -> None:
    objective, encoders = made("rows", group=8, draws=2)
    batch = Batch([rows(3, 16)])
    losses = objective(encoders, batch, START)
    losses.total.backward()
    assert all(p.grad is not None for p in [*encoders.parameters(), *objective.parameters()])
    assert losses.stats["std"] > 0
    assert objective(encoders, batch, Progress(step=1, total=2)).total != losses.total


def test_several_streams_are_paired_by_their_clean_views() -> None:
    objective, encoders = made("a", "b")
    assert [(p.num_clean, p.num_global) for p in objective.plans().values()] == [(1, 0), (1, 0)]
    batch = Batch(rows(1, stream=s, present=torch.ones(8, dtype=torch.bool)) for s in "ab")
    assert objective(encoders, batch, START).total.isfinite()
    batch[0].present = torch.arange(8) < 5
    with pytest.raises(ValueError, match="a sample lacks a stream: take vicreg"):
        objective(encoders, batch, START)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"objective\.group=127: want 128 samples or more, twice"):
        WMSE.Config(group=127)
    with pytest.raises(ValueError, match=r"objective\.draws=0: want 1 or more"):
        WMSE.Config(draws=0)
    with pytest.raises(ValueError, match=r"objective\.eps=1: want 0 or more, below 1"):
        WMSE.Config(eps=1)
    objective, encoders = made("rows")
    with pytest.raises(ValueError, match=r"batch_size=10 does not divide into groups of objective\.group=8"):
        objective(encoders, Batch([rows(batch=10)]), START)


def test_embeddings_in_one_plane_name_the_way_out_and_not_a_number_passes() -> None:
    flat = torch.randn(2, 16, 4)
    flat[..., 3] = 0
    order = torch.arange(16)
    with pytest.raises(ValueError, match=r"raise objective\.eps, or lower objective\.projector\.out"):
        wmse_loss(flat, order)
    assert wmse_loss(flat, order, eps=0.01).isfinite()
    flat[0, 0] = torch.nan
    assert wmse_loss(flat, order).isnan()
