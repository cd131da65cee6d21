"""Golden cases of objectives without prototypes, and of several teachers.

Covered of protocols: sigreg_lejepa, lejepa_minimal, visreg, simdino_mcr, simdinov2_mcr, simdinov2_patch, eat_loss,
phi_s, dist_sigreg, dist_simdinov2.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.losses.coding_rate import compression, expansion, patch_likeness
from multissl.losses.data2vec import average_layers, row_errors, scaled_errors
from multissl.losses.phi_s import hadamard, moments, phi_s
from multissl.losses.sigreg import distance_to_center, sigreg, slice_statistics
from multissl.losses.visreg import visreg_terms
from multissl.modalities.views import pack_masks
from multissl.parallel.ranks import world
from tests.golden import Case, cases, run_on_ranks

pytestmark = pytest.mark.reference


# ------------------------------------------------------------------------------------ distributions


@pytest.mark.parametrize("case", cases("protocols", "sigreg_lejepa"))
def test_golden_sigreg(case: Case) -> None:
    hyper, given = case.hyper, case.tensors("in")
    x, directions = given["x"].requires_grad_(), given["A"]
    points = (hyper["n_points"], hyper["t_max"])
    loss = sigreg(x, directions, *points, clip=hyper["clip"], reduction=hyper["reduction"])
    case.check(loss, "out", "loss")
    statistics = slice_statistics(x, directions, *points)
    clipped = statistics if hyper["clip"] is None else statistics.masked_fill(statistics < hyper["clip"], 0)
    case.check(clipped, "out", "stat_per_slice")
    case.check(torch.autograd.grad(loss, x)[0], "grad", "x")


@pytest.mark.parametrize("case", cases("protocols", "lejepa_minimal"))
def test_golden_lejepa(case: Case) -> None:
    hyper, given = case.hyper, case.tensors("in")
    z = given["proj"].requires_grad_()
    spread = sigreg(z, given["A"], hyper["knots"])
    distance = distance_to_center(z, hyper["V"])
    loss = hyper["lamb"] * spread + (1 - hyper["lamb"]) * distance
    for name, value in {"sigreg": spread, "inv": distance, "lejepa": loss}.items():
        case.check(value, "out", name)
    case.check(torch.autograd.grad(loss, z)[0], "grad", "proj")


@pytest.mark.parametrize("case", cases("protocols", "visreg"))
def test_golden_visreg(case: Case) -> None:
    z = case.tensors("in")["z"].requires_grad_()
    loss = torch.stack([*visreg_terms(z, case.tensors("in")["W"]).values()]).sum()
    case.check(loss, "out", "loss")
    case.check(torch.autograd.grad(loss, z)[0], "grad", "z")


# -------------------------------------------------------------------------------------- coding rate


def expanded(student: Tensor, teacher: Tensor, kind: int) -> Tensor:
    """What the expansion is taken of: the student's global views, or their mean with the teacher's."""
    own = student[: len(teacher)]
    return (own + teacher) / 2 if kind == 1 else own


@pytest.mark.parametrize("case", cases("protocols", "simdino_mcr"))
def test_golden_simdino(case: Case) -> None:
    hyper, given = case.hyper, case.tensors("in")
    flat = given["student"].requires_grad_()
    student = flat.unflatten(0, (hyper["ncrops"], hyper["B"]))
    teacher = given["teacher"].unflatten(0, (2, hyper["B"]))
    # Whether features were unit vectors, `normalized`, changes nothing in the loss, which takes them as they are.
    lengths = flat.detach().norm(dim=-1)
    assert torch.allclose(lengths, torch.ones_like(lengths)) == hyper["normalized"]
    comp = compression(student, teacher)
    expa = expansion(expanded(student, teacher, hyper["expa_type"]), hyper["eps"])
    loss = -hyper["coeff"] * comp - expa
    for name, value in {"comp": comp, "expa": expa, "loss": loss}.items():
        case.check(value, "out", name)
    case.check(torch.autograd.grad(loss, flat)[0], "grad", "student")


@pytest.mark.parametrize("case", cases("protocols", "simdinov2_mcr"))
def test_golden_simdinov2(case: Case) -> None:
    hyper, given = case.hyper, case.tensors("in")
    raw, teacher = given["student"].requires_grad_(), given["teacher"]
    student = raw
    if not hyper["normalized"]:
        student, teacher = F.normalize(raw, dim=-1), F.normalize(teacher, dim=-1)
    comp = compression(student, teacher, cosine=False)
    expa = expansion(expanded(student, teacher, hyper["expa_type"]), hyper["eps"])
    loss = -hyper["coeff"] * comp - expa
    for name, value in {"comp_loss": comp, "expa_loss": expa, "loss": loss}.items():
        case.check(value, "out", name)
    case.check(compression(student[:2], teacher, cosine=False), "out", "global_comp_loss")
    case.check(torch.autograd.grad(loss, raw)[0], "grad", "student")


@pytest.mark.parametrize("case", cases("protocols", "simdinov2_patch"))
def test_golden_simdinov2_patches(case: Case) -> None:
    given = case.tensors("in")
    student, teacher = given["student"].requires_grad_(), given["teacher"]
    mask = pack_masks(given["mask"])
    masked_rows = given["mask"].any(1)
    assert int((~masked_rows).sum()) >= case.hyper["empty"]
    ours, theirs = (tokens.flatten(0, 1)[mask.index] for tokens in (student, teacher))
    loss = -patch_likeness(ours, theirs, mask.weight, len(given["mask"]))
    case.check(loss, "out", "loss")
    case.check(loss, "out", "loss_full")
    case.check(torch.autograd.grad(loss, student)[0], "grad", "student")


# ----------------------------------------------------------------------------------------- EAT


@pytest.mark.parametrize("case", cases("protocols", "eat_loss"))
def test_golden_eat(case: Case) -> None:
    hyper, given = case.hyper, case.tensors("in")
    decoder, row, mask = given["decoder"].requires_grad_(), given["cls"].requires_grad_(), given["mask"]
    targets = average_layers([*given["layers"][-hyper["k"] :]], "instance", "layer")
    case.check(targets, "out", "targets")
    cloned = targets.repeat_interleave(hyper["c"], 0)
    frames = scaled_errors(decoder, cloned)[mask].sum()
    rows = row_errors(row, cloned).sum()
    case.check(frames, "out", "frame_sum")
    case.check(hyper["cls"] * mask.sum() * rows, "out", "cls_sum")
    total = frames / mask.sum() + hyper["cls"] * rows
    case.check(total, "out", "total_per_sample")
    grads = torch.autograd.grad(total, (decoder, row))
    for name, grad in zip(("decoder", "cls"), grads, strict=True):
        case.check(grad, "grad", name)


# ----------------------------------------------------------------------------------------- ranks

Work = list[tuple[str, dict[str, Any], dict[str, Tensor]]]
SIGREG, SIMDINO = cases("protocols", "dist_sigreg"), cases("protocols", "dist_simdinov2")


def on_a_rank(rank: int, work: Work) -> list[dict[str, Tensor]]:
    """Return the values and the gradient of every case."""
    found = []
    for variant, hyper, given in work:
        assert world() == 2
        if variant == "dist_sigreg":
            x = given[f"x_rank{rank}"].requires_grad_()
            loss = sigreg(x, given["A"])
            found.append({"loss": loss.detach(), "x": torch.autograd.grad(loss, x)[0]})
            continue
        student, teacher = given[f"student_rank{rank}"].requires_grad_(), given[f"teacher_rank{rank}"]
        comp = compression(student, teacher, cosine=False)
        z = expanded(student, teacher, hyper["expa_type"])
        expa = expansion(z, hyper["eps"], summed=hyper["reduce_cov"] == 1)
        loss = -comp - expa
        grad = torch.autograd.grad(loss, student)[0]
        found.append({"loss": loss.detach(), "comp": comp.detach(), "expa": expa.detach(), "student": grad})
    return found


@cache
def on_two_ranks() -> dict[str, list[dict[str, Tensor]]]:
    return run_on_ranks(2, on_a_rank, [*SIGREG, *SIMDINO])


@pytest.mark.ranks
@pytest.mark.parametrize("case", SIGREG)
def test_golden_sigreg_on_ranks(case: Case) -> None:
    for rank, values in enumerate(on_two_ranks()[case.id]):
        case.check(values["loss"], "out", f"loss_rank{rank}")
        case.check(values["x"], "grad", f"x_rank{rank}")


@pytest.mark.ranks
@pytest.mark.parametrize("case", SIMDINO)
def test_golden_simdino_on_ranks(case: Case) -> None:
    for rank, values in enumerate(on_two_ranks()[case.id]):
        for name in ("loss", "comp", "expa"):
            case.check(values[name], "out", f"{name}_rank{rank}")
        case.check(values["student"], "grad", f"student_rank{rank}")


# -------------------------------------------------------------------------------------- several teachers


@pytest.mark.parametrize("case", cases("protocols", "phi_s"))
def test_golden_phi_s(case: Case) -> None:
    given = case.tensors("in")
    x = given["X"]
    assert x.shape == (case.hyper["n"], case.hyper["D"])
    mean, covariance = moments(x)
    whole, scale = phi_s(covariance, given["eigvecs"])
    y = (x - mean) @ whole.T
    values = torch.linalg.eigvalsh(covariance).clamp(min=0)
    ours = {"mean": mean, "W": whole, "H": hadamard(x.shape[1]), "alpha": scale, "eigvals": values, "Y": y}
    for name, value in ours.items():
        case.check(value.to(x.dtype), "out", name)
    _, spread = moments(y)
    case.check(spread.to(x.dtype), "out", "cov_y")
    case.check(spread.diagonal().to(x.dtype), "out", "cov_diag")
    own, _ = phi_s(covariance)  # with eigenvectors of our own: other signs, the same variances
    spread = moments((x - mean) @ own.T)[1].diagonal()
    torch.testing.assert_close(spread, torch.ones_like(spread), rtol=1e-5, atol=0)
