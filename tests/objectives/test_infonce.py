from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.plans import ViewPlan
from multissl.layers.heads import MLPHead
from multissl.losses import infonce as module
from multissl.losses.infonce import divergence, far_weights, infonce_terms
from multissl.losses.nce import Relations, relations
from multissl.objectives.infonce import InfoNCE
from tests.helpers.ranks import run_ranks
from tests.objectives.contrast import START, batch_of, build, decay_of, gradients, moved

HEAD = MLPHead.Config(hidden=8, out=5, layers=2, last_norm=True)


def loss_of(z: Tensor, temperature: float = 0.5, **options: Any) -> Tensor:
    return infonce_terms(z, relations(z.shape[1]), temperature, **options)[0]["nce"]


def test_known_values() -> None:
    rows = torch.eye(4).expand(2, 4, 4)
    torch.testing.assert_close(loss_of(rows), torch.tensor(0.594438), atol=1e-6, rtol=0)
    torch.testing.assert_close(loss_of(rows, decoupled=True), torch.tensor(-0.208241), atol=1e-6, rtol=0)


@pytest.mark.parametrize("views", [2, 3])
def test_collapse_costs_the_log_of_the_candidates(views: int) -> None:
    z = torch.ones(views, 8, 4)
    torch.testing.assert_close(loss_of(z), torch.tensor(math.log(views * 8 - 1)))
    torch.testing.assert_close(loss_of(z, decoupled=True), torch.tensor(math.log(views * 7)))


@pytest.mark.parametrize(
    "options", [{}, {"multi_pos": "inside"}, {"decoupled": True}, {"other_view_only": True}]
)
def test_it_is_its_definition_over_three_views(options: dict[str, Any]) -> None:
    z = torch.randn(3, 4, 5, dtype=torch.float64)
    rows = F.normalize(z.reshape(12, 5), dim=1)
    found = []
    for i in range(12):
        others = [
            j for j in range(12) if j != i and not (options.get("other_view_only") and i // 4 == j // 4)
        ]
        e = {j: (rows[i] @ rows[j] / 0.5).exp() for j in others}
        near = [e[j] for j in others if j % 4 == i % 4]
        rivals = [e[j] for j in others if j % 4 != i % 4 or not options.get("decoupled")]
        logs = torch.stack(near).log().mean()
        if options.get("multi_pos") == "inside":
            logs = torch.stack(near).sum().log()
        found.append(torch.stack(rivals).sum().log() - logs)
    torch.testing.assert_close(loss_of(z, **options), torch.stack(found).mean())


def test_equal_samples_are_positives_and_equal_groups_no_negatives() -> None:
    z = torch.randn(2, 4, 5)
    twin = torch.cat([z, z[:, :1]], 1)  # the first sample once more
    ids = torch.tensor([0, 1, 2, 3, 0])
    as_twin = infonce_terms(twin, relations(5, [ids]), 0.5)[0]["nce"]
    as_rival = infonce_terms(twin, relations(5), 0.5)[0]["nce"]
    assert as_twin != as_rival
    grouped = infonce_terms(twin, relations(5, [], [ids]), 0.5)[0]["nce"]
    # Group mates are not seen at all: samples 0 and 4 each have the loss they have without the other.
    rest = infonce_terms(z, relations(4), 0.5)[0]["nce"]
    s = F.normalize(twin, dim=2)
    by_hand = []
    for v in range(2):
        for i in range(5):
            seen = [
                (u, j)
                for u in range(2)
                for j in range(5)
                if (u, j) != (v, i) and (j == i or ids[i] != ids[j])
            ]
            logits = torch.stack([s[v, i] @ s[u, j] / 0.5 for u, j in seen])
            by_hand.append(logits.logsumexp(0) - logits[seen.index((1 - v, i))])
    torch.testing.assert_close(grouped, torch.stack(by_hand).mean())
    assert grouped != rest


def test_missing_views_are_left_out() -> None:
    z, present = torch.randn(2, 6, 5), torch.ones(2, 6).bool()
    present[1, 2] = present[0, 4] = False
    whole = present.all(0)
    relation = Relations(relations(6).same, relations(6).apart)
    grads = []
    for relic in (False, True):
        moving = z.clone().requires_grad_()
        terms, _ = infonce_terms(moving, relation, 0.5, present, relic=relic)
        (grad,) = torch.autograd.grad(torch.stack([*terms.values()]).sum(), moving)
        grads.append(grad)
        assert grad.isfinite().all()
        assert not grad[~present].any()
    # A view whose partner is missing is still a negative of the others, and no anchor.
    assert grads[0][0, 2].any()
    no_partner = infonce_terms(z, relation, 0.5, present, relic=True)[0]["relic"]
    kept = infonce_terms(z[:, whole], relations(4), 0.5, relic=True)[0]["relic"]
    torch.testing.assert_close(no_partner, kept)


def test_distant_pairs_weigh_more_and_weights_average_one() -> None:
    cosine = torch.tensor([0.9, 0.1, 0.5])
    weights = far_weights(cosine, 0.5)
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    assert weights[1] > weights[2] > weights[0]


def test_the_divergence_is_zero_between_equal_views_and_its_definition_else() -> None:
    z = torch.randn(2, 5, 4)
    assert infonce_terms(z[:1].repeat(2, 1, 1), relations(5), 0.5, relic=True)[0]["relic"].abs() < 1e-6
    u = F.normalize(z, dim=2)
    p, q = ((u[a] @ u[1 - a].T / 0.5).softmax(1) for a in (0, 1))
    expected = ((p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)).mean() / 2
    found = infonce_terms(z, relations(5), 0.5, relic=True)[0]["relic"]
    torch.testing.assert_close(found, expected)
    nobody = divergence(torch.randn(2, 3, 2, 3), relations(3), torch.zeros(3).bool())
    assert nobody == 0


def test_half_precision_inputs_stay_within_what_is_stated() -> None:
    z = torch.randn(2, 32, 16)
    for t in (0.1, 0.5):
        assert (loss_of(z.bfloat16(), t) - loss_of(z, t)).abs() <= 0.02 / t
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss_of(z)
    torch.testing.assert_close(inside, loss_of(z), rtol=0, atol=0)


OPTIONS: dict[str, dict[str, Any]] = {
    "simclr": {},
    "dclw": {"decoupled": True, "sigma": 0.5},
    "relic": {"relic": 1.0},
    "learned": {"learn_temperature": True, "multi_pos": "inside"},
    "curl": {"bilinear": True, "temperature": 1.0, "other_view_only": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=[*OPTIONS])
def test_a_step_trains_everything(options: dict[str, Any]) -> None:
    moved(InfoNCE.Config(projector=HEAD, **options))
    moved(InfoNCE.Config(projector=HEAD, **options), "abc")


def test_views_of_a_lone_stream_or_one_of_each_of_several() -> None:
    _, objective = build(InfoNCE.Config(projector=HEAD, num_views=3))
    assert objective.plans()["a"] == ViewPlan(num_global=3)
    _, objective = build(InfoNCE.Config(projector=HEAD, num_views=3, clean=True))
    assert objective.plans()["a"] == ViewPlan(num_clean=1, num_global=2)
    encoders, objective = build(InfoNCE.Config(projector=HEAD), "ab")
    assert [(p.num_clean, p.num_global) for p in objective.plans().values()] == [(1, 0), (1, 0)]
    losses = objective(encoders, batch_of(8, "ab"), START)
    assert losses.stats["accuracy"] <= 1


def test_a_learned_temperature_is_not_decayed_and_stays_in_its_limits() -> None:
    encoders, objective = build(InfoNCE.Config(projector=HEAD, learn_temperature=True))
    assert decay_of(objective.scale.logit_scale, encoders, objective) == 0
    assert decay_of(objective.projectors["a"].mlp[0].weight, encoders, objective) == 1
    torch.nn.init.constant_(objective.scale.logit_scale, 9.0)
    objective.after_step(encoders, START)
    losses = objective(encoders, batch_of(4), START)
    torch.testing.assert_close(losses.stats["temperature"], torch.tensor(0.01))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, r"objective\.temperature=0\.0: want more than 0"),
        (
            {"temperature": 2.0, "learn_temperature": True},
            r"objective\.temperature=2\.0: .*between 0\.01 and 1",
        ),
        ({"num_views": 1}, r"objective\.num_views=1: want 2 or more"),
        ({"relic": -1.0}, r"objective\.relic=-1\.0: want 0 or more"),
        ({"sigma": 0.5}, r"objective\.sigma=0\.5 .* set objective\.decoupled=True"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        InfoNCE.Config(**options)


def test_a_batch_of_one_is_refused() -> None:
    plain = MLPHead.Config(hidden=8, out=5, layers=2, norm="none")
    encoders, objective = build(InfoNCE.Config(projector=plain))
    with pytest.raises(ValueError, match="2 or more samples per step, got 1: raise batch_size"):
        objective(encoders, batch_of(1), START)


def all_gradients(rank: int) -> dict[str, list[Tensor]]:
    cases = {n: gradients(rank, InfoNCE.Config(projector=HEAD, **o)) for n, o in OPTIONS.items()}
    right, module.gather = module.gather, lambda x: right(x).detach()
    cases["planted"] = gradients(rank, InfoNCE.Config(projector=HEAD))
    module.gather = right
    return cases


@pytest.mark.ranks
def test_two_ranks_give_the_gradients_of_one_and_a_gather_without_gradient_does_not() -> None:
    parts = run_ranks(2, all_gradients)
    for name, options in OPTIONS.items():
        expected = gradients(0, InfoNCE.Config(projector=HEAD, **options))
        for a, b, value in zip(*(p[name] for p in parts), expected, strict=True):
            torch.testing.assert_close(a + b, value, msg=name, atol=1e-5, rtol=1e-5)
    expected = gradients(0, InfoNCE.Config(projector=HEAD))
    planted = [
        (a + b - c).abs().max() for a, b, c in zip(*(p["planted"] for p in parts), expected, strict=True)
    ]
    assert torch.stack(planted).max() > 1e-3
