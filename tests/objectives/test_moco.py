from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Views
from multissl.layers.heads import MLPHead
from multissl.layers.teacher import Teacher
from multissl.losses import nce as kernel
from multissl.losses.moco import queue_loss
from multissl.objectives.common import one_by_one
from multissl.objectives.moco import MoCo
from tests.helpers.ranks import run_ranks
from tests.objectives.contrast import START, batch_of, build, gradients, moved, part_of

HEAD = MLPHead.Config(hidden=8, out=5, layers=2, norm="none")
NORMED = MLPHead.Config(hidden=8, out=5, layers=2, last_norm=True)
TEACHER = Teacher.Config(ema=0.5, final_ema=0.5, buffers="keep", batch_norm="batch")
V2 = MoCo.Config(queue=24, projector=HEAD, teacher=TEACHER)
V3 = MoCo.Config(
    queue=0, symmetric=True, reference_sum=True, projector=NORMED, predictor=NORMED, teacher=TEACHER
)
CASES = {"v2": V2, "v2 symmetric": V2.replace(symmetric=True, projector=NORMED), "v3": V3}


def test_known_values() -> None:
    loss, _ = queue_loss(torch.eye(4), torch.eye(4), torch.zeros(4, 4), 0.2)
    torch.testing.assert_close(loss, torch.tensor(0.026595), atol=1e-6, rtol=0)
    one = torch.ones(3, 4)
    torch.testing.assert_close(queue_loss(one, one, torch.ones(7, 4), 0.2)[0], torch.tensor(math.log(8)))


def test_queued_keys_and_anchors_can_be_left_out() -> None:
    q, k, queue = torch.randn(4, 5), torch.randn(4, 5), torch.randn(6, 5)
    negative, keep = torch.rand(4, 6) > 0.5, torch.tensor([True, False, True, True])
    found, _ = queue_loss(q, k, queue, 0.2, negative, keep)
    each = [queue_loss(q[i : i + 1], k[i : i + 1], queue[negative[i]], 0.2)[0] for i in (0, 2, 3)]
    torch.testing.assert_close(found, torch.stack(each).mean())


def test_half_precision_inputs_stay_within_what_is_stated() -> None:
    q, k, queue = torch.randn(16, 8), torch.randn(16, 8), torch.randn(32, 8)
    exact, _ = queue_loss(q, k, queue, 0.2)
    half, _ = queue_loss(q.bfloat16(), k.bfloat16(), queue, 0.2)
    assert (half - exact).abs() <= 0.02 / 0.2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = queue_loss(q, k, queue, 0.2)
    torch.testing.assert_close(inside, exact, rtol=0, atol=0)


@pytest.mark.parametrize("cfg", CASES.values(), ids=[*CASES])
def test_a_step_trains_everything_but_the_teacher(cfg: MoCo.Config) -> None:
    moved(cfg)
    if cfg.symmetric:
        moved(cfg, "ab")


def test_the_first_view_asks_and_the_seconds_keys_enter_the_queue_after_the_step() -> None:
    encoders, objective = build(V2)
    batch = batch_of(8)
    queue = objective.queues["a"]
    before = queue.rows.clone()
    first, second = batch[0].x.chunk(2)
    q = objective.projectors["a"](encoders.get_submodule("a.linear")(first))
    k = objective.teacher["a_projector"](objective.teacher["encoders"]["a"].linear(second))
    expected, _ = queue_loss(q, k, before, 0.2)
    losses = objective(encoders, batch, START)
    torch.testing.assert_close(losses.total, expected)
    assert torch.equal(queue.rows, before)
    objective.after_step(encoders, START)
    torch.testing.assert_close(queue.rows[:8], F.normalize(k, dim=1))
    assert torch.equal(queue.rows[8:], before[8:])
    assert queue.pointer == 8


def test_the_reference_sum_is_twice_the_temperature_times_the_directions() -> None:
    totals = []
    for cfg in (V3, V3.replace(reference_sum=False)):
        encoders, objective = build(cfg)
        totals.append(objective(encoders, batch_of(8), START).total)
    torch.testing.assert_close(totals[0], 4 * V3.temperature * totals[1])


def test_the_queue_holds_no_negatives_of_the_same_sample_or_group() -> None:
    def second_loss(ids: Tensor | None, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
        encoders, objective = build(V2.replace(queue=8))
        objective(encoders, batch_of(8, sample_id=ids, group_id=groups), START)
        objective.after_step(encoders, START)
        losses = objective(encoders, batch_of(8, seed=5, sample_id=ids, group_id=groups), START)
        return losses.total, losses.stats["accuracy"]

    unknown, _ = second_loss(None)
    by_id, _ = second_loss(torch.arange(8))
    assert by_id < unknown  # each anchor's own earlier key is gone
    alone, right = second_loss(None, torch.zeros(8, dtype=torch.long))
    assert alone == 0  # all of one group: nobody to be told from
    assert right == 1


def test_keys_of_missing_streams_are_never_negatives() -> None:
    present = torch.tensor([True] * 4 + [False] * 4)
    encoders, objective = build(V2.replace(queue=8, symmetric=True), "ab")
    batch = batch_of(8, "ab")
    batch[1].present = present
    objective(encoders, batch, START)
    objective.after_step(encoders, START)
    queue = objective.queues["b"]
    found = objective(encoders, batch, START).total
    queue.rows[4:] = torch.randn(4, 5)  # what stands for the missing ones
    torch.testing.assert_close(objective(encoders, batch, START).total, found)


def test_state_dict_carries_queue_and_teacher_on() -> None:
    encoders, objective = build(V2)
    objective(encoders, batch_of(8), START)
    objective.after_step(encoders, START)
    others, other = build(V2)
    others.load_state_dict(encoders.state_dict())
    other.load_state_dict(objective.state_dict())
    pair = [o(e, batch_of(8, seed=3), START).total for e, o in ((encoders, objective), (others, other))]
    assert torch.equal(*pair)
    assert other.queues["a"].pointer == 8


def test_views_one_by_one_keep_what_encoders_read() -> None:
    views = Views(
        x=torch.arange(6.0)[:, None], stream="a", role="global", num_views=2, valid=torch.rand(6, 4) > 0.5,
        sample_id=torch.arange(3),
    )  # fmt: skip
    first, second = one_by_one(views)
    assert (first.num_views, first.batch, second.batch) == (1, 3, 3)
    assert torch.equal(torch.cat([first.x, second.x]), views.x)
    assert first.valid is not None
    assert views.valid is not None
    assert torch.equal(first.valid, views.valid[:3])
    assert first.sample_id is views.sample_id


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1.0}, r"objective\.temperature=-1\.0: want more than 0"),
        ({"queue": -1}, r"objective\.queue=-1: want 0 \(none\) or more"),
        ({"predictor": HEAD}, r"objective\.predictor\.out=5: want that of objective\.projector\.out, 128"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MoCo.Config(**options)


def test_batches_that_do_not_fit_are_refused() -> None:
    encoders, objective = build(V2.replace(queue=4))
    with pytest.raises(ValueError, match=r"objective\.queue=4: smaller than the 8 keys of a step"):
        objective(encoders, batch_of(8), START)
    encoders, objective = build(V3)
    with pytest.raises(ValueError, match="2 or more samples per step, got 1"):
        objective(encoders, batch_of(1), START)
    with pytest.raises(ValueError, match=r"only the encoder of a: set objective\.symmetric=True"):
        build(V2, "ab")


def of_rank(rank: int, cfg: MoCo.Config) -> tuple[list[Tensor], list[Tensor]]:
    found = gradients(rank, cfg, sample_id=torch.arange(8))
    encoders, objective = build(cfg)
    for step in range(2):
        objective(encoders, part_of(batch_of(8, seed=step), rank), START)
        objective.after_step(encoders, START)
    return found, [b for n, b in objective.named_buffers() if n.startswith("queues")]


def all_of_rank(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {name: of_rank(rank, cfg) for name, cfg in CASES.items()}
    right, kernel.gather = kernel.gather, lambda x: x
    found["planted"] = gradients(rank, V3)
    kernel.gather = right
    return found


@pytest.mark.ranks
def test_two_ranks_give_the_gradients_of_one_and_the_same_queue() -> None:
    parts = run_ranks(2, all_of_rank)
    for name, cfg in CASES.items():
        expected, state = of_rank(0, cfg)
        for a, b, value in zip(*(p[name][0] for p in parts), expected, strict=True):
            torch.testing.assert_close(a + b, value, msg=name, atol=1e-5, rtol=1e-5)
        for mine, theirs, value in zip(parts[0][name][1], parts[1][name][1], state, strict=True):
            assert torch.equal(mine, theirs)
            torch.testing.assert_close(mine, value)
    expected = gradients(0, V3)
    planted = zip(*(p["planted"] for p in parts), expected, strict=True)
    assert torch.stack([(a + b - c).abs().max() for a, b, c in planted]).max() > 1e-3
