"""MMCR: its norms against torch's and by hand, missing samples, ranks, the teacher, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Batch
from multissl.layers.teacher import Teacher
from multissl.losses import mmcr as module
from multissl.losses.mmcr import capacity, centroids_of, mean_extent, nuclear_norm
from multissl.objectives.mmcr import MMCR
from tests.helpers.ranks import run_ranks
from tests.objectives.plain import HEAD, ROWS, START, alone_and_beside, encoders_of, rows
from tests.objectives.planted import own_gradient_alone, right_and_planted


def test_the_norm_is_the_sum_of_singular_values_with_their_gradient() -> None:
    for shape in ((7, 4), (4, 7), (3, 5, 2)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        theirs = torch.linalg.matrix_norm(x, "nuc")
        torch.testing.assert_close(nuclear_norm(x), theirs)
        (expected,) = torch.autograd.grad(theirs.sum(), x)
        torch.testing.assert_close(torch.autograd.grad(nuclear_norm(x).sum(), x)[0], expected)


def test_directions_that_nothing_fills_have_no_gradient_and_nan_stays_nan() -> None:
    x = torch.zeros(4, 6)
    x[0, 0], x[1, 1] = 2.0, -3.0
    x.requires_grad_()
    norm = nuclear_norm(x)
    assert norm == 5
    (grad,) = torch.autograd.grad(norm, x)
    expected = torch.zeros(4, 6)
    expected[0, 0], expected[1, 1] = 1.0, -1.0
    torch.testing.assert_close(grad, expected)
    assert nuclear_norm(torch.full((3, 3), torch.nan)).isnan()


def test_one_point_fills_least_and_all_directions_alike_fill_everything() -> None:
    corners = torch.eye(4).repeat(3, 1).expand(2, 12, 4)
    norm, filled = capacity(corners)
    torch.testing.assert_close(norm, torch.tensor(math.sqrt(12 * 4)))
    torch.testing.assert_close(filled, torch.tensor(1.0))
    point = F.normalize(torch.ones(2, 12, 4), dim=-1)
    norm, filled = capacity(point)
    torch.testing.assert_close(norm, torch.tensor(math.sqrt(12)))
    torch.testing.assert_close(filled, torch.tensor(0.5))
    apart = torch.stack([corners[0], -corners[0]])  # views that disagree have no centroid
    assert capacity(apart)[0] == 0
    torch.testing.assert_close(mean_extent(corners), torch.tensor(math.sqrt(2)))


def test_missing_views_and_samples_count_for_nothing() -> None:
    z, there = torch.randn(3, 8, 5), torch.ones(3, 8, dtype=torch.bool)
    there[:, 2] = False
    spoilt, kept = alone_and_beside(z, there)
    for found, right in zip(capacity(spoilt, there), capacity(kept), strict=True):
        torch.testing.assert_close(found, right)
    torch.testing.assert_close(mean_extent(spoilt, there), mean_extent(kept))
    there[0, 5] = False  # two of three views are left
    torch.testing.assert_close(centroids_of(spoilt, there)[5], z[1:, 5].mean(0))
    there[1, 5] = False  # one is no centroid
    assert not centroids_of(spoilt, there)[5].any()
    torch.testing.assert_close(mean_extent(spoilt, there), mean_extent(kept[:, torch.arange(7) != 4]))
    none = spoilt.clone().requires_grad_()
    norm, filled = capacity(none, there & False)
    assert norm == 0
    assert filled == 0
    assert not torch.autograd.grad(norm, none)[0].any()


def test_half_precision_inputs_are_computed_in_full() -> None:
    z = F.normalize(torch.randn(2, 64, 5), dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, extent = capacity(z.bfloat16())[0], mean_extent(z.bfloat16())
    assert half.dtype == extent.dtype == torch.float32
    torch.testing.assert_close(half, capacity(z)[0], rtol=0.01, atol=0)
    torch.testing.assert_close(extent, mean_extent(z), rtol=0.01, atol=0)


def gradients(rank: int, z: Tensor, ranks: int) -> tuple[Tensor, Tensor]:
    """The gradient of this rank's samples, and that of a gather through which none flows."""

    def loss(x: Tensor) -> Tensor:
        return mean_extent(x) - capacity(x)[0]

    return right_and_planted(loss, z, rank, ranks, module, "gather", own_gradient_alone)


@pytest.mark.ranks
def test_two_ranks_give_the_gradient_of_one_and_a_gather_without_gradient_does_not() -> None:
    z = torch.randn(2, 8, 5)
    parts, (expected, _) = run_ranks(2, gradients, z, 2), gradients(0, z, 1)
    torch.testing.assert_close(torch.cat([p[0] for p in parts], 1), expected)
    assert (torch.cat([p[1] for p in parts], 1) - expected).abs().max() > 1e-3


def made(*streams: str, **options: Any) -> tuple[Any, Any]:
    encoders = encoders_of(*streams)
    cfg = MMCR.Config(**{"projector": HEAD, **options})
    return cfg.build(encoders, dict.fromkeys(streams, ROWS)), encoders


def test_the_terms_are_weighed_and_everything_is_trained() -> None:
    objective, encoders = made("rows", num_views=3, compression=0.5)
    assert objective.plans()["rows"].num_global == 3
    losses = objective(encoders, Batch([rows(3)]), START)
    expected = losses.terms["capacity"] + 0.5 * losses.terms["compression"]
    torch.testing.assert_close(losses.total.detach(), expected)
    assert losses.terms["capacity"] < 0 < losses.terms["compression"]
    losses.total.backward()
    assert all(p.grad is not None for p in [*encoders.parameters(), *objective.parameters()])
    history = [{"step": float(s), "stats/std": 0.01} for s in range(0, 200, 10)]
    assert "lower objective.compression" in objective.alarm(history, START)


def test_a_teachers_views_enter_the_centroids_without_gradient() -> None:
    teacher = Teacher.Config(ema=0.5, final_ema=0.5)
    objective, encoders = made("rows", teacher=teacher)
    with torch.no_grad():
        for p in objective.teacher.parameters():
            p.mul_(-0.7)
    batch = Batch([rows()])
    losses = objective(encoders, batch, START)
    with torch.no_grad():
        views = []
        for encoder, head in (
            (encoders["rows"], objective.projectors["rows"]),
            (objective.teacher.encoders["rows"], objective.teacher["projectors"]["rows"]),
        ):
            views.append(F.normalize(head(encoder.linear(batch[0].x)), dim=-1).unflatten(0, (2, -1)))
        expected, _ = capacity(torch.cat(views))
    torch.testing.assert_close(losses.total.detach(), -expected)
    losses.total.backward()
    assert not any(p.grad is not None for p in objective.teacher.parameters())
    before = objective.teacher.encoders["rows"].linear.weight.clone()
    objective.after_step(encoders, START)
    halfway = before.lerp(encoders["rows"].linear.weight, 0.5)
    torch.testing.assert_close(objective.teacher.encoders["rows"].linear.weight, halfway)


def test_several_streams_are_paired_by_their_clean_views() -> None:
    objective, encoders = made("a", "b")
    assert [(p.num_clean, p.num_global) for p in objective.plans().values()] == [(1, 0), (1, 0)]
    batch = Batch(rows(1, stream=s, present=torch.arange(8) < 6) for s in "ab")
    assert objective(encoders, batch, START).total.isfinite()


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="got 1: raise batch_size"):
        capacity(torch.randn(2, 1, 5))
    with pytest.raises(ValueError, match=r"objective\.num_views=1: want 2 or more"):
        MMCR.Config(num_views=1)
    with pytest.raises(ValueError, match=r"objective\.compression=-1: want 0 or more"):
        MMCR.Config(compression=-1)
