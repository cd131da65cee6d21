"""VISReg: its terms against loops, the gradient near one point, missing samples, ranks, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.contract.data import Batch
from multissl.losses import visreg as module
from multissl.losses.sigreg import draw_directions
from multissl.losses.visreg import visreg_terms
from multissl.objectives.visreg import VISReg
from tests.helpers.ranks import run_ranks
from tests.objectives.plain import HEAD, ROWS, START, alone_and_beside, encoders_of, rows
from tests.objectives.planted import own_gradient_alone, right_and_planted

NORMAL = torch.distributions.Normal(0.0, 1.0)


def directions(width: int = 5, slices: int = 9) -> Tensor:
    return draw_directions(width, slices, 0, torch.zeros(()))


def test_the_terms_are_those_of_the_paper() -> None:
    z, w = torch.randn(2, 7, 5) * 2 + 1, directions()
    found = visreg_terms(z, w)
    center, scale, shape = [], [], []
    for view in z:
        mean, std = view.mean(0), view.std(0, correction=0)
        center.append(mean.square().mean())
        scale.append((std - 1).square().mean())
        ordered = ((view - mean) / std @ w).sort(0).values
        normal = torch.stack([NORMAL.icdf(torch.tensor(i / 8)) for i in range(1, 8)])
        shape.append((ordered - normal[:, None]).square().mean())
    for name, values in {"center": center, "scale": scale, "shape": shape}.items():
        torch.testing.assert_close(found[name], torch.stack(values).mean(), rtol=1e-4, atol=1e-5)


def test_a_normal_distribution_costs_little_and_one_point_is_left_by_a_gradient_that_grows() -> None:
    w = directions(16, 64)
    assert all(v < 0.02 for v in visreg_terms(torch.randn(1, 2048, 16), w).values())
    x, sizes = torch.randn(1, 64, 16), []
    for scale in (1e-1, 1e-2, 1e-3):
        z = (scale * x).requires_grad_()
        sizes.append(torch.autograd.grad(torch.stack([*visreg_terms(z, w).values()]).sum(), z)[0].norm())
    assert sizes[2] > 3 * sizes[1] > 9 * sizes[0] / 3
    point = torch.zeros(1, 8, 16, requires_grad=True)
    loss = torch.stack([*visreg_terms(point, w).values()]).sum()
    assert torch.autograd.grad(loss, point)[0].isfinite().all()


def test_the_shape_does_not_move_the_scale() -> None:
    z = torch.randn(1, 32, 5, requires_grad=True)
    grad = torch.autograd.grad(visreg_terms(z, directions())["shape"], z)[0]
    twice = torch.autograd.grad(visreg_terms(2 * z, directions())["shape"], z)[0]
    torch.testing.assert_close(twice, grad)


def test_missing_samples_count_for_nothing() -> None:
    z, there = torch.randn(2, 8, 5), torch.ones(2, 8, dtype=torch.bool)
    there[:, 2] = False
    spoilt, kept = alone_and_beside(z, there)
    found, right = visreg_terms(spoilt, directions(), there), visreg_terms(kept, directions())
    for name, value in right.items():
        torch.testing.assert_close(found[name], value)
    none = spoilt.clone().requires_grad_()
    nothing = torch.stack([*visreg_terms(none, directions(), there & False).values()]).sum()
    assert nothing == 0
    assert not torch.autograd.grad(nothing, none)[0].any()


def test_half_precision_inputs_are_computed_in_full() -> None:
    z = torch.randn(2, 64, 5) + 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = visreg_terms(z.bfloat16(), directions())
    for name, value in visreg_terms(z, directions()).items():
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], value, rtol=0.02, atol=2e-3)


def gradients(rank: int, z: Tensor, ranks: int) -> tuple[Tensor, Tensor]:
    """The gradient of this rank's samples, and that of a gather through which none flows."""

    def loss(x: Tensor) -> Tensor:
        return torch.stack([*visreg_terms(x, directions()).values()]).sum()

    return right_and_planted(loss, z, rank, ranks, module, "gather", own_gradient_alone)


@pytest.mark.ranks
def test_two_ranks_give_the_gradient_of_one_and_a_gather_without_gradient_does_not() -> None:
    z = torch.randn(2, 8, 5)
    parts, (expected, _) = run_ranks(2, gradients, z, 2), gradients(0, z, 1)
    torch.testing.assert_close(torch.cat([p[0] for p in parts], 1), expected)
    assert (torch.cat([p[1] for p in parts], 1) - expected).abs().max() > 1e-3


def made(streams: tuple[str, ...] = ("rows",), **options: Any) -> tuple[Any, Any]:
    encoders = encoders_of(*streams)
    cfg = VISReg.Config(**{"projector": HEAD, "slices": 32, "num_global": 2, "num_local": 0, **options})
    return cfg.build(encoders, dict.fromkeys(streams, ROWS)), encoders


def test_the_terms_are_weighed_and_everything_is_trained() -> None:
    objective, encoders = made(weight=0.75)
    losses = objective(encoders, Batch([rows(2)]), START)
    spread = sum(losses.terms[n] for n in ("center", "scale", "shape"))
    torch.testing.assert_close(losses.total.detach(), 0.25 * losses.terms["invariance"] + 0.75 * spread)
    losses.total.backward()
    assert all(p.grad is not None for p in [*encoders.parameters(), *objective.parameters()])
    history = [{"step": float(s), "stats/std": 0.01} for s in range(0, 200, 10)]
    assert "raise objective.weight" in objective.alarm(history, START)


def test_several_streams_are_paired_by_their_clean_views() -> None:
    objective, encoders = made(("a", "b"))
    assert [(p.num_clean, p.num_global) for p in objective.plans().values()] == [(1, 0), (1, 0)]
    batch = Batch(rows(1, stream=s, present=torch.arange(8) < 6) for s in "ab")
    assert objective(encoders, batch, START).total.isfinite()


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="got 1: raise batch_size"):
        visreg_terms(torch.randn(2, 1, 5), directions())
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"weight": 1.0}, r"objective\.weight=1\.0: want above 0 and below 1"),
        ({"slices": 0}, r"objective\.slices=0: want 1 or more"),
        ({"num_global": 1, "num_local": 0}, "want 2 views or more"),
    ]
    for options, said in wrong:
        with pytest.raises(ValueError, match=said):
            VISReg.Config(**options)
