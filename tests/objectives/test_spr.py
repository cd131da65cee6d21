"""SPR: the roll-out by hand, what the teacher is asked, the actions' part, and ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoders, build_encoders
from multissl.contract.learning import Progress
from multissl.contract.plans import StreamSpec
from multissl.encoders.mlp import MLPEncoder
from multissl.layers.heads import MLPHead
from multissl.losses.spr import spr_loss
from multissl.objectives.spr import SPR
from multissl.parallel.ranks import rank
from tests.helpers.ranks import run_ranks

K, A, C, B = 3, 2, 6, 8
SPEC = {
    "moves": StreamSpec(kind="columns", shape=(C,), num_tokens=C, cardinalities=(0,) * C, condition_dim=A)
}
STEP = Progress(step=0, total=10)


def made(spec: dict[str, StreamSpec] = SPEC, **options: Any) -> tuple[SPR, Encoders]:
    torch.manual_seed(0)
    encoders = build_encoders({"moves": MLPEncoder.Config(dims=(8,))}, spec)
    head = MLPHead.Config(hidden=16, out=4, layers=2)
    cfg = SPR.Config(
        steps=K, projector=head, predictor=head, transition=head.replace(norm="layer"), **options
    )
    return SPR(cfg, encoders, spec).train(), encoders.train()


def views(rows: int = B, seed: int = 0) -> Views:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1 + K, rows, C, generator=g)
    taken = F.one_hot(torch.randint(A, (1 + K, rows), generator=g), A).float()
    return Views(
        x=x.flatten(0, 1), stream="moves", role="global", num_views=1 + K, condition=taken.flatten(0, 1)
    )


def test_the_loss_is_that_of_a_roll_out_by_hand() -> None:
    spr, encoders = made()
    batch = views()
    found = spr(encoders, Batch([batch]), STEP).total
    assert batch.condition is not None
    x, a = batch.x.view(1 + K, B, C), batch.condition.view(1 + K, B, A)

    def latent(model: Any, rows: Tensor) -> Tensor:
        z = model.encode([Views(x=rows, stream="moves", role="global")])[0].pooled
        return (z - z.amin(1, keepdim=True)) / (z.amax(1, keepdim=True) - z.amin(1, keepdim=True) + 1e-5)

    z, parts = latent(encoders, x[0]), []
    for k in range(1, 1 + K):
        z = z + spr.transition(torch.cat([z, a[k]], 1))
        z = (z - z.amin(1, keepdim=True)) / (z.amax(1, keepdim=True) - z.amin(1, keepdim=True) + 1e-5)
        target = spr.teacher["projector"](latent(spr.teacher["encoders"], x[k])).detach()
        parts.append(2 - 2 * F.cosine_similarity(spr.predictor(spr.projector(z)), target))
    torch.testing.assert_close(found, torch.stack(parts).mean())


def test_later_steps_hang_on_earlier_actions_and_not_on_later_ones() -> None:
    spr, _ = made()
    z = torch.rand(B, 8)
    actions = torch.zeros(K, B, A, requires_grad=True)
    rolled = spr.roll(z, actions)
    (grad,) = torch.autograd.grad(rolled[1].square().sum(), actions)
    assert grad[0].any()
    assert grad[1].any()
    assert not grad[2].any()


def test_nothing_learns_through_the_teacher() -> None:
    spr, encoders = made(inverse=1.0)
    spr(encoders, Batch([views()]), STEP).total.backward()
    assert all(p.grad is None for p in spr.teacher.parameters())
    grads = {
        n for m in (spr, encoders) for n, p in m.named_parameters() if p.requires_grad and p.grad is None
    }
    assert not grads
    before = [p.clone() for p in spr.teacher.parameters()]
    with torch.no_grad():
        for p in encoders.parameters():
            p.add_(1.0)
    spr.after_step(encoders, STEP)
    assert any(not torch.equal(a, b) for a, b in zip(before, spr.teacher.parameters(), strict=True))


def test_actions_can_be_read_back_where_they_show() -> None:
    """With the action written into the next view, the inverse term falls below what always guessing the mean gives."""
    spr, encoders = made(inverse=1.0)
    optimizer = torch.optim.Adam([*spr.parameters(), *encoders.parameters()], lr=3e-3)
    inverse = torch.tensor(1.0)
    for step in range(60):
        batch = views(64, seed=step)
        assert batch.condition is not None
        batch.x[:, :A] = 3 * batch.condition
        losses = spr(encoders, Batch([batch]), STEP)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        inverse = losses.terms["inverse"]
    assert inverse < 0.15  # guessing: 0.5


def test_without_actions_it_is_rolled_out_blindly() -> None:
    spec = {"moves": StreamSpec(kind="columns", shape=(C,), num_tokens=C, cardinalities=(0,) * C)}
    spr, encoders = made(spec)
    batch = views()
    batch.condition = None
    assert torch.isfinite(spr(encoders, Batch([batch]), STEP).total)
    with pytest.raises(ValueError, match="reads actions, moves has none between its views: set it to 0"):
        made(spec, inverse=1.0)


def test_promised_actions_must_come() -> None:
    spr, encoders = made()
    batch = views()
    batch.condition = None
    with pytest.raises(ValueError, match="moves promises conditions of 2 values and gives none"):
        spr(encoders, Batch([batch]), STEP)
    with pytest.raises(ValueError, match="spr wants 4 global views, as its plan says, got 2"):
        spr(encoders, Batch([views().part(0, 2)]), STEP)


def test_the_plan_asks_for_one_view_and_those_that_follow() -> None:
    spr, _ = made()
    assert spr.plans()["moves"].num_global == 1 + K


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "objective.steps=0: want 1 or more"),
        ({"inverse": -1.0}, "objective.inverse=-1.0: want 0 or more"),
        ({"predictor": MLPHead.Config(out=3)}, "objective.predictor.out=3: want objective.projector.out=256"),
    ],
)
def test_limits_of_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SPR.Config(**options)


def test_one_stream_only() -> None:
    spec = {"a": SPEC["moves"], "b": SPEC["moves"]}
    encoders = build_encoders(dict.fromkeys(spec, MLPEncoder.Config(dims=(8,))), spec)
    with pytest.raises(ValueError, match="spr rolls one stream forward, got a, b"):
        SPR(SPR.Config(), encoders, spec)


def test_same_direction_costs_0_and_the_opposite_4() -> None:
    p = torch.randn(K, B, 4)
    assert spr_loss(p, 3 * p).item() == pytest.approx(0, abs=1e-6)
    assert spr_loss(p, -p).item() == pytest.approx(4, abs=1e-6)
    half = spr_loss(p.bfloat16(), -p.bfloat16())
    assert half.dtype == torch.float32


def gradient(_: int, ranks: int) -> dict[str, Tensor]:
    spr, encoders = made(inverse=1.0)
    whole = views()
    mine = whole.samples(torch.arange(B).chunk(ranks)[rank()])
    spr(encoders, Batch([mine]), STEP).total.backward()
    named = [*encoders.named_parameters(), *spr.named_parameters()]
    return {n: p.grad / ranks for n, p in named if p.grad is not None}


@pytest.mark.ranks
def test_two_ranks_give_the_gradient_of_one() -> None:
    right, parts = gradient(0, 1), run_ranks(2, gradient, 2)
    for name, value in right.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], value, atol=1e-5, rtol=1e-3, msg=name)
