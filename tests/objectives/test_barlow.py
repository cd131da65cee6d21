from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.contract.data import Batch, Views
from multissl.losses import barlow as module
from multissl.losses.barlow import barlow_terms, cross_correlation
from multissl.objectives.barlow import BarlowTwins
from tests.helpers.ranks import run_ranks
from tests.objectives.plain import HEAD, ROWS, START, alone_and_beside, encoders_of, rows


def loss(a: Tensor, b: Tensor, **options: Any) -> Tensor:
    terms = barlow_terms(cross_correlation(a, b, **options))
    return terms["invariance"] + 0.0051 * terms["redundancy"]


def test_known_values() -> None:
    torch.testing.assert_close(loss(torch.eye(4), torch.eye(4)), torch.tensor(0.0067993), rtol=1e-4, atol=0)
    torch.testing.assert_close(loss(torch.ones(8, 5), torch.ones(8, 5)), torch.tensor(5.0))  # collapse: P


def test_correlations_are_those_of_the_features() -> None:
    z = torch.randn(512, 3, dtype=torch.float64)
    z[:, 2] = -z[:, 0]
    found = cross_correlation(7 * z + 5, z)  # shift and scale do not matter
    torch.testing.assert_close(found, torch.corrcoef(z.T), rtol=0, atol=1e-4)


def test_missing_samples_count_for_nothing() -> None:
    z, there = torch.randn(2, 9, 4), torch.ones(2, 9, dtype=torch.bool)
    there[0, 3] = there[1, 7] = False
    (a, b), (kept_a, kept_b) = alone_and_beside(z, there)
    found = cross_correlation(a, b, there.all(0))
    torch.testing.assert_close(found, cross_correlation(kept_a, kept_b), rtol=1e-4, atol=1e-5)
    assert cross_correlation(a, b, torch.zeros(9, dtype=torch.bool)).abs().sum() == 0


def test_half_precision_inputs_are_computed_in_full() -> None:
    z = torch.randn(2, 256, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = cross_correlation(z[0].bfloat16(), z[1].bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, cross_correlation(z[0], z[1]), rtol=0, atol=0.01)


def grads(rank: int, z: Tensor, ranks: int) -> tuple[Tensor, Tensor]:
    """The gradient, and the one that a sum without gradient leaves (the official code's, 1 / W of it)."""
    found, right = [], module.sum_ranks
    for planted in (False, True):
        mine = z.chunk(ranks, 1)[rank].clone().requires_grad_()
        module.sum_ranks = (lambda x: right(x) if not x.requires_grad else x + (right(x) - x).detach()) if (
            planted
        ) else right  # fmt: skip
        try:
            found.append(torch.autograd.grad(loss(mine[0], mine[1]), mine)[0] / ranks)
        finally:
            module.sum_ranks = right
    return found[0], found[1]


@pytest.mark.ranks
def test_two_ranks_give_the_gradient_of_one_and_a_plain_sum_does_not() -> None:
    z = torch.randn(2, 8, 4)
    parts, (expected, _) = run_ranks(2, grads, z, 2), grads(0, z, 1)
    torch.testing.assert_close(torch.cat([p[0] for p in parts], 1), expected)
    assert (torch.cat([p[1] for p in parts], 1) - expected).abs().max() > 0.01


def test_scale_and_redundancy_weigh_the_terms_and_everything_is_trained() -> None:
    encoders = encoders_of("rows")
    objective = BarlowTwins.Config(scale=0.1, redundancy=0.5, projector=HEAD).build(encoders, {"rows": ROWS})
    losses = objective(encoders, Batch([rows(3)]), START)
    expected = 0.1 * (losses.terms["invariance"] + 0.5 * losses.terms["redundancy"])
    torch.testing.assert_close(losses.total.detach(), expected)
    losses.total.backward()
    assert all(p.grad is not None for p in [*encoders.parameters(), *objective.parameters()])
    assert 0 <= losses.stats["std"] <= 1.01


def test_more_views_are_the_mean_over_their_pairs() -> None:
    encoders = encoders_of("rows")
    objective = BarlowTwins.Config(projector=HEAD).build(encoders, {"rows": ROWS})
    three = rows(3)

    def total(*views: int) -> Tensor:
        x = torch.cat([three.x.chunk(3)[v] for v in views])
        batch = Batch([Views(x=x, stream="rows", role="global", num_views=len(views))])
        return objective(encoders, batch, START).total

    pairs = torch.stack([total(0, 1), total(0, 2), total(1, 2)]).mean()
    torch.testing.assert_close(total(0, 1, 2), pairs)


def test_several_streams_are_paired_by_their_clean_views() -> None:
    encoders = encoders_of("a", "b")
    objective = BarlowTwins.Config(projector=HEAD).build(encoders, {"a": ROWS, "b": ROWS})
    assert [(p.num_clean, p.num_global) for p in objective.plans().values()] == [(1, 0), (1, 0)]
    batch = Batch(rows(1, stream=s, present=torch.arange(8) < 6) for s in "ab")
    assert objective(encoders, batch, START).total.isfinite()


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="got 1: raise batch_size"):
        cross_correlation(torch.randn(1, 4), torch.randn(1, 4))
    with pytest.raises(ValueError, match=r"objective\.redundancy=-1: want 0 or more"):
        BarlowTwins.Config(redundancy=-1)
    with pytest.raises(ValueError, match=r"objective\.scale=0: want more than 0"):
        BarlowTwins.Config(scale=0)
