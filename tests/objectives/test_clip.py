from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Batch
from multissl.contract.plans import ViewPlan
from multissl.layers.heads import MLPHead
from multissl.losses import nce as kernel
from multissl.losses.clip import clip_loss, modality_gap
from multissl.losses.nce import relations
from multissl.objectives.clip import CLIP
from multissl.objectives.infonce import InfoNCE
from multissl.objectives.weighted import Weighted
from tests.helpers.ranks import run_ranks
from tests.objectives.contrast import START, batch_of, build, decay_of, gradients, moved
from tests.objectives.test_weighted import Counting

HEAD = MLPHead.Config(out=5, layers=1, norm="none")
SMALL = CLIP.Config(projector=HEAD)


def test_known_values() -> None:
    same = torch.ones(2, 8, 4)
    torch.testing.assert_close(clip_loss(same, relations(8), 0.07)[0], torch.tensor(math.log(8)))
    rows = torch.eye(4).expand(2, 4, 4)
    loss, stats = clip_loss(rows, relations(4), 1 / 14.3)
    assert 1.5e-6 < loss < 2.3e-6  # 3 exp(-14.3), in fp32
    assert stats["accuracy_forth"] == stats["accuracy_back"] == 1


def test_it_is_the_mean_of_both_directions_over_all_pairs_of_streams() -> None:
    z = torch.randn(3, 6, 5)
    u, found = F.normalize(z, dim=2), []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        logits = u[a] @ u[b].T / 0.2
        found += [F.cross_entropy(logits, torch.arange(6)), F.cross_entropy(logits.T, torch.arange(6))]
    torch.testing.assert_close(clip_loss(z, relations(6), 0.2)[0], torch.stack(found).mean())


def test_one_caption_twice_is_a_positive_of_both() -> None:
    z, ids = torch.randn(2, 4, 5), torch.tensor([0, 1, 2, 0])
    u = F.normalize(z, dim=2)
    logs = (u[0] @ u[1].T / 0.2).log_softmax(1), (u[1] @ u[0].T / 0.2).log_softmax(1)
    right = (ids[:, None] == ids).float()
    right = right / right.sum(1, keepdim=True)
    expected = -torch.stack([(right * log).sum(1).mean() for log in logs]).mean()
    torch.testing.assert_close(clip_loss(z, relations(4, [ids]), 0.2)[0], expected)


def test_samples_that_lack_a_stream_are_left_out_of_its_pairs_alone() -> None:
    z, present = torch.randn(3, 6, 5), torch.ones(3, 6).bool()
    present[2, :3] = False
    found, _ = clip_loss(z, relations(6), 0.2, present)
    full, _ = clip_loss(z[:2], relations(6), 0.2)
    parts = [clip_loss(z[[a, 2], 3:], relations(3), 0.2)[0] for a in (0, 1)]
    torch.testing.assert_close(found, torch.stack([full, *parts]).mean())


def test_shuffled_pairs_are_not_found() -> None:
    z = torch.randn(2, 64, 8)
    _, stats = clip_loss(torch.stack([z[0], z[0].roll(1, 0)]), relations(64), 0.07)
    assert stats["accuracy_forth"] == 0


def test_half_precision_inputs_stay_within_what_is_stated() -> None:
    z = torch.randn(2, 16, 8)
    for t in (0.07, 0.5):
        exact, half = (clip_loss(x, relations(16), t)[0] for x in (z, z.bfloat16()))
        assert half.dtype == torch.float32
        assert (half - exact).abs() <= 0.02 / t


@pytest.mark.parametrize("streams", ["ab", "abc"])
def test_a_step_trains_everything(streams: str) -> None:
    moved(SMALL, streams)
    moved(SMALL.replace(learn_temperature=False, temperature=0.05), streams)


def test_the_scale_is_learned_clamped_logged_and_not_decayed() -> None:
    encoders, objective = build(SMALL, "ab")
    assert objective.plans()["b"].num_clean == 1
    losses = objective(encoders, batch_of(8, "ab"), START)
    torch.testing.assert_close(losses.stats["scale"], torch.tensor(1 / 0.07))
    assert decay_of(objective.scale.logit_scale, encoders, objective) == 0
    assert decay_of(objective.projectors["a"].mlp[0].weight, encoders, objective) == 1
    torch.nn.init.constant_(objective.scale.logit_scale, 9.0)
    objective.after_step(encoders, START)
    torch.testing.assert_close(
        objective(encoders, batch_of(8, "ab"), START).stats["scale"], torch.tensor(100.0)
    )
    fixed = build(SMALL.replace(learn_temperature=False, temperature=0.05), "ab")[1]
    assert fixed.scale is None


def test_the_gap_is_between_centers() -> None:
    a = torch.eye(2)[:1].expand(4, 2)
    torch.testing.assert_close(modality_gap(torch.stack([a, a.flip(1)])), torch.tensor(2.0).sqrt())
    assert modality_gap(torch.stack([a, a])) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, r"objective\.temperature=0\.0: want more than 0"),
        ({"temperature": 1e-3}, r"objective\.temperature=0\.001: .*=0\.01 and 1"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CLIP.Config(**options)


def test_a_lone_stream_and_a_batch_of_one_are_refused() -> None:
    with pytest.raises(ValueError, match="clip compares streams with each other, got only a: use infonce"):
        build(SMALL)
    encoders, objective = build(SMALL, "ab")
    with pytest.raises(ValueError, match="2 or more samples per step, got 1: raise batch_size"):
        objective(encoders, batch_of(1, "ab"), START)


def test_missing_streams_reach_the_loss() -> None:
    encoders, objective = build(SMALL, "ab")
    batch = batch_of(8, "ab")
    short = Batch(replace(v, present=torch.arange(8) < 5) if v.stream == "b" else v for v in batch)
    expected = objective(encoders, Batch(v.samples(torch.arange(5)) for v in batch), START).total
    torch.testing.assert_close(objective(encoders, short, START).total, expected)


def all_gradients(rank: int) -> dict[str, list[Tensor]]:
    present = torch.tensor([1, 1, 1, 1, 0, 1, 0, 0]).bool()
    found = {"all": gradients(rank, SMALL, "abc"), "some": gradients(rank, SMALL, "abc", present=present)}
    right, kernel.gather = kernel.gather, lambda x: right(x).detach()
    found["planted"] = gradients(rank, SMALL, "abc")
    kernel.gather = right
    return found


@pytest.mark.ranks
def test_two_ranks_give_the_gradients_of_one_and_a_gather_without_gradient_does_not() -> None:
    parts = run_ranks(2, all_gradients)
    present = torch.tensor([1, 1, 1, 1, 0, 1, 0, 0]).bool()
    cases: list[tuple[str, dict[str, Any]]] = [("all", {}), ("some", {"present": present})]
    for name, more in cases:
        for a, b, value in zip(*(p[name] for p in parts), gradients(0, SMALL, "abc", **more), strict=True):
            torch.testing.assert_close(a + b, value, msg=name, atol=1e-5, rtol=1e-5)
    planted = zip(*(p["planted"] for p in parts), gradients(0, SMALL, "abc"), strict=True)
    assert torch.stack([(a + b - c).abs().max() for a, b, c in planted]).max() > 1e-3


def test_a_clean_view_serves_both_terms_of_slip() -> None:
    terms: dict[str, Any] = {"clip": SMALL, "simclr": InfoNCE.Config(projector=HEAD, clean=True)}
    encoders, objective = build(Weighted.Config(terms=terms, streams={"simclr": ("a",)}), "ab")
    assert objective.plans() == {"a": ViewPlan(num_clean=1, num_global=1), "b": ViewPlan(num_clean=1)}
    clean = batch_of(8, "ab")
    crop = replace(clean[0], x=torch.randn_like(clean[0].x), role="global")
    counting = Counting(encoders)
    losses = objective(counting, Batch([clean[0], crop, clean[1]]), START)
    assert sum(sum(rows) for _, rows in counting.seen) == 3 * 8
    alone = objective.terms["simclr"](encoders, Batch([clean[0], crop]), START)
    torch.testing.assert_close(losses.terms["simclr/nce"], alone.terms["nce"])
