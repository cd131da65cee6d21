from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.layers.heads import MLPHead
from multissl.losses import siglip as module
from multissl.losses.nce import relations
from multissl.losses.siglip import pair_sigmoid
from multissl.objectives.siglip import SigLIP
from tests.helpers.ranks import run_ranks
from tests.objectives.contrast import START, batch_of, build, decay_of, gradients, moved

SMALL = SigLIP.Config(projector=MLPHead.Config(out=5, layers=1, norm="none"))


def test_known_values() -> None:
    rows = torch.eye(4)
    loss, hits = pair_sigmoid(rows, rows, 10.0, -10.0, relations(4))
    torch.testing.assert_close(loss, torch.tensor(0.693283), atol=1e-6, rtol=0)
    assert hits == 1
    a, b = torch.eye(8)[:4], torch.eye(8)[4:]  # unrelated
    start, _ = pair_sigmoid(a, b, 10.0, -10.0, relations(4))
    torch.testing.assert_close(start, torch.tensor(10 + 4 * 4.54e-5), atol=1e-5, rtol=0)


def test_it_is_the_sum_over_pairs_by_the_batch() -> None:
    a, b, ids, groups = (
        torch.randn(5, 4),
        torch.randn(5, 4),
        torch.tensor([0, 1, 2, 3, 0]),
        torch.tensor([0, 1, 1, 2, 3]),
    )
    found, _ = pair_sigmoid(a, b, 3.0, -1.0, relations(5, [ids], [groups]))
    total = torch.zeros(())
    for i in range(5):
        for j in range(5):
            logit = 3 * F.cosine_similarity(a[i], b[j], dim=0) - 1
            if ids[i] == ids[j]:
                total = total - F.logsigmoid(logit)
            elif groups[i] != groups[j]:
                total = total - F.logsigmoid(-logit)
    torch.testing.assert_close(found, total / 5)


def test_samples_that_lack_a_stream_are_left_out() -> None:
    a, b, present = torch.randn(6, 4), torch.randn(6, 4), torch.ones(2, 6).bool()
    present[0, 1] = present[1, 4] = False
    keep = present.all(0)
    found = pair_sigmoid(a, b, 10.0, -10.0, relations(6), present)
    torch.testing.assert_close(found, pair_sigmoid(a[keep], b[keep], 10.0, -10.0, relations(4)))


def test_half_precision_inputs_stay_within_what_is_stated() -> None:
    a, b = torch.randn(16, 8), torch.randn(16, 8)
    exact, _ = pair_sigmoid(a, b, 10.0, -2.0, relations(16))
    half, _ = pair_sigmoid(a.bfloat16(), b.bfloat16(), 10.0, -2.0, relations(16))
    assert half.dtype == torch.float32
    assert (half - exact).abs() <= 0.02 * 10
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = pair_sigmoid(a, b, 10.0, -2.0, relations(16))
    torch.testing.assert_close(inside, exact, rtol=0, atol=0)


@pytest.mark.parametrize("streams", ["ab", "abc"])
def test_a_step_trains_everything(streams: str) -> None:
    moved(SMALL, streams)


def test_scale_and_bias_start_where_told_are_logged_clamped_and_not_decayed() -> None:
    encoders, objective = build(SMALL, "ab")
    assert objective.plans()["a"].num_clean == 1
    stats = objective(encoders, batch_of(8, "ab"), START).stats
    torch.testing.assert_close(torch.stack([stats["scale"], stats["bias"]]), torch.tensor([10.0, -10.0]))
    assert decay_of(objective.scale.logit_scale, encoders, objective) == 0
    assert decay_of(objective.bias.logit_bias, encoders, objective) == 0
    assert decay_of(objective.projectors["a"].mlp[0].weight, encoders, objective) == 1
    torch.nn.init.constant_(objective.scale.logit_scale, -2.0)
    objective.after_step(encoders, START)
    assert objective(encoders, batch_of(8, "ab"), START).stats["scale"] == 1


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"objective\.scale=0\.0: want 1 to objective\.largest_scale=100"):
        SigLIP.Config(scale=0.0)
    with pytest.raises(ValueError, match="siglip compares streams with each other, got only a: use infonce"):
        build(SMALL)
    encoders, objective = build(SMALL, "ab")
    with pytest.raises(ValueError, match="2 or more samples per step, got 1: raise batch_size"):
        objective(encoders, batch_of(1, "ab"), START)


PRESENT = torch.tensor([1, 1, 1, 1, 0, 1, 0, 0]).bool()


def all_gradients(rank: int) -> dict[str, list[Tensor]]:
    found = {"all": gradients(rank, SMALL, "abc"), "some": gradients(rank, SMALL, "abc", present=PRESENT)}
    right, module.gather = module.gather, lambda x: right(x).detach()
    found["planted"] = gradients(rank, SMALL, "abc")
    module.gather = right
    return found


@pytest.mark.ranks
def test_two_ranks_give_the_gradients_of_one_and_a_gather_without_gradient_does_not() -> None:
    parts = run_ranks(2, all_gradients)
    cases: list[tuple[str, dict[str, Any]]] = [("all", {}), ("some", {"present": PRESENT})]
    for name, more in cases:
        for a, b, value in zip(*(p[name] for p in parts), gradients(0, SMALL, "abc", **more), strict=True):
            torch.testing.assert_close(a + b, value, msg=name, atol=1e-5, rtol=1e-5)
    planted = zip(*(p["planted"] for p in parts), gradients(0, SMALL, "abc"), strict=True)
    assert torch.stack([(a + b - c).abs().max() for a, b, c in planted]).max() > 1e-3
