from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Batch, Views
from multissl.contract.per_stream import PerStream
from multissl.layers.scale import Scale
from multissl.losses.blocks import found_share
from multissl.losses.nce import (
    MultiPos,
    Relations,
    accuracy,
    constant_loss,
    masked_lse,
    mean_of,
    nce,
    one_way,
    relations,
    scores,
)
from multissl.losses.siglip import pair_sigmoid
from multissl.objectives.pairing import predict, relations_of
from tests.helpers.ranks import run_ranks


def slow(s: Tensor, pos: Tensor, neg: Tensor, multi_pos: MultiPos, decoupled: bool) -> Tensor:
    """The definition, one anchor after the other, in fp64."""
    found = []
    for row, p, n in zip(s.double(), pos, neg, strict=True):
        rivals = [
            x.exp() for x, is_p, is_n in zip(row, p, n, strict=True) if is_n or (is_p and not decoupled)
        ]
        near = row[p]
        if not len(near) or not rivals:
            found.append(row.new_zeros(()))
            continue
        log = near.exp().sum().log() if multi_pos == "inside" else near.mean()
        found.append(torch.stack(rivals).sum().log() - log)
    return torch.stack(found)


@pytest.mark.parametrize("multi_pos", ["outside", "inside"])
@pytest.mark.parametrize("decoupled", [False, True])
def test_the_kernel_is_its_definition_and_its_gradient_is_finite(
    multi_pos: MultiPos, decoupled: bool
) -> None:
    s = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    kind = torch.randint(3, (6, 9))
    pos, neg = kind == 0, kind == 1
    pos[0], neg[1], pos[2], neg[2] = False, False, False, False  # nobody to find, or nobody else to choose
    found = nce(s, pos, neg, multi_pos, decoupled)
    torch.testing.assert_close(found, slow(s, pos, neg, multi_pos, decoupled))
    assert torch.autograd.grad(found.sum(), s)[0].isfinite().all()


@pytest.mark.parametrize("decoupled", [False, True])
def test_one_anchor_costs_what_each_of_many_does(decoupled: bool) -> None:
    pos, neg = torch.tensor([[True, False, False]]), torch.tensor([[False, True, True]])
    s = torch.tensor([[2.0, 1.0, 0.0]])
    several_scores, near, far = (x.repeat(5, 1) for x in (s, pos, neg))
    for one, several in (
        (constant_loss(pos, neg, decoupled), constant_loss(near, far, decoupled)),
        (accuracy(s, pos, neg), accuracy(several_scores, near, far)),
        (found_share(torch.tensor([True]), pos), found_share(torch.ones(5, dtype=torch.bool), near)),
    ):
        torch.testing.assert_close(one, several)


def test_anchors_and_candidates_may_change_places() -> None:
    s, kind = torch.randn(5, 8), torch.randint(3, (5, 8))
    rows, columns = torch.randperm(5), torch.randperm(8)
    mixed, mixed_kind = s[rows][:, columns], kind[rows][:, columns]
    expected = nce(s, kind == 0, kind == 1)[rows]
    torch.testing.assert_close(nce(mixed, mixed_kind == 0, mixed_kind == 1), expected)


def test_weights_multiply_the_positives_alone() -> None:
    s, pos = torch.randn(4, 4), torch.eye(4, dtype=torch.bool)
    weight = torch.rand(4)
    change = nce(s, pos, ~pos) - nce(s, pos, ~pos, weight=weight)
    torch.testing.assert_close(change, (weight - 1) * s.diagonal())


def test_a_masked_log_sum_without_members_is_finite_and_has_no_gradient() -> None:
    s = torch.randn(2, 3, requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    found = masked_lse(s, mask)
    torch.testing.assert_close(found[0], s[0, [0, 2]].logsumexp(0))
    (grad,) = torch.autograd.grad(found.sum(), s)
    assert found.isfinite().all()
    assert not grad[1].any()


def test_several_scoresare_cosines_or_bilinear() -> None:
    q, k, w = torch.randn(3, 5), torch.randn(4, 5), torch.randn(5, 5)
    expected = F.cosine_similarity(q[:, None], k[None], dim=2) / 0.2
    torch.testing.assert_close(scores(q, k, 0.2), expected)
    torch.testing.assert_close(scores(q, k, bilinear=w), torch.einsum("ia,ab,jb->ij", q, w, k))


def test_half_precision_only_brings_its_own_rounding() -> None:
    q, k, pos = torch.randn(32, 16), torch.randn(32, 16), torch.eye(32, dtype=torch.bool)
    exact = scores(q, k, 0.1)
    half = scores(q.bfloat16(), k.bfloat16(), 0.1)
    assert half.dtype == torch.float32
    assert (half - exact).abs().max() <= 0.01 / 0.1
    torch.testing.assert_close(half, scores(q.bfloat16().float(), k.bfloat16().float(), 0.1), rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, loss = scores(q, k, 0.1), nce(exact, pos, ~pos)
    torch.testing.assert_close(inside, exact, rtol=0, atol=0)
    torch.testing.assert_close(loss, nce(exact, pos, ~pos), rtol=0, atol=0)
    worst = (nce(exact.bfloat16(), pos, ~pos) - loss).abs().max()
    assert worst <= 0.01 * exact.abs().max()


def test_accuracy_counts_anchors_that_find_a_positive() -> None:
    s = torch.tensor([[3.0, 2, 1], [3, 2, 1], [1, 2, 3], [3, 2, 1]])
    pos = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]).bool()
    neg = ~pos
    neg[2, 2] = False  # its rival is no candidate
    torch.testing.assert_close(accuracy(s, pos, neg), torch.tensor(2 / 3))


def test_equal_samples_are_the_same_and_equal_groups_are_not_apart() -> None:
    relation = relations(4, [torch.tensor([7, 8, 7, 9])], [torch.tensor([0, 1, 2, 1])])
    same = torch.eye(4, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    apart = ~same
    apart[1, 3] = apart[3, 1] = False
    assert torch.equal(relation.same, same)
    assert torch.equal(relation.apart, apart)


def test_relations_come_from_the_views() -> None:
    views = Views(x=torch.zeros(6, 2), stream="a", role="global", num_views=2, sample_id=torch.arange(3))
    other = Views(x=torch.zeros(3, 2), stream="b", role="clean", sample_id=torch.tensor([5, 5, 6]))
    assert relations_of(Batch([views, other])).same.sum() == 5


def test_predictors_take_what_their_weights_are_and_give_fp32() -> None:
    predictors = PerStream({"a": torch.nn.Linear(4, 4), "b": torch.nn.Linear(4, 4).bfloat16()})
    found = predict(predictors, ["a", "b"], torch.randn(2, 3, 4))
    assert found.shape == (2, 3, 4)
    assert found.dtype == torch.float32


def test_missing_rows_are_neither_anchors_nor_candidates() -> None:
    q, k, keep = torch.randn(6, 4), torch.randn(6, 4), torch.tensor([1, 1, 0, 1, 0, 1]).bool()
    found = one_way(q, k, relations(6), 0.2, keep)
    torch.testing.assert_close(found, one_way(q[keep], k[keep], relations(4), 0.2))
    nothing, _ = one_way(q, k, relations(6), 0.2, torch.zeros(6, dtype=torch.bool))
    assert nothing == 0


def test_blocks_of_anchors_are_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, t = torch.randn(7, 4), torch.randn(7, 4), torch.tensor([0.2])
    keep, relation = torch.tensor([1, 1, 0, 1, 1, 1, 1]).bool(), relations(7, [torch.arange(7) // 2])
    found = []
    for block in (512, 3):
        monkeypatch.setattr("multissl.losses.blocks.BLOCK", block)
        given = [x.clone().requires_grad_() for x in (q, k, t)]
        a, b, temperature = given
        both = one_way(a, b, relation, temperature, keep), pair_sigmoid(a, b, temperature, -1.0, relation)
        for loss, hit in both:
            found.append((loss, hit, *torch.autograd.grad(loss, given)))
    torch.testing.assert_close(found[2:], found[:2])


def test_a_learned_temperature_starts_where_told_and_stays_in_its_limits() -> None:
    scale = Scale(0.07)
    torch.testing.assert_close(scale(), torch.tensor([0.07]))
    for value, limit in ((9.0, math.log(100)), (-3.0, 0.0)):
        torch.nn.init.constant_(scale.logit_scale, value)
        scale.clamp()
        torch.testing.assert_close(scale.logit_scale.detach(), torch.tensor([limit]))


def of_rank(rank: int, q: Tensor, k: Tensor, ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Relations]:
    q, k = (x.chunk(2)[rank].clone().requires_grad_() for x in (q, k))
    mine = keep.chunk(2)[rank]
    relation = relations(len(q), [ids.chunk(2)[rank]])
    loss, _ = one_way(q, k, relation, 0.2, mine)
    grads = torch.autograd.grad(loss, (q, k))
    return loss.detach(), torch.stack(grads) / 2, relation


@pytest.mark.ranks
def test_two_ranks_agree_with_one_where_ids_repeat_and_rows_are_missing_on_one_of_them() -> None:
    q, k, ids = torch.randn(8, 4), torch.randn(8, 4), torch.tensor([0, 1, 2, 3, 1, 5, 6, 7])
    keep = torch.tensor([1, 1, 1, 1, 0, 1, 0, 0]).bool()  # four rows on one rank, one on the other
    parts = run_ranks(2, of_rank, q, k, ids, keep)
    q, k = q.requires_grad_(), k.requires_grad_()
    relation = relations(8, [ids])
    loss, _ = one_way(q, k, relation, 0.2, keep)
    torch.testing.assert_close(torch.stack([p[0] for p in parts]).mean(), loss.detach())
    expected = torch.stack(torch.autograd.grad(loss, (q, k)))
    torch.testing.assert_close(torch.cat([p[1] for p in parts], 1), expected)
    assert torch.equal(torch.cat([p[2].same for p in parts]), relation.same)


def test_the_mean_of_all_rows_needs_no_flags() -> None:
    values = torch.randn(5)
    torch.testing.assert_close(mean_of(values, torch.ones(5).bool()), mean_of(values))


def test_accuracy_is_a_share_of_the_anchors_that_have_a_positive() -> None:
    pos = torch.tensor([[True, False], [False, False], [False, True], [True, True]])
    assert found_share(torch.tensor([True, False, False, True]), pos) == 2 / 3
    assert found_share(torch.zeros(4, dtype=torch.bool), pos & False) == 0
