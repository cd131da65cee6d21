"""Golden cases of the contrastive family, one rank and several.

Covered: contrastive/{ntxent_simclr, ntxent_memory_bank, infonce_pairs, supcon, clip_softmax, siglip_sigmoid, dcl, dclw,
moco_queue, moco_v3, nnclr, curl_bilinear}, distributed/{dist_clip, dist_siglip, dist_ntxent, dist_dcl, dist_moco_v3}.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.layers.queue import Queue
from multissl.losses.clip import clip_loss
from multissl.losses.infonce import infonce_terms
from multissl.losses.moco import queue_loss
from multissl.losses.nce import nce, one_way, relations, scores
from multissl.losses.nnclr import neighbors, nnclr_loss
from multissl.losses.siglip import pair_sigmoid
from multissl.parallel.ranks import world
from tests.golden import Case, cases, cases_of, close, run_on_ranks

pytestmark = pytest.mark.reference


def test_golden_not_covered() -> None:
    pytest.skip("contrastive/ressl: not covered, the method is not built")


def leaves(case: Case) -> dict[str, Tensor]:
    """The inputs of a case; those that have a stored gradient want one."""
    grads = case.tensors("grad")
    return {n: t.requires_grad_(n in grads) for n, t in case.tensors("in").items()}


def check_gradients(case: Case, loss: Tensor, given: dict[str, Tensor], prefix: str = "") -> None:
    named = {n.removeprefix(prefix): n for n in case.tensors("grad") if n.startswith(prefix)}
    grads = torch.autograd.grad(loss, [given[n] for n in named], allow_unused=True)
    for (_, full), grad in zip(named.items(), grads, strict=True):
        case.check(grad, "grad", full)


def diagonal(s: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of the positives in column i of row i, and of all others."""
    pos = torch.eye(*s.shape, dtype=torch.bool)
    return pos, ~pos


def two_views(case: Case, given: dict[str, Tensor], **options: Any) -> Tensor:
    z = torch.stack([given["z0"], given["z1"]])
    return infonce_terms(z, relations(z.shape[1]), case.hyper["temperature"], **options)[0]["nce"]


@pytest.mark.parametrize("case", cases("contrastive", "ntxent_simclr"))
def test_golden_ntxent(case: Case) -> None:
    given = leaves(case)
    loss = two_views(case, given)
    for name in case.tensors("out"):
        case.check(2 * loss if name == "loss_google" else loss, "out", name)
    check_gradients(case, loss, given)


@pytest.mark.parametrize("case", [*cases("contrastive", "dcl"), *cases("contrastive", "dclw")])
def test_golden_decoupled(case: Case) -> None:
    given = leaves(case)
    loss = two_views(case, given, decoupled=True, sigma=case.hyper.get("sigma", 0.0))
    case.check(loss, "out", "loss")
    check_gradients(case, loss, given)


@pytest.mark.parametrize("case", cases("contrastive", "infonce_pairs"))
def test_golden_pairs(case: Case) -> None:
    given, t = leaves(case), case.hyper["temperature"]
    assert ("negative" in given) == (case.hyper["M"] > 0)
    q, k = given["query"], given["positive"]
    if case.hyper["mode"] == "none":
        loss = one_way(q, k, relations(len(q)), t)[0]
    elif case.hyper["mode"] == "unpaired":
        loss = queue_loss(q, k, given["negative"], t)[0]
    else:  # every anchor has negatives of its own
        each = [queue_loss(*a, t)[0] for a in zip(q[:, None], k[:, None], given["negative"], strict=True)]
        loss = torch.stack(each).mean()
    case.check(loss, "out", "loss")
    check_gradients(case, loss, given)


@pytest.mark.parametrize("case", cases("contrastive", "supcon"))
def test_golden_supcon(case: Case) -> None:
    given, hyper = leaves(case), case.hyper
    assert ("labels" in given) == (hyper["C"] > 0)
    z = given["features"].transpose(0, 1)  # [V, B, D]
    relation = relations(hyper["B"], [given["labels"]] if "labels" in given else [])
    t, plain = (
        hyper["temperature"],
        torch.eye(z.shape[2], dtype=z.dtype),
    )  # given as unit vectors, without a norm
    if hyper["contrast_mode"] == "all":
        loss = infonce_terms(z, relation, t, bilinear=plain)[0]["nce"]
    else:
        rows = z.reshape(-1, z.shape[2])
        others = torch.arange(len(rows)) != torch.arange(hyper["B"])[:, None]  # [B, V*B]
        pos, neg = (m.repeat(1, len(z)) & others for m in relation)
        loss = nce(scores(z[0], rows, t, plain), pos, neg).mean()
    loss = loss * t / hyper["base_temperature"]
    case.check(loss, "out", "loss")
    check_gradients(case, loss, given)


@pytest.mark.parametrize("case", cases("contrastive", "clip_softmax"))
def test_golden_clip(case: Case) -> None:
    given = leaves(case)
    a, b, scale = given["image"], given["text"], given["logit_scale"]
    bias = given.get("logit_bias", torch.zeros(()))
    case.check(scores(a, b, 1 / scale) + bias, "out", "logits_per_image")
    case.check(scores(b, a, 1 / scale) + bias, "out", "logits_per_text")
    s = scores(a, b, 1 / scale) + bias
    by_hand = (nce(s, *diagonal(s)).mean() + nce(s.T, *diagonal(s)).mean()) / 2
    loss, _ = clip_loss(torch.stack([a, b]), relations(len(a)), 1 / scale)
    case.check(loss, "out", "loss")
    case.check(by_hand, "out", "loss")
    # Stored are gradients of features as they are; ours go through the norm, which a tangent projection undoes.
    expected = {n: given[n] for n in case.tensors("grad")}
    raw = torch.autograd.grad(loss_of_units(a, b, scale, bias), [*expected.values()])
    for name, grad in zip(expected, raw, strict=True):
        case.check(grad, "grad", name)
    for name, grad in zip(("image", "text"), torch.autograd.grad(loss, [a, b]), strict=True):
        tangent = project_out(case.tensors("grad")[name], given[name])
        close(grad, tangent, 10 * (case.rtol or 0), f"{case.id}: {name} through the norm")


def loss_of_units(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The kernel on unit vectors without another norm: bilinear with the identity."""
    s = scores(a, b, 1 / scale, torch.eye(a.shape[1], dtype=a.dtype)) + bias
    return (nce(s, *diagonal(s)).mean() + nce(s.T, *diagonal(s)).mean()) / 2


def project_out(grad: Tensor, x: Tensor) -> Tensor:
    """The part of a gradient along the sphere, which is what a norm lets through."""
    x = F.normalize(x.detach(), dim=1)
    return grad - (grad * x).sum(1, keepdim=True) * x


@pytest.mark.parametrize("case", cases("contrastive", "siglip_sigmoid"))
def test_golden_siglip(case: Case) -> None:
    given = leaves(case)
    a, b = given["image"], given["text"]
    loss, _ = pair_sigmoid(a, b, given["logit_scale"], given["logit_bias"], relations(len(a)))
    case.check(loss, "out", "loss")
    names = [*case.tensors("grad")]
    for name, grad in zip(names, torch.autograd.grad(loss, [given[n] for n in names]), strict=True):
        expected = case.tensors("grad")[name]
        if name in ("image", "text"):
            expected = project_out(expected, given[name])
        close(grad, expected, 3 * (case.rtol or 0), f"{case.id}: {name}")


@pytest.mark.parametrize("case", cases("contrastive", "ntxent_memory_bank"))
def test_golden_memory_bank(case: Case) -> None:
    given, hyper = leaves(case), case.hyper
    queue = Queue(hyper["K"], hyper["D"], wrap="drop").to(given["bank_0"].dtype)
    queue.rows.copy_(given["bank_0"])
    for step in range(hyper["steps"]):
        q, k = given[f"z0_{step}"], given[f"z1_{step}"]
        loss, _ = queue_loss(q, k, queue.rows.clone(), hyper["temperature"])
        case.check(loss, "out", f"loss_{step}")
        for name, grad in zip(("z0", "z1"), torch.autograd.grad(loss, [q, k]), strict=True):
            case.check(grad, "grad", f"{name}_{step}")
        queue.put(F.normalize(k, dim=1))
        queue.after_step()
        case.check(queue.rows, "out", f"bank_{step + 1}")
        case.check(queue.pointer[None], "out", f"ptr_{step + 1}")


@pytest.mark.parametrize("case", cases("contrastive", "moco_queue"))
def test_golden_moco_queue(case: Case) -> None:
    given, hyper = leaves(case), case.hyper
    queue = Queue(hyper["K"], hyper["D"]).to(given["queue_0"].dtype)
    queue.rows.copy_(given["queue_0"].T)
    for step in range(hyper["steps"]):
        q, k = given[f"q_{step}"], given[f"k_{step}"].detach()
        loss, _ = queue_loss(q, k, queue.rows.clone(), hyper["T"])
        case.check(loss, "out", f"loss_{step}")
        case.check(torch.autograd.grad(loss, q)[0], "grad", f"q_{step}")
        assert not case.tensors("grad")[f"k_{step}"].any()
        queue.put(F.normalize(k, dim=1))
        queue.after_step()
        case.check(queue.rows.T, "out", f"queue_{step + 1}")
        case.check(queue.pointer[None], "out", f"ptr_{step + 1}")


@pytest.mark.parametrize("case", cases("contrastive", "moco_v3"))
def test_golden_moco_v3(case: Case) -> None:
    given, t = leaves(case), case.hyper["T"]
    rows = relations(len(given["q1"]))
    parts = {
        f"loss_{q}{k}": 2 * t * one_way(given[q], given[k].detach(), rows, t)[0]
        for q, k in (("q1", "k2"), ("q2", "k1"))
    }
    for name, loss in parts.items():
        case.check(loss, "out", name)
    total = torch.stack([*parts.values()]).sum()
    case.check(total, "out", "loss")
    check_gradients(case, total, given)


@pytest.mark.parametrize("case", cases("contrastive", "nnclr"))
def test_golden_nnclr(case: Case) -> None:
    given, t = case.tensors("in"), case.hyper["temperature"]
    queue = Queue(case.hyper["K"], case.hyper["D"], wrap="drop").to(given["bank"].dtype)
    queue.rows.copy_(given["bank"])
    near = [neighbors(given[f"z{i}"], queue.rows)[0] for i in (0, 1)]
    for i in (0, 1):
        case.check(near[i], "out", f"nn{i}")
    p = [given[f"p{i}"].requires_grad_() for i in (0, 1)]
    for name, both in (("lightly", True), ("solo", False)):
        pairs = ((near[0], p[1]), (near[1], p[0]))
        loss = torch.stack([nnclr_loss(n, q, relations(len(q)), t, both)[0] for n, q in pairs]).mean()
        case.check(loss, "out", f"loss_{name}")
        for i, grad in enumerate(torch.autograd.grad(loss, p)):
            case.check(grad, "grad", f"{name}_p{i}")
    queue.put(given["z1"])
    queue.after_step()
    case.check(queue.rows, "out", "bank_after")
    case.check(queue.pointer[None], "out", "ptr_after")


@pytest.mark.parametrize("case", cases("contrastive", "curl_bilinear"))
def test_golden_curl(case: Case) -> None:
    given = leaves(case)
    s = scores(given["z_a"], given["z_pos"], bilinear=given["W"])
    stored = case.tensors("out")["logits"]
    close(s - s.amax(1, keepdim=True), stored, case.rtol or 0, "logits")
    loss = nce(s, *diagonal(s)).mean()
    case.check(loss, "out", "loss")
    check_gradients(case, loss, given)


# ---------------------------------------------------------------------------------------------- ranks


def dist_two_views(mine: dict[str, Tensor], hyper: dict[str, Any], decoupled: bool) -> Tensor:
    z = torch.stack([mine["z0"], mine["z1"]])
    return infonce_terms(z, relations(z.shape[1]), hyper["T"], decoupled=decoupled)[0]["nce"]


def dist_clip(mine: dict[str, Tensor], hyper: dict[str, Any]) -> Tensor:
    z = torch.stack([mine["image"], mine["text"]])
    return clip_loss(z, relations(z.shape[1]), 1 / mine["logit_scale"])[0]


def dist_siglip(mine: dict[str, Tensor], hyper: dict[str, Any]) -> Tensor:
    rows = relations(len(mine["image"]))
    return pair_sigmoid(mine["image"], mine["text"], mine["logit_scale"], mine["logit_bias"], rows)[0]


def dist_moco_v3(mine: dict[str, Tensor], hyper: dict[str, Any]) -> Tensor:
    t = hyper["T"]
    return 2 * t * one_way(mine["q"], mine["k"].detach(), relations(len(mine["q"])), t)[0]


LOSSES: dict[str, Callable[[dict[str, Tensor], dict[str, Any]], Tensor]] = {
    "dist_clip": dist_clip,
    "dist_siglip": dist_siglip,
    "dist_ntxent": lambda mine, hyper: dist_two_views(mine, hyper, False),
    "dist_dcl": lambda mine, hyper: dist_two_views(mine, hyper, True),
    "dist_moco_v3": dist_moco_v3,
}
Work = list[tuple[str, dict[str, Any], dict[str, Tensor]]]


def all_on_rank(rank: int, work: Work) -> list[dict[str, Tensor]]:
    found = []
    for variant, hyper, given in work:
        assert world() == hyper["world"]
        mine = {
            n.removesuffix(f"_rank{rank}"): t.requires_grad_()
            for n, t in given.items()
            if n.endswith(f"_rank{rank}")
        }
        loss = LOSSES[variant](mine, hyper)
        grads = torch.autograd.grad(loss, [*mine.values()], allow_unused=True)
        none = {n: g for n, g in zip(mine, grads, strict=True) if g is not None}
        found.append({"loss": loss.detach(), **none})
    return found


RANKS = cases_of("distributed", LOSSES)


@cache
def on_ranks(count: int) -> dict[str, list[dict[str, Tensor]]]:
    return run_on_ranks(count, all_on_rank, RANKS)


@pytest.mark.ranks
@pytest.mark.parametrize("case", RANKS)
def test_golden_ranks(case: Case) -> None:
    count = case.hyper["world"]
    parts = on_ranks(count)[case.id]
    mean = torch.stack([p["loss"] for p in parts]).mean()
    stored = [case.tensors("out")[f"loss_rank{r}"] for r in range(count)]
    close(mean, torch.stack(stored).mean(), case.rtol or 0, f"{case.id}: loss")
    if case.hyper.get("gather_with_grad", True):  # else the stored gradients are incomplete, by its options
        check_rank_gradients(case, parts)


def check_rank_gradients(case: Case, parts: list[dict[str, Tensor]]) -> None:
    """Those of a rank's rows one by one, those of shared scalars as their mean over ranks."""
    stored = case.tensors("grad")
    own_loss = case.hyper.get("local_loss", True)
    for name in {n.rpartition("_rank")[0] for n in stored}:
        expected = [stored[f"{name}_rank{r}"] for r in range(len(parts))]
        ours = [p.get(name, torch.zeros_like(e)) for p, e in zip(parts, expected, strict=True)]
        if expected[0].ndim == 0 and not own_loss:
            ours, expected = [torch.stack(ours).mean()], expected[:1]
        for r, (a, b) in enumerate(zip(ours, expected, strict=True)):
            close(a, b, case.rtol or 0, f"{case.id}: {name} of rank {r}")
