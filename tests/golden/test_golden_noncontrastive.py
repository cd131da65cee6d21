"""Golden cases of the losses without negatives.

Covered: noncontrastive/{negative_cosine, barlow_twins, vicreg, vicregl, wmse_whitening, tico, mmcr},
distributed/{dist_barlow, dist_vicreg}.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.losses.barlow import barlow_terms, cross_correlation
from multissl.losses.byol import byol_loss
from multissl.losses.mmcr import capacity, mean_extent
from multissl.losses.tico import moved_covariance, tico_terms
from multissl.losses.vicreg import vicreg_terms
from multissl.losses.vicregl import global_terms, local_terms
from multissl.losses.wmse import whiten, wmse_loss
from multissl.parallel.ranks import world
from tests.golden import Case, cases, cases_of, run_on_ranks

pytestmark = pytest.mark.reference

OTHER_PAIRS = ~torch.eye(2, dtype=torch.bool)


@pytest.mark.parametrize("case", cases("noncontrastive", "negative_cosine"))
def test_golden_byol_and_simsiam(case: Case) -> None:
    given = {n: t.requires_grad_() for n, t in case.tensors("in").items()}
    p, z = torch.stack([given["p1"], given["p2"]]), torch.stack([given["z1"], given["z2"]])
    first = torch.tensor([[False, True], [False, False]])
    one_way = byol_loss(p, z, first)
    case.check(one_way, "out", "byol_12")
    # lightly does not stop the gradient: -cos is (ours - 2) / 2
    case.check((one_way - 2) / 2, "out", "neg_cos_12")
    case.check((one_way - 2) / 2, "out", "solo_simsiam_12")
    grads = torch.autograd.grad((one_way - 2) / 2, [*given.values()])
    for name, grad in zip(given, grads, strict=True):
        case.check(grad, "grad", f"negcos_{name}")
    summed = byol_loss(p, z.detach(), OTHER_PAIRS, reduction="sum")
    mean = (byol_loss(p, z.detach(), OTHER_PAIRS) - 2) / 2
    case.check(summed, "out", "byol_sym")
    case.check(mean, "out", "simsiam_sym")
    for prefix, loss in (("byol", summed), ("simsiam", mean)):
        found = torch.autograd.grad(loss, [*given.values()], allow_unused=True)
        for name, grad in zip(given, found, strict=True):
            case.check(grad, "grad", f"{prefix}_{name}")


def barlow(z0: Tensor, z1: Tensor, redundancy: float, own: bool = False) -> Tensor:
    terms = barlow_terms(cross_correlation(z0, z1, own_statistics=own))
    return terms["invariance"] + redundancy * terms["redundancy"]


@pytest.mark.parametrize("case", cases("noncontrastive", "barlow_twins"))
def test_golden_barlow(case: Case) -> None:
    z = [case.tensors("in")[n].requires_grad_() for n in ("z0", "z1")]
    loss = barlow(z[0], z[1], case.hyper["lambd"])
    case.check(loss, "out", "loss")
    case.check(loss, "out", "loss_lightly")
    case.check(0.025 * loss, "out", "loss_solo")
    for name, grad in zip(("z0", "z1"), torch.autograd.grad(loss, z), strict=True):
        case.check(grad, "grad", name)


@pytest.mark.parametrize("case", cases("noncontrastive", "vicreg"))
def test_golden_vicreg(case: Case) -> None:
    hyper, z = case.hyper, [case.tensors("in")[n].requires_grad_() for n in ("z0", "z1")]
    terms = vicreg_terms(torch.stack(z))
    inv, var, cov = terms["invariance"], terms["variance"], terms["covariance"]
    loss = hyper["sim"] * inv + hyper["std"] * var + hyper["cov"] * cov
    for name, value in zip(("inv", "var", "cov"), (inv, var, cov), strict=True):
        case.check(value, "out", name)
    case.check(loss, "out", "loss")
    case.check(loss, "out", "loss_lightly")
    case.check(loss + hyper["std"] * var, "out", "loss_solo")  # variance=50
    for name, grad in zip(("z0", "z1"), torch.autograd.grad(loss, z), strict=True):
        case.check(grad, "grad", name)


@pytest.mark.parametrize("case", cases("noncontrastive", "vicregl"))
def test_golden_vicregl(case: Case) -> None:
    hyper, given = case.hyper, case.tensors("in")
    names = [f"{part}_{i}" for part in ("emb", "map") for i in range(hyper["V"])]
    leaves = [given[n].requires_grad_() for n in names]
    views = range(hyper["V"])
    parts = {
        "global": global_terms(torch.stack([given[f"emb_{i}"] for i in views])),
        "local": local_terms(
            [given[f"map_{i}"] for i in views],
            [given[f"loc_{i}"].flatten(1, 2) for i in views],
            (hyper["nm"][0], hyper["nm"][1]),
        ),
    }
    weights = {"invariance": ("inv", 25.0), "variance": ("var", 25.0), "covariance": ("cov", 1.0)}
    loss = torch.zeros((), dtype=leaves[0].dtype)
    for part, share in (("global", hyper["alpha"]), ("local", 1 - hyper["alpha"])):
        for name, (short, weight) in weights.items():
            case.check(weight * parts[part][name], "out", f"{part}_{short}")
            loss = loss + share * weight * parts[part][name]
    case.check(loss, "out", "loss")
    for name, grad in zip(names, torch.autograd.grad(loss, leaves), strict=True):
        case.check(grad, "grad", name)


@pytest.mark.parametrize("case", cases("noncontrastive", "wmse_whitening"))
def test_golden_wmse(case: Case) -> None:
    z = [case.tensors("in")[n].requires_grad_() for n in ("z0", "z1")]
    for i, each in enumerate(z):
        case.check(whiten(each, case.hyper["eps"]), "out", f"white{i}")
    loss = wmse_loss(torch.stack(z), torch.arange(len(z[0])), case.hyper["eps"])
    case.check(loss, "out", "loss")
    for name, grad in zip(("z0", "z1"), torch.autograd.grad(loss, z), strict=True):
        case.check(grad, "grad", name)


@pytest.mark.parametrize("case", cases("noncontrastive", "tico"))
def test_golden_tico(case: Case) -> None:
    hyper, given = case.hyper, {n: t.requires_grad_() for n, t in case.tensors("in").items()}
    covariance = torch.zeros(hyper["D"], hyper["D"], dtype=given["z0_0"].dtype)
    for step in range(hyper["steps"]):
        z, target = given[f"z0_{step}"], given[f"z1_{step}"]
        covariance = moved_covariance(z, covariance, hyper["beta"])
        terms = tico_terms(z, target, covariance)
        loss = terms["invariance"] + hyper["rho"] * terms["covariance"]
        case.check(loss, "out", f"loss_{step}")
        case.check(covariance, "out", f"C_{step}")
        for name, grad in zip("01", torch.autograd.grad(loss, [z, target]), strict=True):
            case.check(grad, "grad", f"z{name}_{step}")


@pytest.mark.parametrize("case", cases("noncontrastive", "mmcr"))
def test_golden_mmcr(case: Case) -> None:
    given = {n: t.requires_grad_() for n, t in case.tensors("in").items()}  # [B, V, D] each
    views = torch.cat([given["online"], given["momentum"]], 1).transpose(0, 1)
    loss = case.hyper["lmda"] * mean_extent(views) - capacity(views)[0]
    case.check(loss, "out", "loss")
    for name, grad in zip(given, torch.autograd.grad(loss, [*given.values()]), strict=True):
        case.check(grad, "grad", name)


# ---------------------------------------------------------------------------------------------- ranks


Work = list[tuple[str, dict[str, Any], dict[str, Tensor]]]


def all_on_rank(rank: int, work: Work) -> list[list[Tensor]]:
    """The loss and the gradients of both inputs, for every case."""
    found = []
    for variant, hyper, given in work:
        assert world() == hyper["world"]
        z = [given[f"{n}_rank{rank}"].requires_grad_() for n in ("z0", "z1")]
        if variant == "dist_vicreg":
            terms = vicreg_terms(torch.stack(z))
            loss = 25 * terms["invariance"] + 25 * terms["variance"] + terms["covariance"]
        else:  # lightly standardizes every rank by its own rows
            loss = barlow(z[0], z[1], hyper["lambd"], own=True)
        found.append([loss.detach(), *torch.autograd.grad(loss, z)])
    return found


RANKS = cases_of("distributed", ("dist_barlow", "dist_vicreg"))


@cache
def on_ranks(count: int) -> dict[str, list[list[Tensor]]]:
    return run_on_ranks(count, all_on_rank, RANKS)


@pytest.mark.ranks
@pytest.mark.parametrize("case", RANKS)
def test_golden_ranks(case: Case) -> None:
    for rank, (loss, *grads) in enumerate(on_ranks(case.hyper["world"])[case.id]):
        case.check(loss, "out", f"loss_rank{rank}")
        for name, grad in zip(("z0", "z1"), grads, strict=True):
            case.check(grad, "grad", f"{name}_rank{rank}")
