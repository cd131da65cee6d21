from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.contract.data import Batch, Views
from multissl.losses.vicreg import vicreg_terms
from multissl.losses.vicregl import global_terms, local_terms, matched, meetings
from multissl.objectives.vicregl import VICRegL, places_of
from tests.helpers.ranks import run_ranks
from tests.objectives.plain import HEAD, ROWS, START, encoders_of


def made(**options: Any) -> tuple[Any, Any]:
    encoders = encoders_of("rows")
    cfg = VICRegL.Config(**{"projector": HEAD, "token_projector": HEAD, "matches": (3, 2), **options})
    return cfg.build(encoders, {"rows": ROWS}), encoders


def views(role: Any, count: int, tokens: int, batch: int = 6) -> Views:
    x, coords = torch.randn(count * batch, tokens, 6), torch.rand(count * batch, tokens, 2)
    return Views(x=x, stream="rows", role=role, num_views=count, coords=coords)


# ---------------------------------------------------------------------------------------- matches


def test_matches_are_the_closest_in_the_order_of_their_tokens() -> None:
    a, b = torch.randn(1, 4, 3), torch.randn(1, 3, 3)
    place_a = torch.tensor([[[0.0], [0.5], [0.9], [0.3]]])
    place_b = torch.tensor([[[0.35], [0.52], [3.0]]])
    mine, theirs, match = matched(a, b, place_a, place_b, 2)
    assert torch.equal(mine[0], a[0, [1, 3]])  # 0.02 and 0.05 away
    assert torch.equal(theirs[0], b[0, [1, 0]])
    assert match is None
    every, _, _ = matched(a, b, place_a, place_b, 0)
    assert torch.equal(every, a)
    assert matched(a, b, place_a, place_b, 99)[0].shape == (1, 4, 3)


def test_padding_neither_matches_nor_is_matched() -> None:
    a, b = torch.randn(1, 4, 3), torch.randn(1, 3, 3)
    place_a = torch.tensor([[[0.0], [0.5], [0.9], [0.3]]])
    place_b = torch.tensor([[[0.35], [0.52], [0.9]]])
    real_a, real_b = torch.tensor([[True, True, True, False]]), torch.tensor([[True, True, False]])
    mine, theirs, match = matched(a, b, place_a, place_b, 2, real_a, real_b)
    assert torch.equal(
        mine[0], a[0, [0, 1]]
    )  # 0.35 and 0.02 away; the closest, 2 and 3, want padding or are it
    assert torch.equal(theirs[0], b[0, [0, 1]])
    assert match is not None
    assert match.all()
    *_, match = matched(a, b, place_a, place_b, 0, real_a, real_b)
    assert match is not None
    assert match.tolist() == [[True, True, True, False]]


def test_matching_by_places_alone_by_hand() -> None:
    """Maps that agree wherever their places do cost no invariance by places."""
    a, place = torch.randn(6, 4, 3), torch.rand(6, 4, 2)
    order = torch.stack([torch.randperm(4) for _ in range(6)])[..., None]
    b, place_b = torch.take_along_dim(a, order, 1), torch.take_along_dim(place, order, 1)
    assert local_terms([a, b], [place, place_b], (4, 4))["invariance"] == 0
    other = local_terms([a, b], [place, place_b.flip(1)], (4, 4))["invariance"]
    by_place = matched(a, b, place, place_b.flip(1), 4)
    assert other > 0
    assert (by_place[0] - by_place[1]).pow(2).mean() > 0


def test_pairs_hold_a_global_view() -> None:
    assert meetings(2) == [(0, 1), (1, 0)]
    assert meetings(4) == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)]


def test_global_terms_of_two_views_are_those_of_vicreg_with_half_the_covariance() -> None:
    z = torch.randn(2, 8, 5)
    ours, theirs = global_terms(z), vicreg_terms(z)
    torch.testing.assert_close(ours["invariance"], theirs["invariance"])
    torch.testing.assert_close(ours["variance"], theirs["variance"])
    torch.testing.assert_close(ours["covariance"], theirs["covariance"] / 2)


# ----------------------------------------------------------------------------------------- places


@pytest.mark.parametrize("after", [1, 2, 3, 4, 6, 7])
def test_places_of_another_grid_are_the_centers_of_its_cells(after: int) -> None:
    def centers(n: int) -> Tensor:
        at = (torch.arange(n) + 0.5) / n
        flipped = 0.9 - 0.6 * at  # a crop of 0.3 to 0.9, mirrored
        grid = torch.stack([(0.1 + 0.5 * at)[:, None].expand(n, n), flipped[None].expand(n, n)], -1)
        return grid.flatten(0, 1)[None]

    torch.testing.assert_close(places_of(centers(4), after**2), centers(after))


def test_places_that_cannot_be_told_are_refused() -> None:
    with pytest.raises(ValueError, match="take a modality that provides them"):
        places_of(None, 4)
    with pytest.raises(ValueError, match="places for 16 tokens and the encoder gives 5"):
        places_of(torch.rand(2, 16, 2), 5)
    with pytest.raises(ValueError, match="places for 1 tokens and the encoder gives 4"):
        places_of(torch.rand(2, 1, 2), 4)


# ---------------------------------------------------------------------------------- the objective


def test_half_precision_maps_are_computed_in_full() -> None:
    # far apart: rounding changes no match
    maps = [10 * torch.randn(16, 4, 8) for _ in range(2)]
    places = [torch.rand(16, 4, 2) for _ in range(2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = local_terms([m.bfloat16() for m in maps], places, (4, 4))
    full = local_terms(maps, places, (4, 4))
    for name in full:
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], full[name], rtol=0.02, atol=0.02)


def test_alpha_shares_the_weight_and_everything_is_trained() -> None:
    objective, encoders = made(alpha=0.6, num_local=2)
    plan = objective.plans()["rows"]
    assert (plan.num_global, plan.num_local, plan.coords) == (2, 2, True)
    losses = objective(encoders, Batch([views("global", 2, 9), views("local", 2, 4)]), START)
    weights = {"invariance": 25, "variance": 25, "covariance": 1}
    expected = sum(
        share * w * losses.terms[f"{part}_{n}"]
        for part, share in (("global", 0.6), ("local", 0.4))
        for n, w in weights.items()
    )
    torch.testing.assert_close(losses.total.detach(), expected)
    losses.total.backward()
    assert all(p.grad is not None for p in [*encoders.parameters(), *objective.parameters()])
    assert {"std", "token_std"} <= losses.stats.keys()


def test_a_part_that_is_off_has_no_head_and_asks_for_no_places() -> None:
    objective, encoders = made(alpha=1.0)
    assert objective.token_projector is None
    assert not objective.plans()["rows"].coords
    batch = views("global", 2, 9)
    batch.coords = None
    assert objective(encoders, Batch([batch]), START).total.isfinite()
    local, encoders = made(alpha=0.0)
    assert local.projector is None
    assert local(encoders, Batch([views("global", 2, 9)]), START).total.isfinite()


def grad(rank: int, maps: Tensor, places: Tensor, ranks: int) -> Tensor:
    mine = maps.chunk(ranks, 1)[rank].clone().requires_grad_()
    terms = local_terms(list(mine), list(places.chunk(ranks, 1)[rank]), (3, 2))
    return torch.autograd.grad(torch.stack([*terms.values()]).sum(), mine)[0] / ranks


@pytest.mark.ranks
def test_two_ranks_give_the_gradient_of_one() -> None:
    maps, places = torch.randn(2, 8, 4, 3), torch.rand(2, 8, 4, 2)
    torch.testing.assert_close(torch.cat(run_ranks(2, grad, maps, places, 2), 1), grad(0, maps, places, 1))


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"objective\.alpha=2: want 0 to 1"):
        VICRegL.Config(alpha=2)
    with pytest.raises(ValueError, match=r"objective\.matches=\(0, 4\): want 1 or more"):
        VICRegL.Config(matches=(0, 4))
    with pytest.raises(ValueError, match=r"objective\.num_local=-1: want 0 or more"):
        VICRegL.Config(num_local=-1)
    with pytest.raises(ValueError, match="set one above 0"):
        VICRegL.Config(invariance=0, variance=0, covariance=0)
    with pytest.raises(ValueError, match="matches places within one stream, got a, b"):
        VICRegL.Config().build(encoders_of("a", "b"), {"a": ROWS, "b": ROWS})
    objective, encoders = made()
    with pytest.raises(ValueError, match="vicreg needs 2 or more samples"):
        objective.eval()(encoders, Batch([views("global", 2, 9, batch=1)]), START)
