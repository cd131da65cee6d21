from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoder, Encoders
from multissl.contract.learning import Features, Progress
from multissl.contract.plans import Masking, StreamSpec
from multissl.layers.heads import MLPHead
from multissl.losses.msn import cosines, msn_targets, msn_terms
from multissl.modalities.views import pack_masks
from multissl.objectives.msn import MSN
from multissl.parallel.ranks import rank, world
from tests.helpers.ranks import run_ranks
from tests.losses.test_sinkhorn import matrix_form

SPEC = {"rows": StreamSpec(kind="columns", shape=(6,), num_tokens=6)}
HEAD = MLPHead.Config(hidden=8, out=5, layers=2)
START = Progress(step=0, total=10)


class Dropper(Encoder):
    """Every number is a token; hidden ones are left out. Notes what it was asked."""

    dim = 4
    maskings = frozenset({"none", "drop"})

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.seen = nn.Linear(1, 4), []

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        self.seen.append([(v.role, v.num_views, masking, v.mask is not None) for v in views])
        found = []
        for v in views:
            tokens = self.embed(v.x[:, :, None]).tanh()
            if masking == "drop" and v.mask is not None:
                tokens = tokens[~v.mask.hidden].unflatten(0, (len(tokens), -1))
            found.append(Features(pooled=tokens.mean(1), tokens=tokens))
        return found


def build(**options: Any) -> tuple[Encoders, Any]:
    torch.manual_seed(1)
    encoders = Encoders({"rows": Dropper()}).double()
    defaults: dict[str, Any] = {"prototypes": 7, "num_local": 2, "projector": HEAD, "mask_ratio": 0.5}
    return encoders, MSN.Config(**defaults | options).build(encoders, SPEC).double().train()


def batch_of(samples: int, masked: bool = True) -> Batch:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.rand(2 * samples, 6, generator=draw).argsort(1) < 3
    masks = (pack_masks(hidden),) if masked else ()
    x = torch.randn(2 * samples, 6, generator=draw).double()
    small = torch.randn(2 * samples, 3, generator=draw).double()
    return Batch(
        [
            Views(x=x, stream="rows", role="global", num_views=2, masks=masks),
            Views(x=small, stream="rows", role="local", num_views=2),
        ]
    )


def test_the_teacher_sees_the_first_view_whole_and_the_student_the_second_in_part_and_small_ones() -> None:
    encoders, objective = build()
    losses = objective(encoders, batch_of(4), START)
    losses.total.backward()
    assert cast(Dropper, encoders["rows"]).seen == [
        [("global", 1, "drop", True), ("local", 2, "drop", False)]
    ]
    assert objective.teacher["encoders"]["rows"].seen == [[("global", 1, "none", False)]]
    assert all(p.grad is None for p in objective.teacher.parameters())
    assert all(p.grad is not None for p in [*encoders.parameters(), *objective.projector.parameters()])
    assert objective.prototypes.weight.grad is not None
    assert objective.exported(encoders) is objective.teacher["encoders"]
    (rule,) = objective.param_rules()
    (undecayed,) = rule.parameters()
    assert undecayed is objective.prototypes.weight
    assert rule.decay == 0
    before = objective.teacher["encoders"]["rows"].embed.weight.clone()
    with torch.no_grad():
        next(encoders.parameters()).add_(1)
    objective.after_step(encoders, START)
    moved = objective.teacher["encoders"]["rows"].embed.weight - before
    torch.testing.assert_close(moved, torch.full_like(moved, 0.004))


def test_the_objective_is_its_free_functions() -> None:
    encoders, objective = build(me_max_weight=3.0, sinkhorn_rounds=3)
    batch = batch_of(4)
    losses = objective(encoders, batch, START)
    second = Views(
        x=batch[0].x[4:], stream="rows", role="global", masks=(pack_masks(batch[0].masks[0].hidden[4:]),)
    )
    pooled = torch.cat([f.pooled for f in encoders.encode([second, batch[1]], "drop")])
    scores = cosines(objective.projector(pooled), objective.prototypes.weight)
    whole = encoders.encode([Views(x=batch[0].x[:4], stream="rows", role="global")])[0].pooled
    sharp = (cosines(objective.projector(whole), objective.prototypes.weight).detach() / 0.1).softmax(1) ** 4
    target = matrix_form((sharp / sharp.sum(1, keepdim=True)).log(), 1.0)
    p = (scores / 0.1).softmax(1)
    ce = -(target.repeat(3, 1) * p.log()).sum(1).mean()
    entropy = -(p.mean(0) * p.mean(0).log()).sum()
    torch.testing.assert_close(losses.total, ce + 3 * (math.log(7) - entropy))


def test_without_a_mask_ratio_no_masks_are_asked_for() -> None:
    encoders, objective = build(mask_ratio=0.0)
    assert objective.plans()["rows"].mask_ratio is None
    assert objective.cfg.maskings() == {"none"}
    assert build()[1].cfg.maskings() == {"none", "drop"}
    objective(encoders, batch_of(4, masked=False), START)
    assert cast(Dropper, encoders["rows"]).seen == [
        [("global", 1, "none", False), ("local", 2, "none", False)]
    ]


def test_even_use_costs_nothing_one_prototype_log_k_and_the_prior_itself_nothing() -> None:
    targets = msn_targets(torch.zeros(8, 8), 0.1, 0.25)
    even, _ = msn_terms(torch.eye(8) * 1e4, targets)
    torch.testing.assert_close(even["me_max"].item(), 0.0, atol=1e-6, rtol=0)
    one, _ = msn_terms(torch.eye(8)[:1].repeat(8, 1) * 1e4, targets)
    torch.testing.assert_close(one["me_max"].item(), math.log(8))
    prior = torch.arange(1, 9).float() ** -0.5
    tailed, _ = msn_terms(prior.log().repeat(8, 1) * 0.1, targets, 0.1, 0.5)
    torch.testing.assert_close(tailed["me_max"].item(), 0.0, atol=1e-6, rtol=0)
    assert msn_terms(torch.zeros(8, 8), targets, 0.1, 0.5)[0]["me_max"] > 0.01


def test_a_vanishing_prototype_leaves_gradients_finite() -> None:
    for exponent in (0.0, 0.25):
        scores = (torch.eye(8)[:1].repeat(4, 1) * 1e4).requires_grad_()
        terms, _ = msn_terms(scores, msn_targets(torch.zeros(4, 8), 0.1, 0.25), 0.1, exponent)
        terms["me_max"].backward()
        assert scores.grad is not None
        assert torch.isfinite(scores.grad).all()


def test_half_precision_scores_are_widened_and_cost_what_the_docstring_says() -> None:
    z, prototypes = torch.randn(32, 16), torch.randn(50, 16)
    scores = cosines(z, prototypes)
    half = scores.bfloat16()
    assert cosines(z.bfloat16(), prototypes.bfloat16()).dtype == torch.float32
    found = [msn_terms(s, msn_targets(s[:16], 0.1, 0.25))[0] for s in (scores, half, half.float())]
    for name, value in found[0].items():
        assert found[1][name].dtype == torch.float32
        torch.testing.assert_close(found[1][name], found[2][name])
        assert (found[1][name] - value).abs() <= 0.03 * math.log(50)


def gradient(_: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    anchors, targets = (
        torch.randn(3, 4, 6, generator=draw).double(),
        torch.randn(4, 6, generator=draw).double(),
    )
    mine = slice(rank() * 4 // world(), (rank() + 1) * 4 // world())
    scores = anchors[:, mine].flatten(0, 1).requires_grad_()
    terms = msn_terms(scores, msn_targets(targets[mine], 0.1, 0.5, 3), 0.5, 0.25)[0]
    (grad,) = torch.autograd.grad(terms["ce"] + 2 * terms["me_max"], scores)
    return grad.unflatten(0, (3, -1)) / world(), terms["me_max"].detach()


@pytest.mark.ranks
def test_two_ranks_give_the_gradient_of_one() -> None:
    parts, (grad, me_max) = run_ranks(2, gradient), gradient(0)
    torch.testing.assert_close(torch.cat([p[0] for p in parts], 1), grad)
    for found in (p[1] for p in parts):
        torch.testing.assert_close(found, me_max)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "objective.temperature=0: want more than 0"),
        ({"sharpening": 2}, "objective.sharpening=2: want at most 1"),
        ({"mask_ratio": 1}, "objective.mask_ratio=1: want 0"),
        ({"prototypes": 1}, "objective.prototypes=1: want 2 or more"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MSN.Config(**options)


def test_what_it_cannot_read_is_refused_in_a_sentence() -> None:
    encoders, objective = build()
    with pytest.raises(ValueError, match=r"msn needs masked global views, got none: .*mask_ratio=0"):
        objective(encoders, batch_of(4, masked=False), START)
    with pytest.raises(ValueError, match="msn wants 2 global views, got 0"):
        objective(encoders, batch_of(4)[1:], START)
    two = Encoders({"one": Dropper(), "two": Dropper()})
    with pytest.raises(ValueError, match=r"msn reads one stream, got one, two: .*weighted"):
        MSN.Config().build(two, {"one": SPEC["rows"], "two": SPEC["rows"]})
