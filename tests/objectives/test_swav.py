from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoders
from multissl.contract.learning import Progress
from multissl.engine.learner import Learner
from multissl.engine.optim.adamw import AdamW
from multissl.layers.heads import MLPHead
from multissl.losses.swav import swav_loss
from multissl.objectives.common import head
from multissl.objectives.swav import SwAV
from multissl.parallel.ranks import rank, world
from tests.helpers.ranks import run_ranks
from tests.losses.test_sinkhorn import matrix_form
from tests.objectives.test_dino import SPEC, Stub

HEAD = MLPHead.Config(hidden=8, out=5, layers=2)
START = Progress(step=0, total=10)


def build(**options: Any) -> tuple[Encoders, SwAV]:
    torch.manual_seed(1)
    encoders = Encoders({"rows": Stub()}).double()
    defaults: dict[str, Any] = {"prototypes": 7, "num_local": 2, "projector": HEAD}
    objective = SwAV(SwAV.Config(**defaults | options), encoders, SPEC).double()
    objective.after_step(encoders, START)  # unit vectors in fp64 too
    return encoders, objective


def batch_of(samples: int, step: int = 0, num_local: int = 2) -> Batch:
    draw = torch.Generator().manual_seed(step)
    whole = torch.randn(2 * samples, 6, generator=draw).double()
    small = torch.randn(num_local * samples, 3, generator=draw).double()
    full = Views(x=whole, stream="rows", role="global", num_views=2)
    local = [Views(x=small, stream="rows", role="local", num_views=num_local)] if num_local else []
    return Batch([full, *local])


def slow(scores: Tensor, queue: Tensor | None = None) -> Tensor:
    """The loss by its definition, with the matrix form of Sinkhorn-Knopp."""
    total = torch.zeros((), dtype=scores.dtype)
    for i in range(2):
        rows = scores[i].detach() if queue is None else torch.cat([queue[i], scores[i].detach()])
        codes = matrix_form(rows, 0.05)[-scores.shape[1] :]
        for v in range(len(scores)):
            if v != i:
                ce = -(codes * (scores[v] / 0.1).log_softmax(1)).sum(1).mean()
                total = total + ce / (2 * (len(scores) - 1))
    return total


@pytest.mark.parametrize("queued", [False, True])
def test_the_loss_is_the_slow_loop_over_pairs_of_views(queued: bool) -> None:
    scores = (torch.rand(4, 6, 9).double() * 2 - 1).requires_grad_()
    queue = torch.rand(2, 8, 9).double() if queued else None
    loss, _, _ = swav_loss(scores, 2, queue=queue)
    torch.testing.assert_close(loss, slow(scores, queue))
    grads = [torch.autograd.grad(x, scores)[0] for x in (loss, slow(scores, queue))]
    torch.testing.assert_close(grads[0], grads[1])


def test_scores_without_a_preference_cost_log_k_and_a_queue_that_is_not_full_counts_for_nothing() -> None:
    loss, _, _ = swav_loss(torch.zeros(3, 4, 11), 2)
    torch.testing.assert_close(loss.item(), math.log(11))
    scores, queue = torch.rand(3, 4, 11), torch.rand(2, 6, 11)
    empty, _, _ = swav_loss(scores, 2, queue=queue, use_queue=torch.tensor(False))
    torch.testing.assert_close(empty, swav_loss(scores, 2)[0])
    full, _, _ = swav_loss(scores, 2, queue=queue, use_queue=torch.tensor(True))
    assert (full - empty).abs() > 1e-3


def test_half_precision_scores_are_widened_and_cost_what_the_docstring_says() -> None:
    scores = torch.rand(4, 32, 50) * 2 - 1
    half = scores.bfloat16()
    loss, _, _ = swav_loss(half, 2)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, swav_loss(half.float(), 2)[0])
    torch.testing.assert_close(loss, swav_loss(scores, 2)[0], rtol=0.03, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(swav_loss(scores, 2)[0], swav_loss(scores.float(), 2)[0])


def test_the_objective_is_its_free_function_on_cosines_of_all_views() -> None:
    encoders, objective = build()
    batch = batch_of(4)
    losses = objective(encoders, batch, START)
    pooled = torch.cat([f.pooled for f in encoders.encode(batch)])
    z = torch.nn.functional.normalize(head(objective.projectors["rows"], pooled, 4), dim=-1)  # [V, B, P]
    scores = z @ objective.prototypes.weight.T
    torch.testing.assert_close(losses.total, slow(scores))
    trained = [*encoders.parameters(), *objective.parameters()]
    grads = [torch.autograd.grad(x, trained, allow_unused=True) for x in (losses.total, slow(scores))]
    torch.testing.assert_close(grads[0], grads[1])
    assert 0 <= losses.stats["entropy_share"] <= 1
    assert {"std", "prototype_use", "teacher_kl"} <= losses.stats.keys()


def test_prototypes_are_unit_vectors_at_the_start_and_after_every_step_and_rest_where_asked() -> None:
    encoders, objective = build(freeze_prototypes=3)
    fresh = SwAV(SwAV.Config(prototypes=7, projector=HEAD), encoders, SPEC)
    torch.testing.assert_close(fresh.prototypes.weight.norm(dim=1), torch.ones(7))
    with torch.no_grad():
        objective.prototypes.weight *= 3
    turned = objective.prototypes.weight.detach() / 3
    objective(encoders, batch_of(4), START)
    objective.after_step(encoders, START)
    torch.testing.assert_close(objective.prototypes.weight.detach(), turned)
    turned = objective.prototypes.weight.detach().clone()
    learner = Learner(encoders, objective)
    optimizer = AdamW(AdamW.Config(lr=0.1), learner, objective.param_rules(), 256)
    for step in (2, 3):
        objective(encoders, batch_of(4), START).total.backward()
        optimizer.step(Progress(step=step, total=10))
        assert torch.equal(objective.prototypes.weight, turned) == (step == 2)


def test_the_queue_holds_the_last_batches_first_in_first_out_and_starts_when_full_and_due() -> None:
    encoders, objective = build(queue=8, queue_start=1)
    _, plain = build()
    for step in range(4):
        batch = batch_of(4, step)
        progress = Progress(step=step, total=10)
        plain.load_state_dict(objective.state_dict(), strict=False)
        used = not torch.isclose(
            objective(encoders, batch, progress).total, plain(encoders, batch, progress).total, rtol=1e-6
        )
        assert used == (step >= 2), "full after two batches of four"
        before = objective.queue.clone()
        objective.after_step(encoders, progress)
        torch.testing.assert_close(objective.queue[:, 4:], before[:, :4])
    torch.testing.assert_close(objective.queue.norm(dim=-1), torch.ones(2, 8).double())
    assert {"queue", "queued"} <= objective.state_dict().keys()
    before = objective.queue.clone()
    objective.after_step(
        encoders, START
    )  # a step without a batch of its own, say a skipped one, pushes nothing
    assert torch.equal(objective.queue, before)


def trained(_: int) -> list[Tensor]:
    """Gradients of three steps with a queue, and the queue."""
    encoders, objective = build(queue=8)
    parameters = [*encoders.parameters(), *objective.parameters()]
    found: list[Tensor] = []
    for step in range(3):
        mine = 4 // world()
        rows = torch.arange(rank() * mine, (rank() + 1) * mine)
        losses = objective(encoders, Batch(v.samples(rows) for v in batch_of(4, step)), START)
        grads = torch.autograd.grad(losses.total, parameters, allow_unused=True)
        found += [g / world() for g in grads if g is not None]
        objective.after_step(encoders, START)
    return [*found, objective.queue]


@pytest.mark.ranks
def test_two_ranks_with_a_queue_give_the_gradients_and_the_queue_of_one() -> None:
    right, parts = trained(0), run_ranks(2, trained)
    for i, value in enumerate(right[:-1]):
        torch.testing.assert_close(parts[0][i] + parts[1][i], value)
    for part in parts:
        torch.testing.assert_close(part[-1], right[-1])


def test_several_streams_share_the_prototypes_and_code_their_clean_views() -> None:
    encoders = Encoders({"one": Stub(), "two": Stub()}).double()
    specs = {"one": SPEC["rows"], "two": SPEC["rows"]}
    objective = SwAV(SwAV.Config(prototypes=7, projector=HEAD), encoders, specs).double()
    assert {(p.num_clean, p.num_global, p.num_local) for p in objective.plans().values()} == {(1, 0, 0)}
    batch = Batch(Views(x=torch.randn(4, 6).double(), stream=s, role="clean") for s in specs)
    objective(encoders, batch, START).total.backward()
    assert all(p.grad is not None for p in objective.parameters())
    batch[0].present = torch.tensor([True, True, False, True])
    with pytest.raises(ValueError, match="swav codes every sample in every stream"):
        objective(encoders, batch, START)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "objective.temperature=0: want more than 0"),
        ({"epsilon": -1}, "objective.epsilon=-1: want more than 0"),
        ({"prototypes": 1}, "objective.prototypes=1: want 2 or more"),
        ({"sinkhorn_rounds": 0}, "objective.sinkhorn_rounds=0: want 1 or more"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwAV.Config(**options)


def test_a_queue_smaller_than_the_batch_and_a_lone_view_are_refused() -> None:
    encoders, objective = build(queue=3)
    with pytest.raises(ValueError, match=r"objective.queue=3 is smaller than the batch, 4 samples"):
        objective(encoders, batch_of(4), START)
    with pytest.raises(ValueError, match="swav needs 2 or more views"):
        swav_loss(torch.zeros(1, 4, 7), 1)


def test_embeddings_in_one_point_raise_the_alarm_and_spread_ones_do_not() -> None:
    _, objective = build()
    said = [
        objective.alarm(
            [{"step": 50.0 * i, "stats/std": std} for i in range(8)], Progress(step=400, total=800)
        )
        for std in (0.02, 0.9)
    ]
    assert said[0] is not None
    assert "objective.epsilon" in said[0]
    assert said[1] is None
