from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoder, Encoders
from multissl.contract.learning import Features, Progress
from multissl.contract.plans import Masking, StreamSpec
from multissl.layers.heads import MLPHead
from multissl.losses import vicreg as module
from multissl.losses.vicreg import moments, vicreg_terms
from multissl.objectives.vicreg import VICReg
from tests.helpers.ranks import run_ranks
from tests.objectives.plain import alone_and_beside

ROWS = StreamSpec(kind="columns", shape=(6,), num_tokens=6)


class Stub(Encoder):
    dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        return [Features(pooled=self.linear(v.x), tokens=v.x[:, :, None]) for v in views]


def test_known_values() -> None:
    terms = vicreg_terms(torch.eye(4).expand(2, 4, 4))
    expected = {"invariance": 0.0, "variance": 0.4999, "covariance": 1 / 24}  # c of each view is 1 / 48
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], torch.tensor(value), rtol=1e-5, atol=0)
    total = 25 * terms["variance"] + terms["covariance"]
    torch.testing.assert_close(total, torch.tensor(12.539168), rtol=1e-6, atol=0)


def test_missing_samples_count_for_nothing() -> None:
    z, there = torch.randn(2, 9, 4), torch.ones(2, 9, dtype=torch.bool)
    there[:, 3] = False
    spoilt, kept = alone_and_beside(z, there)
    found, right = vicreg_terms(spoilt, there), vicreg_terms(kept)
    for name, value in right.items():
        torch.testing.assert_close(found[name], value)
    there[0, 5] = False  # the other view of this sample still counts for its own statistics
    hinge, _ = moments(z, there)
    torch.testing.assert_close(hinge[0], moments(z[:1, there[0]])[0][0])
    torch.testing.assert_close(hinge[1], moments(z[1:, there[1]])[0][0])


def test_half_precision_inputs_are_computed_in_full() -> None:
    z = torch.randn(2, 256, 16) * torch.linspace(0.2, 2, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = vicreg_terms(z.bfloat16())
    for name, value in vicreg_terms(z).items():
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], value, rtol=0.02, atol=0)


def test_collapse_costs_variance_and_nothing_else() -> None:
    terms = vicreg_terms(torch.ones(2, 8, 4))
    torch.testing.assert_close(terms["variance"], torch.tensor(1 - 1e-2))  # std = sqrt(1e-4)
    assert terms["invariance"] == terms["covariance"] == 0


def test_repeated_features_cost_covariance_and_spread_ones_nothing() -> None:
    one = torch.randn(64, 1)
    repeated = vicreg_terms(torch.stack([one.expand(-1, 4)] * 2))
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    spread = vicreg_terms(torch.stack([corners] * 2))
    assert repeated["covariance"] > 1
    assert all(value.abs() < 1e-6 for value in spread.values())


def test_views_may_change_places() -> None:
    z = torch.randn(2, 8, 4)
    for a, b in zip(vicreg_terms(z).values(), vicreg_terms(z.flip(0)).values(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_objective_weighs_its_terms_and_trains_encoder_and_projector() -> None:
    encoders = Encoders({"rows": Stub()})
    cfg = VICReg.Config(covariance=0.0, projector=MLPHead.Config(hidden=8, out=5))
    objective = cfg.build(encoders, {"rows": ROWS})
    assert objective.plans()["rows"].num_global == 2
    batch = Batch([Views(x=torch.randn(16, 6), stream="rows", role="global", num_views=2)])
    losses = objective(encoders, batch, Progress(step=0, total=1))
    expected = 25 * losses.terms["invariance"] + 25 * losses.terms["variance"]
    torch.testing.assert_close(losses.total.detach(), expected)
    losses.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoders.parameters())
    assert all(p.grad is not None for p in objective.parameters())


def test_several_streams_are_paired_by_their_clean_views() -> None:
    encoders = Encoders({"a": Stub(), "b": Stub()})
    objective = VICReg.Config(projector=MLPHead.Config(hidden=8, out=5)).build(
        encoders, {"a": ROWS, "b": ROWS}
    )
    assert [(p.num_clean, p.num_global) for p in objective.plans().values()] == [(1, 0), (1, 0)]
    batch = Batch(Views(x=torch.randn(8, 6), stream=s, role="clean") for s in "ab")
    assert objective(encoders, batch, Progress(step=0, total=1)).total.isfinite()


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="got 1: raise batch_size"):
        vicreg_terms(torch.randn(2, 1, 4))
    with pytest.raises(ValueError, match=r"objective\.variance=-1: want 0 or more"):
        VICReg.Config(variance=-1)
    with pytest.raises(ValueError, match="set one above 0"):
        VICReg.Config(invariance=0, variance=0, covariance=0)


def grad(rank: int, z: Tensor, ranks: int) -> Tensor:
    mine = z.chunk(ranks, dim=1)[rank].clone().requires_grad_()
    total = torch.stack([*vicreg_terms(mine).values()]).sum()
    return torch.autograd.grad(total, mine)[0] / ranks  # the mean over ranks that the trainer takes


def right_and_planted(rank: int, z: Tensor) -> tuple[Tensor, Tensor]:
    right, gather = grad(rank, z, 2), module.gather
    module.gather = lambda x: gather(x).detach()
    try:
        return right, grad(rank, z, 2)
    finally:
        module.gather = gather


@pytest.mark.ranks
def test_two_ranks_give_the_gradient_of_one_and_a_gather_without_gradient_does_not() -> None:
    z = torch.randn(2, 8, 4)
    parts = run_ranks(2, right_and_planted, z)
    expected = grad(0, z, 1)
    torch.testing.assert_close(torch.cat([p[0] for p in parts], dim=1), expected)
    planted = torch.cat([p[1] for p in parts], dim=1)
    assert (planted - expected).abs().max() > 0.01
