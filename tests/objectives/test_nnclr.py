from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.layers.heads import MLPHead
from multissl.losses import nce as kernel
from multissl.losses.nce import relations
from multissl.losses.nnclr import neighbors, nnclr_loss
from multissl.objectives.nnclr import NNCLR
from tests.helpers.ranks import run_ranks
from tests.objectives.contrast import START, batch_of, build, gradients, moved

HEAD = MLPHead.Config(hidden=8, out=5, layers=2, last_norm=True)
SMALL = NNCLR.Config(queue=24, projector=HEAD, predictor=HEAD.replace(last_norm=False))
CASES = {"paper": SMALL, "two views": SMALL.replace(two_view=True)}


def test_neighbors_are_the_nearest_rows_without_gradient() -> None:
    z, queue = torch.randn(4, 5, requires_grad=True), torch.randn(9, 5)
    near, place = neighbors(z, queue)
    expected = [max(range(9), key=lambda j: F.cosine_similarity(row, queue[j], dim=0).item()) for row in z]
    assert place.tolist() == expected
    assert torch.equal(near, queue[place])
    assert not near.requires_grad


def test_only_the_prediction_has_a_gradient_and_the_loss_is_its_definition() -> None:
    near, p = torch.randn(6, 5), torch.randn(6, 5, requires_grad=True)
    loss, _ = nnclr_loss(near, p, relations(6), 0.1)
    logits = F.normalize(near, dim=1) @ F.normalize(p, dim=1).T / 0.1
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.arange(6)))
    assert torch.autograd.grad(loss, p)[0].any()


def test_half_precision_inputs_stay_within_what_is_stated() -> None:
    near, p = torch.randn(16, 8), torch.randn(16, 8)
    for two_view in (False, True):
        exact, _ = nnclr_loss(near, p, relations(16), 0.1, two_view)
        half, _ = nnclr_loss(near.bfloat16(), p.bfloat16(), relations(16), 0.1, two_view)
        assert half.dtype == torch.float32
        assert (half - exact).abs() <= 0.02 / 0.1


@pytest.mark.parametrize("cfg", CASES.values(), ids=[*CASES])
@pytest.mark.parametrize("streams", ["a", "ab"])
def test_a_step_trains_everything(cfg: NNCLR.Config, streams: str) -> None:
    moved(cfg, streams)


def test_embeddings_of_the_first_view_enter_the_queue_after_the_step() -> None:
    encoders, objective = build(SMALL)
    batch, queue = batch_of(8), objective.queues["a"]
    before = queue.rows.clone()
    losses = objective(encoders, batch, START)
    assert losses.stats["queue_hits"] == 0  # random rows only
    assert torch.equal(queue.rows, before)
    objective.after_step(encoders, START)
    z = objective.projectors["a"](encoders.get_submodule("a.linear")(batch[0].x.chunk(2)[0]))
    torch.testing.assert_close(queue.rows[:8], F.normalize(z.detach(), dim=1))
    assert torch.equal(queue.rows[8:], before[8:])
    again = objective(encoders, batch, START)
    assert again.stats["queue_hits"] >= 0.5  # the first view finds itself


def test_state_dict_carries_the_queue_on() -> None:
    encoders, objective = build(SMALL)
    objective(encoders, batch_of(8), START)
    objective.after_step(encoders, START)
    others, other = build(SMALL)
    other.load_state_dict(objective.state_dict())
    others.load_state_dict(encoders.state_dict())
    again = objective(encoders, batch_of(8, seed=3), START).total
    assert torch.equal(other(others, batch_of(8, seed=3), START).total, again)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, r"objective\.temperature=0\.0: want more than 0"),
        ({"queue": 0}, r"objective\.queue=0: want the global batch or more"),
        ({"projector": HEAD}, r"objective\.predictor\.out=256: want that of objective\.projector\.out, 5"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        NNCLR.Config(**options)


def test_a_queue_that_outlasts_the_data_is_refused() -> None:
    _, objective = build(SMALL, "a")
    objective.check_dataset_size(24)
    with pytest.raises(ValueError, match=r"objective\.queue=24: more than the 23 training samples"):
        objective.check_dataset_size(23)


def test_batches_that_do_not_fit_are_refused() -> None:
    encoders, objective = build(SMALL.replace(queue=4))
    with pytest.raises(ValueError, match=r"objective\.queue=4: smaller than the 8 keys of a step"):
        objective(encoders, batch_of(8), START)
    encoders, objective = build(SMALL, "ab")
    with pytest.raises(ValueError, match="cannot queue streams that samples lack"):
        objective(encoders, batch_of(4, "ab", present=torch.ones(4).bool()), START)
    plain = HEAD.replace(norm="none", last_norm=False)
    encoders, objective = build(SMALL.replace(projector=plain, predictor=plain))
    with pytest.raises(ValueError, match="2 or more samples per step, got 1"):
        objective(encoders, batch_of(1), START)


def all_gradients(rank: int) -> dict[str, list[Tensor]]:
    found = {name: gradients(rank, cfg) for name, cfg in CASES.items()}
    right, kernel.gather = kernel.gather, lambda x: x
    found["planted"] = gradients(rank, SMALL)
    kernel.gather = right
    return found


@pytest.mark.ranks
def test_two_ranks_give_the_gradients_of_one_and_candidates_of_one_rank_do_not() -> None:
    parts = run_ranks(2, all_gradients)
    for name, cfg in CASES.items():
        for a, b, value in zip(*(p[name] for p in parts), gradients(0, cfg), strict=True):
            torch.testing.assert_close(a + b, value, msg=name, atol=1e-5, rtol=1e-5)
    planted = zip(*(p["planted"] for p in parts), gradients(0, SMALL), strict=True)
    assert torch.stack([(a + b - c).abs().max() for a, b, c in planted]).max() > 1e-3
