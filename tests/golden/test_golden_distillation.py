"""Golden cases of DINO, iBOT, DINOv2's losses, their heads and teacher, and KoLeo.

Covered: distillation/{sinkhorn, dino_official, ibot_official, dinov2_dino_centering, dinov2_dino_sinkhorn,
dinov2_ibot_masked, dinov3_dino_loss, dinov3_gram, koleo, swav_loss, msn}, encoders_dinov2/{dinov2_head, dino_head},
optim_ema/ema_and_clip (teacher), distributed/{dist_sinkhorn_center, dist_koleo}.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multissl.contract.learning import Progress
from multissl.layers.center import Center
from multissl.layers.heads import PrototypeHead, RankBatchNorm
from multissl.layers.teacher import Teacher
from multissl.losses.dino import dino_terms
from multissl.losses.gram import Negatives, gram_loss
from multissl.losses.koleo import grouped_koleo, koleo
from multissl.losses.msn import cosines, msn_targets, msn_terms
from multissl.losses.sinkhorn import centered, sinkhorn
from multissl.losses.swav import swav_loss
from multissl.losses.targets import Targets, cross_entropy
from multissl.parallel.ranks import world
from multissl.schedules import ramp
from tests.golden import Case, cases, cases_of, close, run_on_ranks

pytestmark = pytest.mark.reference


def center_of(case: Case, prototypes: int, lazy: bool = False) -> Center:
    center = Center(prototypes, case.hyper.get("m", 0.9), "count", lazy)
    return center.double() if case.manifest["dtype"] == "f64" else center


# -------------------------------------------------------------------------------- targets and losses


@pytest.mark.parametrize("case", cases("distillation", "sinkhorn"))
def test_golden_sinkhorn(case: Case) -> None:
    q = sinkhorn(
        case.tensors("in")["scores"], case.hyper["eps"], rounds=case.hyper["iterations"]
    ).probabilities()
    for name in case.tensors("out"):
        case.check(q, "out", name)


@pytest.mark.parametrize("case", cases("distillation", "dino_official"))
def test_golden_dino(case: Case) -> None:
    hyper, given = case.hyper, case.tensors("in")
    schedule = ramp(hyper["wt"], hyper["tt"], hyper["we"])
    rates = torch.tensor([schedule.at(e, hyper["ne"]) for e in range(hyper["ne"])], dtype=torch.float64)
    expected = case.tensors("out")["teacher_temp_schedule"]
    close(rates.to(expected.dtype), expected, case.rtol or 0, "teacher_temp_schedule")
    center = center_of(case, hyper["K"])
    for step, epoch in enumerate(hyper["epochs"]):
        student, teacher = given[f"student_{step}"].requires_grad_(), given[f"teacher_{step}"]
        assert len(teacher) == 2 * hyper["B"]
        targets = center.targets(teacher, schedule.at(epoch, hyper["ne"]))
        terms, _ = dino_terms(student, targets, [2, hyper["ncrops"] - 2], hyper["st"])
        loss = torch.stack([*terms.values()]).sum()
        loss.backward()
        center.observe(teacher)
        center.after_step()
        case.check(loss, "out", f"loss_{step}")
        case.check(student.grad, "grad", f"student_{step}")
        case.check(center.center[None], "out", f"center_{step + 1}")


@pytest.mark.parametrize("case", cases("distillation", "dinov3_gram"))
def test_golden_gram(case: Case) -> None:
    hyper, given = case.hyper, case.tensors("in")
    assert hyper["norm"]
    both, teachers = hyper["rn"], hyper["rt"]
    negatives: Negatives = "clipped" if both else "clipped_teacher" if teachers else "kept"
    student, teacher = given["student"].requires_grad_(), given["teacher"]
    if not hyper["img"]:  # the tokens of all pictures as those of one
        loss = gram_loss(student.flatten(0, 1)[None], teacher.flatten(0, 1)[None], negatives)
    else:
        loss = gram_loss(student, teacher, negatives)
    loss.backward()
    case.check(loss, "out", "loss")
    case.check(student.grad, "grad", "student")


@pytest.mark.parametrize("case", cases("distillation", "ibot_official"))
def test_golden_ibot(case: Case) -> None:
    """The case stores no temperatures; the values show 0.04, then 0.07 for the teacher, 0.1 for the student."""
    hyper, given = case.hyper, case.tensors("in")
    st, m = hyper.get("st", 0.1), hyper.get("m", 0.9)
    names = ("student_cls", "student_patch", "student_local_cls")
    centers = Center(hyper["K"], m, "count", False), Center(hyper["K2"], hyper.get("m2", m), "count", False)
    if case.manifest["dtype"] == "f64":
        centers = centers[0].double(), centers[1].double()
    for step in range(hyper["steps"]):
        tt = ramp(0.04, 0.07, 2).at(step, hyper["steps"] + 2)
        sides = {n: given[f"{n}_{step}"].requires_grad_() for n in names if f"{n}_{step}" in given}
        local = [sides["student_local_cls"]] if "student_local_cls" in sides else []
        cls = torch.cat([sides["student_cls"], *local])
        targets = centers[0].targets(given[f"teacher_cls_{step}"], tt)
        terms, _ = dino_terms(cls, targets, [2, hyper["nl"]], st)
        hidden = given[f"mask_{step}"].flatten(2).flatten(0, 1)  # [2*B, N]
        teacher_patches = given[f"teacher_patch_{step}"].flatten(0, 1)
        patches = centers[1].targets(teacher_patches, tt)
        index = hidden.flatten().nonzero().flatten()
        ce = cross_entropy(sides["student_patch"].flatten(0, 1)[index], patches, index[:, None], st)
        weight = (1 / hidden.sum(1).clamp(min=1).to(ce)).repeat_interleave(hidden.sum(1))
        loss_cls, loss_patch = torch.stack([*terms.values()]).sum(), (ce * weight).sum() / len(hidden)
        total = hyper["l1"] * loss_cls + hyper["l2"] * loss_patch
        total.backward()
        for center, seen in zip(centers, (given[f"teacher_cls_{step}"], teacher_patches), strict=True):
            center.observe(seen)
            center.after_step()
        for name, value in {"loss": total, "cls": loss_cls, "patch": loss_patch}.items():
            case.check(value, "out", f"{name}_{step}")
        for name, side in sides.items():
            case.check(side.grad, "grad", f"{name}_{step}")
        case.check(centers[0].center[None], "out", f"center_{step + 1}")
        case.check(centers[1].center[None, None], "out", f"center2_{step + 1}")


def pair_sum(student: Tensor, targets: Targets, num_teacher: int, temperature: float) -> Tensor:
    """DINOv2's DINOLoss.forward: the sum over all pairs of a student chunk [S, B, K] and a teacher chunk."""
    chunks, batch = student.shape[:2]
    rows = torch.arange(num_teacher * batch).view(num_teacher, batch).T.repeat(chunks, 1)  # [S*B, T]
    return cross_entropy(student.flatten(0, 1), targets, rows, temperature).sum() / batch


@pytest.mark.parametrize("case", cases("distillation", "dinov2_dino_centering"))
def test_golden_dinov2_centering(case: Case) -> None:
    hyper, given = case.hyper, case.tensors("in")
    center = center_of(case, hyper["K"], lazy=True)
    for step, temperature in enumerate(hyper["temps"]):
        student, teacher = given[f"student_{step}"].requires_grad_(), given[f"teacher_{step}"]
        targets = center.targets(teacher, temperature)
        case.check(center.center[None], "out", f"center_used_{step}")
        center.observe(teacher)
        loss = pair_sum(student, targets, hyper["nt"], hyper["st"])
        loss.backward()
        center.after_step()
        case.check(targets.probabilities(), "out", f"teacher_probs_{step}")
        case.check(loss, "out", f"loss_{step}")
        case.check(student.grad, "grad", f"student_{step}")


@pytest.mark.parametrize("case", cases("distillation", "dinov2_dino_sinkhorn"))
def test_golden_dinov2_sinkhorn(case: Case) -> None:
    given = case.tensors("in")
    student = given["student"].requires_grad_()
    targets = sinkhorn(given["teacher"], case.hyper["temp"])
    loss = pair_sum(student, targets, case.hyper["nt"], case.hyper.get("st", 0.1))
    loss.backward()
    case.check(targets.probabilities(), "out", "teacher_probs")
    case.check(loss, "out", "loss")
    case.check(student.grad, "grad", "student")


@pytest.mark.parametrize("case", cases("distillation", "dinov3_dino_loss"))
def test_golden_dinov3(case: Case) -> None:
    """Its loss is a mean over pairs, our terms are that times their share of the pairs, with which it is weighted."""
    hyper, given = case.hyper, case.tensors("in")
    student, count, teachers = given["student"].requires_grad_(), hyper["ns"], hyper["nt"]
    probabilities = given["teacher_probs"].flatten(0, 1)
    assert student.shape[1:] == (hyper["B"], hyper["K"])
    targets = centered(probabilities.log(), 1.0, probabilities.new_zeros(hyper["K"]))
    if hyper["diag"]:
        assert count == teachers == 2
        loss = dino_terms(student.flatten(0, 1), targets, (2,), 0.1)[0]["dino_global"]
    elif teachers == 2:
        views = torch.cat([torch.zeros_like(student[:2]), student]).flatten(0, 1)
        loss = dino_terms(views, targets, (2, count), 0.1)[0]["dino_local"] * (2 + 2 * count) / (2 * count)
    else:
        loss = pair_sum(student, targets, teachers, 0.1) / (count * teachers)
    loss.backward()
    case.check(loss, "out", "loss")
    case.check(student.grad, "grad", "student")


@pytest.mark.parametrize("case", cases("distillation", "dinov2_ibot_masked"))
def test_golden_dinov2_hidden_tokens(case: Case) -> None:
    hyper, given = case.hyper, case.tensors("in")
    center, st = center_of(case, hyper["K"], lazy=True), hyper.get("st", 0.1)
    for step in range(hyper["steps"]):
        hidden = given[f"masks_{step}"].bool()
        assert hidden.sum(1).tolist() == (hyper["counts"] * hyper["B"])[: hyper["B"]]
        index = hidden.flatten().nonzero().flatten()  # [M]
        count = len(index)
        # padded as in training: positions of the first token, weight 0
        index = nn.functional.pad(index, (0, hyper["pad"]))
        weight = (1 / hidden.sum(1).clamp(min=1)).repeat_interleave(hidden.sum(1))
        case.check(weight, "out", f"mask_weight_{step}")
        weight = nn.functional.pad(weight, (0, hyper["pad"]))
        logits = given[f"teacher_{step}"].flatten(0, 1)[index]
        for name in ("cent", "sk"):
            student = given[f"student_{step}"].clone().requires_grad_()
            if name == "cent":
                targets = center.targets(logits, hyper["temp"], weight > 0)
                case.check(center.center[None, None], "out", f"center_used_{step}")
            else:
                targets = sinkhorn(logits, hyper["temp"], weight > 0)
            assert not targets.probabilities()[count:].any()
            rows = torch.arange(len(index))[:, None]
            ce = cross_entropy(student.flatten(0, 1)[index], targets, rows, st)
            loss = (ce * weight).sum() / len(hidden)
            loss.backward()
            case.check(targets.probabilities()[:count], "out", f"probs_{name}_{step}")
            case.check(loss, "out", f"loss_{name}_{step}")
            case.check(student.grad, "grad", f"{name}_student_{step}")
            if name == "cent":
                case.check(loss, "out", f"loss_dense_{step}")
                case.check(loss, "out", f"loss_cent_default_weight_{step}")
        center.observe(logits, weight > 0)
        center.after_step()


@pytest.mark.parametrize("case", cases("distillation", "swav_loss"))
def test_golden_swav(case: Case) -> None:
    hyper, given = case.hyper, case.tensors("in")
    names = [*(f"high_{i}" for i in range(hyper["hi"])), *(f"low_{i}" for i in range(hyper["lo"]))]
    views = [given[n].requires_grad_() for n in names]
    queue = torch.stack([given[f"queue_{i}"] for i in range(hyper["hi"])]) if hyper["Q"] else None
    options = (hyper["T"], hyper["eps"], hyper["iterations"])
    loss, codes, _ = swav_loss(torch.stack(views), hyper["hi"], *options, queue)
    loss.backward()
    case.check(loss, "out", "loss")
    case.check(loss, "out", "loss_solo")
    for i, q in enumerate(codes):
        case.check(q.probabilities(), "out", f"q_{i}")
    for name, view in zip(names, views, strict=True):
        case.check(view.grad, "grad", name)


@pytest.mark.parametrize("case", cases("distillation", "msn"))
def test_golden_msn(case: Case) -> None:
    hyper, given = case.hyper, case.tensors("in")
    anchors, prototypes = given["anchors"].requires_grad_(), given["prototypes"].requires_grad_()
    rounds = 3 if hyper["sk"] else 0
    targets = msn_targets(cosines(given["targets"], prototypes), hyper["tau"], hyper["T"], rounds)
    case.check(targets.probabilities().repeat(hyper["V"], 1), "out", "target_probs")
    scores = cosines(anchors, prototypes)
    terms, _ = msn_terms(scores, targets, hyper["tau"])
    loss = terms["ce"] + hyper["w"] * terms["me_max"]
    loss.backward(retain_graph=True)
    case.check(terms["ce"], "out", "ce")
    case.check(terms["me_max"], "out", "rloss")
    case.check(loss, "out", "loss")
    case.check(loss, "out", "loss_lightly")
    case.check(anchors.grad, "grad", "anchors")
    case.check(prototypes.grad, "grad", "prototypes")
    tailed, _ = msn_terms(scores, targets, hyper["tau"], hyper["alpha"])
    case.check(tailed["ce"] + hyper["w"] * tailed["me_max"], "out", "loss_pmsn")


@pytest.mark.parametrize("case", cases("distillation", "koleo"))
def test_golden_koleo(case: Case) -> None:
    x = case.tensors("in")["x"].requires_grad_()
    loss = grouped_koleo(x, len(x))
    case.check(loss, "out", "loss")
    case.check(loss, "out", "loss_lightly")
    case.check(torch.autograd.grad(loss, x)[0], "grad", "x")
    loss = koleo(x, case.hyper["topk"]).mean()
    case.check(loss, "out", "loss_topk")
    case.check(torch.autograd.grad(loss, x)[0], "grad", "topk_x")


# ---------------------------------------------------------------------------------- heads and teacher


@pytest.mark.parametrize(
    "case", [*cases("encoders_dinov2", "dinov2_head"), *cases("encoders_dinov2", "dino_head")]
)
def test_golden_head(case: Case) -> None:
    hyper, given = case.hyper, case.tensors("in")
    head = PrototypeHead.Config(
        prototypes=hyper["K"],
        bottleneck=hyper["bott"],
        hidden=hyper["hid"] or 1,
        layers=hyper["nl"],
        norm="batch" if hyper["bn"] else "none",
        bias=hyper.get("bias", True),
        gain="fixed" if hyper.get("nll") else "trainable",
    ).build(hyper["din"])
    head = head.double() if case.manifest["dtype"] == "f64" else head
    head.load_state_dict(case.tensors("param"))  # the official names are ours
    x = given["x"].requires_grad_()
    out = head(x)
    (out * given["probe"]).sum().backward()
    case.check(out, "out", "out")
    if "weight_g_trainable" in case.tensors("out"):
        expected = case.tensors("out")["weight_g_trainable"]
        assert head.last_layer.weight_g.requires_grad == bool(expected)
    gradients = {"x": x.grad, **{n: p.grad for n, p in head.named_parameters()}}
    for name in case.tensors("grad"):
        case.check(gradients[name], "grad", name)


class Small(nn.Module):
    """The student of the case: a linear layer and batch norm."""

    def __init__(self, given: dict[str, Tensor], side: str) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(given[f"{side}_w"]), nn.Parameter(given[f"{side}_b"])
        self.norm = RankBatchNorm(len(self.b)).to(self.b.dtype)
        self.norm.load_state_dict(
            {
                "weight": given[f"{side}_bn_w"],
                "bias": given[f"{side}_bn_b"],
                "running_mean": given[f"{side}_rm"],
            },
            strict=False,
        )


@pytest.mark.parametrize("case", cases("optim_ema", "ema_and_clip"))
def test_golden_ema(case: Case) -> None:
    given, m = case.tensors("in"), case.hyper["m"]
    teacher = Teacher(Teacher.Config(ema=m, final_ema=m, buffers="keep"), {"net": Small(given, "teacher")})
    teacher.update({"net": Small(given, "student")}, Progress(step=0, total=10))
    case.check(teacher["net"].w, "out", "ema_w")
    case.check(teacher["net"].b, "out", "ema_b")
    case.check(teacher["net"].norm.weight, "out", "ema_bn_w")
    case.check(teacher["net"].norm.running_mean, "out", "bn_running_mean")


# ---------------------------------------------------------------------------------------------- ranks


def on_rank(rank: int, variant: str, hyper: dict[str, Any], given: dict[str, Tensor]) -> dict[str, Tensor]:
    mine = {n.removesuffix(f"_rank{rank}"): t for n, t in given.items() if n.endswith(f"_rank{rank}")}
    assert world() == hyper["world"]
    if variant == "dist_koleo":
        x = mine["x"].requires_grad_()
        loss = grouped_koleo(x, len(x) * world(), hyper["topk"])
        return {"loss": loss.detach(), "x": torch.autograd.grad(loss, x)[0]}
    count = int(mine["n_masked"])
    real = torch.arange(len(mine["patch_scores"])) < count
    found = {"q": sinkhorn(mine["scores"], hyper["temp"]).probabilities()}
    found["q_ibot"] = sinkhorn(mine["patch_scores"], hyper["temp"], real).probabilities()[:count]
    for name, scores, rows in (("dino", mine["scores"], None), ("ibot", mine["patch_scores"], real)):
        center = Center(hyper["K"], 0.9, "equal", lazy=False)
        center.observe(scores, rows)
        center.after_step()
        found[f"center_{name}"] = center.center
    return found


def all_on_rank(
    rank: int, work: list[tuple[str, dict[str, Any], dict[str, Tensor]]]
) -> list[dict[str, Tensor]]:
    return [on_rank(rank, *each) for each in work]


RANKS = cases_of("distributed", ("dist_sinkhorn_center", "dist_koleo"))


@cache
def on_ranks(count: int) -> dict[str, list[dict[str, Tensor]]]:
    return run_on_ranks(count, all_on_rank, RANKS)


@pytest.mark.ranks
@pytest.mark.parametrize("case", RANKS)
def test_golden_ranks(case: Case) -> None:
    for rank, part in enumerate(on_ranks(case.hyper["world"])[case.id]):
        check_rank(case, rank, part)


def check_rank(case: Case, rank: int, part: dict[str, Tensor]) -> None:
    for name, value in part.items():
        match name:
            case "q":
                case.check(value, "out", f"q_dinov2_rank{rank}")
                case.check(value, "out", f"q_swav_rank{rank}")
            case "center_dino":
                case.check(value[None], "out", f"{name}_rank{rank}")
            case "center_ibot":
                case.check(value[None, None], "out", f"{name}_rank{rank}")
            case "loss" | "q_ibot":
                case.check(value, "out", f"{name}_rank{rank}")
            case _:
                case.check(value, "grad", f"{name}_rank{rank}")


def test_centering_targets_are_a_softmax() -> None:
    logits, center = torch.randn(5, 7), torch.randn(7)
    torch.testing.assert_close(
        centered(logits, 0.07, center).probabilities(), ((logits - center) / 0.07).softmax(1)
    )
