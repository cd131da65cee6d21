from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multissl.config import from_dict, to_dict
from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoder, Encoders
from multissl.contract.learning import Features, Progress
from multissl.contract.plans import Masking, StreamSpec
from multissl.engine.learner import Learner
from multissl.layers.center import Center
from multissl.layers.heads import PrototypeHead
from multissl.layers.teacher import Teacher
from multissl.losses import targets as targets_module
from multissl.losses.koleo import koleo
from multissl.losses.sinkhorn import centered, sinkhorn
from multissl.losses.targets import cross_entropy, describe
from multissl.modalities.views import pack_masks
from multissl.objectives.dino import DINO
from tests.losses.test_sinkhorn import matrix_form

SPEC = {"rows": StreamSpec(kind="columns", shape=(6,), num_tokens=6)}
START = Progress(step=0, total=10)
HEAD = PrototypeHead.Config(prototypes=12, bottleneck=5, hidden=8)
OTHER = PrototypeHead.Config(prototypes=9, bottleneck=5, hidden=8)


class Stub(Encoder):
    """Every number is a token; a mask token where it is hidden; the pooled feature sees all of them."""

    dim = 4
    maskings = frozenset({"none", "replace"})

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(1, 4), nn.Linear(4, 4)
        self.mask_token = nn.Parameter(torch.randn(4))

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        return [self.one(v, masking) for v in views]

    def one(self, v: Views, masking: Masking) -> Features:
        tokens = self.embed(v.x[:, :, None]).tanh()  # [R, N, 4]
        if masking == "replace" and v.mask is not None:
            tokens = torch.where(v.mask.hidden[:, :, None], self.mask_token, tokens)
        mean = tokens.mean(1, keepdim=True)
        return Features(pooled=self.out(mean)[:, 0], tokens=self.out(tokens + mean))


def build(**options: Any) -> tuple[Encoders, DINO]:
    """Encoder and objective in fp64, the teacher unlike the student, heads with opinions."""
    torch.manual_seed(1)
    encoders = Encoders({"rows": Stub()}).double()
    defaults: dict[str, Any] = {"head": HEAD, "ibot_head": OTHER, "num_local": 2, "koleo_group": 4}
    objective = DINO(DINO.Config(**defaults | options), encoders, SPEC).double()
    with torch.no_grad():
        for p in objective.parameters():
            p += 0.5 * torch.randn_like(p)
    return encoders, objective


def batch_of(batch: int, num_local: int, masked: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2 * batch, 6, generator=generator).double()
    hidden = torch.rand(2 * batch, 6, generator=generator) < 0.4
    hidden[::2] = False  # half of the views are not masked at all
    masks = (pack_masks(hidden, int(hidden.sum()) + 3),) if masked else ()
    views = [Views(x=x, stream="rows", role="global", num_views=2, masks=masks)]
    if num_local:
        x = torch.randn(num_local * batch, 3, generator=generator).double()
        views.append(Views(x=x, stream="rows", role="local", num_views=num_local))
    return Batch(views)


def softmaxed(logits: Tensor, temperature: float, cfg: DINO.Config) -> Tensor:
    if cfg.centering == "ema":  # the center starts at 0
        return (logits / temperature).softmax(1)
    return matrix_form(logits, temperature)


def slow_total(
    encoders: Encoders, objective: DINO, batch: Batch, teacher: Any = None, masking: Masking = "replace"
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss by its definition: a loop over pairs of views and over hidden tokens."""
    cfg, views = objective.cfg, batch[0]
    tt, ts, b = (
        cfg.teacher_temperature_start if cfg.teacher_temperature_steps else cfg.teacher_temperature,
        0.1,
        views.batch,
    )
    teacher = teacher or objective.teacher
    with torch.no_grad():
        (seen,) = teacher["encoders"].encode([views], "none")
    student = encoders.encode(batch, masking if cfg.ibot_weight else "none")
    terms: dict[str, Tensor] = dict.fromkeys(
        ("dino_local", "dino_global", "ibot", "koleo"), torch.zeros((), dtype=torch.float64)
    )
    if objective.dino_head is not None and cfg.dino_weight:
        p = softmaxed(teacher["dino_head"](seen.pooled).detach(), tt, cfg).view(2, b, -1)
        local = student[1].pooled if len(batch) > 1 else student[0].pooled[:0]
        q = objective.dino_head(torch.cat([student[0].pooled, local])).div(ts).log_softmax(1).view(-1, b, 12)
        pairs = 2 + 2 * (len(q) - 2)
        for i, j in product(range(2), range(len(q))):
            if i != j:
                name = "dino_global" if j < 2 else "dino_local"
                terms[name] = terms[name] - (p[i] * q[j]).sum(1).mean() / pairs
    if cfg.ibot_weight and views.mask is not None:
        name = "dino_head" if cfg.tied_heads else "ibot_head"
        at = [(int(r), int(n)) for r, n in views.mask.hidden.nonzero()]
        p = softmaxed(torch.stack([teacher[name](seen.tokens[r, n]) for r, n in at]).detach(), tt, cfg)
        for (r, n), target in zip(at, p, strict=True):
            q = getattr(objective, name)(student[0].tokens[r, n]).div(ts).log_softmax(0)
            terms["ibot"] = terms["ibot"] - (target * q).sum() / views.mask.hidden[r].sum() / (2 * b)
    if cfg.koleo_weight:
        terms["koleo"] = sum((koleo(x).mean() for x in student[0].pooled.chunk(2)), terms["koleo"])
    total = cfg.dino_weight * (terms["dino_local"] + terms["dino_global"])
    return total + cfg.ibot_weight * terms["ibot"] + cfg.koleo_weight * terms["koleo"], terms


# ---------------------------------------------------------------------------------------- the losses


@pytest.mark.parametrize("num_local", [0, 2, 8])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("centering", ["sinkhorn", "ema"])
def test_the_packed_loss_is_the_slow_loop(num_local: int, tied: bool, centering: str) -> None:
    encoders, objective = build(num_local=num_local, tied_heads=tied, centering=centering, ibot_weight=0.7)
    batch = batch_of(4, num_local)
    losses = objective(encoders, batch, START)
    total, terms = slow_total(encoders, objective, batch)
    torch.testing.assert_close(losses.total, total)
    for name, value in losses.terms.items():
        torch.testing.assert_close(value, terms[name].detach())
    trained = [p for p in [*encoders.parameters(), *objective.parameters()] if p.requires_grad]
    grads = [torch.autograd.grad(t, trained, allow_unused=True) for t in (losses.total, total)]
    torch.testing.assert_close(grads[0], grads[1])
    assert all(g is not None for g in grads[0])


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ({"ibot_weight": 0.0, "koleo_weight": 0.0}, {"dino_local", "dino_global"}),  # DINO
        ({"koleo_weight": 0.0, "tied_heads": True, "num_local": 0}, {"dino_global", "ibot"}),  # iBOT
        ({"dino_weight": 0.0}, {"ibot", "koleo"}),
        ({"dino_weight": 0.0, "koleo_weight": 0.0, "tied_heads": True}, {"ibot"}),
    ],
)
def test_a_weight_of_0_drops_the_term_with_its_head_and_views(
    options: dict[str, Any], terms: set[str]
) -> None:
    encoders, objective = build(**options)
    plan = objective.plans()["rows"]
    assert (plan.mask_ratio is not None) == ("ibot" in terms)
    assert plan.num_local == (2 if "dino_local" in terms else 0)
    batch = batch_of(4, plan.num_local, masked="ibot" in terms)
    losses = objective(encoders, batch, START)
    assert set(losses.terms) == terms
    described = {"teacher_entropy", "teacher_kl", "prototype_use"}
    both = {f"ibot_{name}" for name in described} if {"dino_global", "ibot"} <= terms else set()
    assert described | both | {"std"} == set(losses.stats)
    torch.testing.assert_close(losses.total, slow_total(encoders, objective, batch)[0])
    losses.total.backward()
    idle = [n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


def test_without_local_views_dinov2s_code_counts_three_pairs() -> None:
    encoders, plain = build(num_local=0)
    _, reference = build(num_local=0, reference_counts=True)
    a, b = (o(encoders, batch_of(4, 0), START).terms["dino_global"] for o in (plain, reference))
    torch.testing.assert_close(b, a * 2 / 3)


def test_uniform_predictions_cost_ln_k_and_show_as_such() -> None:
    encoders, objective = build(koleo_weight=0.0)
    for name, parameter in objective.named_parameters():
        if ".mlp." in name:
            nn.init.zeros_(parameter)
    losses = objective(encoders, batch_of(4, 2), START)
    torch.testing.assert_close(
        (losses.terms["dino_local"] + losses.terms["dino_global"]).item(), math.log(12)
    )
    torch.testing.assert_close(losses.stats["teacher_entropy"].item(), math.log(12))
    assert abs(losses.stats["teacher_kl"].item()) < 1e-9


def test_the_statistics_say_how_the_teacher_spreads() -> None:
    logits = torch.eye(6)[torch.tensor([0, 0, 1, 2])].double() * 100  # three of six prototypes, very sure
    targets = centered(logits, 0.1, torch.zeros(6).double())
    sure = describe(targets, torch.full((4,), 2.0).double())
    assert sure["prototype_use"] == 3 / 4  # four rows can lead four prototypes at most
    assert sure["teacher_entropy"] < 1e-6
    torch.testing.assert_close(sure["teacher_kl"].item(), 2.0)
    padded = sinkhorn(torch.randn(8, 3), 0.1, torch.tensor([True, False] * 4))
    some = sinkhorn(padded.logits[::2], 0.1)
    ce = torch.rand(8) * padded.b.isfinite()
    for name, value in describe(padded, ce).items():
        torch.testing.assert_close(value, describe(some, ce[::2])[name])


def test_the_teacher_gets_no_gradient_and_ignores_masks_and_local_views() -> None:
    encoders, objective = build()
    batch = batch_of(4, 2)
    first = objective.teach(batch[0], 0.07)["dino"].probabilities()
    other = batch[0].with_mask(pack_masks(torch.ones(8, 6, dtype=torch.bool)))
    assert torch.equal(objective.teach(other, 0.07)["dino"].probabilities(), first)
    objective(encoders, batch, START).total.backward()
    assert all(p.grad is None for p in objective.teacher.parameters())


def test_the_teacher_temperature_rises_linearly() -> None:
    _, objective = build(
        teacher_temperature_steps=3, teacher_temperature_start=0.04, teacher_temperature=0.07
    )
    seen = [objective.temperature.at(step, 10) for step in range(5)]
    assert seen == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])


# -------------------------------------------------------------------------------- the cross entropy


def test_the_cross_entropy_and_its_gradient_are_exact_and_chunks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    targets, rows = sinkhorn(torch.randn(4, 5).double(), 0.07), torch.randint(4, (3, 2))

    def loss(x: Tensor) -> Tensor:
        return cross_entropy(x, targets, rows, 0.1)

    assert torch.autograd.gradcheck(loss, (student,))
    expected = -(targets.probabilities(rows).sum(1) * (student / 0.1).log_softmax(1)).sum(1)
    torch.testing.assert_close(loss(student), expected)
    monkeypatch.setattr(targets_module, "CHUNK", 12)  # one row at a time
    assert torch.autograd.gradcheck(loss, (student,))
    torch.testing.assert_close(loss(student), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_fp32(dtype: torch.dtype) -> None:
    student = (torch.randn(16, 4096) * 2).to(dtype).requires_grad_()
    logits, rows = torch.randn(16, 4096).to(dtype), torch.arange(16)[:, None]
    loss = cross_entropy(student, sinkhorn(logits, 0.07), rows, 0.1)
    exact = student.detach().float().requires_grad_()
    expected = cross_entropy(exact, sinkhorn(logits.float(), 0.07), rows, 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    loss.mean().backward()
    expected.mean().backward()
    assert student.grad is not None
    assert student.grad.dtype == dtype
    assert exact.grad is not None
    torch.testing.assert_close(student.grad.float(), exact.grad, atol=1e-4, rtol=0.01)


def test_all_that_is_kept_of_the_logits_is_one_gradient_in_their_precision() -> None:
    student = torch.randn(64, 512).bfloat16().requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        cross_entropy(student, sinkhorn(torch.randn(64, 512), 0.07), torch.arange(64)[:, None], 0.1).sum()
    large = [t for t in saved if t.numel() >= student.numel()]
    assert [(t.shape, t.dtype) for t in large] == [(student.shape, torch.bfloat16)]


# ---------------------------------------------------------------------------------- teacher and state


def center_of(objective: DINO, name: str) -> Center:
    center = objective.centers[name]
    assert isinstance(center, Center)
    return center


def test_a_step_moves_teacher_and_centers_and_exports_the_teacher() -> None:
    encoders, objective = build(centering="ema", teacher=Teacher.Config(ema=0.5, final_ema=0.5))
    assert objective.exported(encoders) is objective.teacher["encoders"]
    before = objective.teacher["dino_head"].mlp[0].weight.clone()
    objective(encoders, batch_of(4, 2), START)
    assert not center_of(objective, "ibot").center.any()
    objective.after_step(encoders, START)
    assert center_of(objective, "ibot").center.any()
    student = dict(objective.named_parameters())["dino_head.mlp.0.weight"]
    torch.testing.assert_close(objective.teacher["dino_head"].mlp[0].weight, (before + student) / 2)
    _, frozen = build(teacher=Teacher.Config(rule="frozen"))
    assert frozen.exported(encoders) is encoders


def test_the_token_center_may_see_all_tokens() -> None:
    encoders, objective = build(centering="ema", center_tokens="all", center_momentum=0.0)
    batch = batch_of(4, 2)
    (seen,) = objective.teacher["encoders"].encode([batch[0]], "none")
    _, hidden_only = build(centering="ema")
    losses = [o(encoders, batch, START).total for o in (objective, hidden_only)]
    torch.testing.assert_close(losses[0], losses[1])  # the first center is 0 either way
    expected = objective.teacher["ibot_head"](seen.tokens.flatten(0, 1)).mean(0)
    objective.after_step(encoders, START)
    torch.testing.assert_close(center_of(objective, "ibot").center, expected)
    hidden_only.after_step(encoders, START)
    assert not torch.allclose(center_of(hidden_only, "ibot").center * 10, expected)


def test_the_state_holds_everything_the_next_step_needs() -> None:
    encoders, objective = build(centering="ema", center_lazy=True)
    objective(encoders, batch_of(4, 2), START)
    objective.after_step(encoders, START)
    _, again = build(centering="ema", center_lazy=True)
    again.load_state_dict(objective.state_dict())
    a, b = (o(encoders, batch_of(4, 2), START).total for o in (objective, again))
    assert torch.equal(a, b)


def test_the_last_layers_rest_by_a_rule() -> None:
    _, objective = build(freeze_last_layer=3)
    rules = objective.param_rules()
    assert {rule.frozen_steps for rule in rules} == {3}
    resting = {id(p) for rule in rules for p in rule.parameters()}
    assert {n for n, p in objective.named_parameters() if id(p) in resting} == {
        f"{h}.last_layer.weight_{v}" for h in ("dino_head", "ibot_head") for v in "gv"
    }
    assert build()[1].param_rules() == []


def test_shard_units_are_the_heads_of_student_and_teacher() -> None:
    _, objective = build()
    units = objective.shard_units()
    assert [*units[:2]] == [objective.teacher["dino_head"], objective.teacher["ibot_head"]]
    assert units[2:] == [objective.dino_head, objective.ibot_head]


def test_encoding_a_few_samples_at_a_time_changes_no_gradient() -> None:
    found = []
    for chunk in (0, 3):
        encoders, objective = build()
        learner = Learner(encoders, objective, chunk)
        losses = learner(batch_of(8, 2), START)
        learner.backward(losses)
        found.append({n: p.grad for n, p in learner.named_parameters() if p.requires_grad})
    torch.testing.assert_close(found[1], found[0])


# ----------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": (0.1, 1.2)}, r"objective\.mask_ratio=\(0\.1, 1\.2\): want 0 < low <= high < 1"),
        ({"mask_share": 0.0}, r"objective\.mask_share=0\.0"),
        ({"koleo_weight": -1.0}, r"objective\.koleo_weight=-1\.0: want 0 or more"),
        ({"dino_weight": 0.0, "ibot_weight": 0.0}, "leave no loss"),
        ({"koleo_group": 1}, r"objective\.koleo_group=1: want 2 or more"),
        ({"teacher_temperature": 0.0}, r"objective\.teacher_temperature=0\.0: want more than 0"),
        ({"center_momentum": 1.5}, r"objective\.center_momentum=1\.5: want 0 to 1"),
    ],
)
def test_options_outside_their_limits_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DINO.Config(**options)


def test_a_misfit_says_the_way_out() -> None:
    encoders, objective = build()
    with pytest.raises(
        ValueError, match=r"batch of 1 leaves one alone: change batch_size, or set objective\.koleo_weight=0"
    ):
        objective(encoders, batch_of(1, 2), START)
    with pytest.raises(ValueError, match=r"set objective\.ibot_weight=0"):
        objective(encoders, batch_of(4, 2, masked=False), START)
    with pytest.raises(ValueError, match="wants 2 global views, got 0"):
        objective(encoders, batch_of(4, 2)[1:], START)
    both = Encoders({"a": Stub(), "b": Stub()})
    with pytest.raises(ValueError, match="dino reads one stream, got a, b"):
        DINO(DINO.Config(), both, {"a": SPEC["rows"], "b": SPEC["rows"]})


def test_the_config_comes_back_from_json() -> None:
    cfg = DINO.Config(centering="ema", teacher=Teacher.Config(ema=0.9), head=HEAD)
    assert from_dict(DINO.Config, to_dict(cfg)) == cfg
    with pytest.raises(ValueError, match=r"did you mean koleo_group\?"):
        from_dict(DINO.Config, {"kind": "dino", "koleo_grop": 2}, "objective")
