"""SimDINO: its terms against the paper's formulas, local covariances, masks, ranks, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoders
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.heads import UnitHead
from multissl.layers.teacher import Teacher
from multissl.losses import coding_rate as module
from multissl.losses.coding_rate import compression, expansion, patch_likeness
from multissl.modalities.masks import draw_masks
from multissl.objectives.simdino import SimDINO
from multissl.random import RowRandom
from tests.helpers.ranks import run_ranks
from tests.objectives.plain import ROWS, START, encoders_of, rows

HEAD = UnitHead.Config(hidden=8, out=5, layers=2, init_std=0.0)
SPEC = StreamSpec(kind="grid", shape=(3, 16, 16), patch=(4, 4), num_tokens=16)


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def test_compression_is_the_mean_over_pairs_of_different_views() -> None:
    student, teacher = torch.randn(4, 6, 5), torch.randn(2, 6, 5)
    pairs = [(i, v) for i in range(2) for v in range(4) if i != v]
    cosines = [F.cosine_similarity(teacher[i], student[v], dim=-1).mean() for i, v in pairs]
    torch.testing.assert_close(compression(student, teacher), torch.stack(cosines).mean())
    products = [(teacher[i] * student[v]).sum(-1).mean() for i, v in pairs]
    torch.testing.assert_close(compression(student, teacher, cosine=False), torch.stack(products).mean())


def test_expansion_is_the_scaled_coding_rate() -> None:
    z = unit(2, 6, 5).double()
    rates = [0.5 * torch.logdet(torch.eye(5).double() + 5 / (6 * 0.3) * v.T @ v) for v in z]
    torch.testing.assert_close(expansion(z, 0.3), (5 + 6) / (5 * 6) * torch.stack(rates).mean())


def test_one_point_has_the_lowest_coding_rate_and_orthogonal_samples_the_highest() -> None:
    spread = expansion(torch.eye(8)[None], 0.5)
    some = expansion(unit(1, 8, 8), 0.5)
    point = expansion(unit(1, 1, 8).expand(1, 8, 8), 0.5)
    assert spread > some > point


def test_missing_samples_count_for_nothing() -> None:
    student, teacher, there = unit(3, 8, 5), unit(2, 8, 5), torch.arange(8) != 2
    spoilt, false = (x.masked_fill(~there[:, None], 7.0) for x in (student, teacher))
    found = compression(spoilt, false, there, cosine=False)
    torch.testing.assert_close(found, compression(student[:, there], teacher[:, there], cosine=False))
    torch.testing.assert_close(expansion(spoilt, 0.1, there), expansion(student[:, there], 0.1))
    assert expansion(spoilt, 0.1, there & False) == 0


def test_half_precision_inputs_are_computed_in_full() -> None:
    student, teacher, weight = unit(3, 64, 5), unit(2, 64, 5), torch.rand(64)

    def values(student: Tensor, teacher: Tensor) -> list[Tensor]:
        likeness = patch_likeness(student[0], teacher[0], weight, 2.0)
        return [compression(student, teacher), expansion(student, 0.05), likeness]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = values(student.bfloat16(), teacher.bfloat16())
    for value, right in zip(half, values(student, teacher), strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, right, rtol=0.01, atol=0.01)


# --------------------------------------------------------------------------------------------- ranks


def gradients(rank: int, z: Tensor, ranks: int) -> list[Tensor]:
    """Value and gradient of this rank's share of samples, summed over ranks, local, and without gradient in the sum."""
    mine = (z if ranks == 1 else z[:, :3] if rank == 0 else z[:, 3:]).clone().requires_grad_()
    there = torch.ones(mine.shape[1], dtype=torch.bool)  # as ranks hold unequally many samples
    found = []
    summed = module.sum_ranks
    for options, planted in (({}, False), ({"summed": False}, False), ({}, True)):
        module.sum_ranks = (lambda x: x + (summed(x) - x).detach()) if planted else summed
        try:
            value = expansion(mine, 0.05, there, **options)
            found += [value.detach(), torch.autograd.grad(value, mine)[0] / ranks]
        finally:
            module.sum_ranks = summed
    return found


@pytest.mark.ranks
def test_two_ranks_with_unequal_batches_give_one_rank_s_expansion_and_local_covariances_less() -> None:
    z = unit(2, 8, 5).double()
    parts, right = run_ranks(2, gradients, z, 2), gradients(0, z, 1)
    for part in parts:
        torch.testing.assert_close(part[0], right[0])
        assert part[2] < 0.95 * right[0]
    torch.testing.assert_close(torch.cat([p[1] for p in parts], 1), right[1])
    planted = torch.cat([p[5] for p in parts], 1)
    assert (planted - right[1]).abs().max() > 0.1 * right[1].abs().max()


# ------------------------------------------------------------------------------------- the objective


def made(**options: Any) -> tuple[Any, Any]:
    encoders = encoders_of("rows")
    cfg = SimDINO.Config(**{"head": HEAD, "patch_weight": 0.0, "num_local": 2, **options})
    return cfg.build(encoders, {"rows": ROWS}), encoders


def test_views_are_compared_with_the_teacher_and_only_the_student_is_trained() -> None:
    objective, encoders = made(compression_weight=0.7, epsilon=0.5)
    for parameter in objective.teacher.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    whole = rows(2)
    local = Views(x=torch.randn(16, 6), stream="rows", role="local", num_views=2)
    losses = objective(encoders, Batch([whole, local]), START)
    linear, head = encoders["rows"].linear, objective.head
    z = torch.stack([head(linear(x)) for x in [*whole.x.chunk(2), *local.x.chunk(2)]])
    slow = objective.teacher.encoders["rows"].linear
    target = torch.stack([objective.teacher["head"](slow(x)) for x in whole.x.chunk(2)])
    torch.testing.assert_close(losses.terms["compression"], -compression(z, target).detach())
    expected = -expansion((z[:2] + target) / 2, 0.5).detach()
    torch.testing.assert_close(losses.terms["expansion"], expected)
    torch.testing.assert_close(losses.total.detach(), 0.7 * losses.terms["compression"] + expected)
    losses.total.backward()
    for name, p in [*encoders.named_parameters(), *objective.named_parameters()]:
        assert (p.grad is None) == name.startswith("teacher."), name
    own = made(expand="student", epsilon=0.5)[0]
    own.load_state_dict(objective.state_dict())
    alone = own(encoders, Batch([whole, local]), START).terms["expansion"]
    torch.testing.assert_close(alone, -expansion(z[:2], 0.5).detach())


def test_the_teacher_follows_and_is_shipped() -> None:
    objective, encoders = made(teacher=Teacher.Config(ema=0.9, final_ema=0.9))
    before = [p.clone() for p in objective.teacher.parameters()]
    with torch.no_grad():
        for p in [*encoders.parameters(), *objective.head.parameters()]:
            p += 1
    objective.after_step(encoders, START)
    for p, old in zip(objective.teacher.parameters(), before, strict=True):
        torch.testing.assert_close(p, old + 0.1)
    assert objective.exported(encoders) is objective.teacher.encoders
    frozen, encoders = made(teacher=Teacher.Config(rule="frozen"))
    assert frozen.exported(encoders) is encoders


def test_hidden_tokens_are_compared_view_by_view() -> None:
    encoder = TransformerEncoder.Config(dim=16, depth=2, heads=2, init_std=0.0)
    encoders = Encoders({"pictures": encoder.build(SPEC)})
    cfg = SimDINO.Config(head=HEAD, num_local=0, patch_weight=0.5)
    objective: Any = cfg.build(encoders, {"pictures": SPEC})
    for parameter in objective.teacher.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    masks = draw_masks(objective.plans()["pictures"], "block", (4, 4), 4, RowRandom((0, 0), 0, 4, 4))
    views = Views(
        x=torch.randn(8, 3, 16, 16), stream="pictures", role="global", num_views=2, masks=tuple(masks)
    )
    losses = objective(encoders, Batch([views]), START)
    (student,) = encoders.encode([views], "replace")
    (teacher,) = objective.teacher.encoders.encode([views.with_mask(None)], "none")
    by_view = []
    for r in range(8):
        hidden = views.masks[0].hidden[r]
        pair = (objective.head(student.tokens[r]), objective.teacher["head"](teacher.tokens[r]))
        cosines = F.cosine_similarity(*pair, dim=-1)[hidden]
        by_view.append(cosines.mean() if hidden.any() else torch.zeros(()))
    assert any(v == 0 for v in by_view), "views without a mask count, too"
    torch.testing.assert_close(losses.terms["patches"], -torch.stack(by_view).mean().detach())
    weighted = losses.terms["compression"] + losses.terms["expansion"] + 0.5 * losses.terms["patches"]
    torch.testing.assert_close(losses.total.detach(), weighted)
    unmasked = Batch([views.with_mask(None)])
    with pytest.raises(ValueError, match=r"set objective\.patch_weight=0"):
        objective(encoders, unmasked, START)


def test_without_patches_no_masks_are_asked_for() -> None:
    objective, _ = made()
    plan = objective.plans()["rows"]
    assert (plan.mask_ratio, plan.num_global, plan.num_local) == (None, 2, 2)
    assert not objective.reads_tokens
    assert SimDINO.Config(patch_weight=0).maskings() == {"none"}
    assert SimDINO.Config().maskings() == {"none", "replace"}


def test_an_alarm_names_the_option() -> None:
    history = [{"step": float(s), "stats/std": 0.01} for s in range(0, 200, 10)]
    assert "raise objective.expansion_weight" in made()[0].alarm(history, START)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epsilon": 0.0}, r"objective\.epsilon=0\.0: want more than 0"),
        ({"expansion_weight": 0.0}, "every sample becomes one point"),
        ({"compression_weight": 0.0, "patch_weight": 0.0}, "are both 0"),
        ({"num_local": -1}, r"objective\.num_local=-1: want 0 or more"),
        ({"mask_ratio": (0.5, 0.1)}, r"objective\.mask_ratio=\(0\.5, 0\.1\)"),
        ({"mask_share": 0.0}, r"objective\.mask_share=0\.0"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SimDINO.Config(**options)


def test_several_streams_and_other_numbers_of_views_are_refused() -> None:
    encoders = encoders_of("a", "b")
    with pytest.raises(ValueError, match="use vicreg or lejepa"):
        SimDINO.Config(head=HEAD).build(encoders, {"a": ROWS, "b": ROWS})
    objective, encoders = made()
    with pytest.raises(ValueError, match="wants 2 global views, got 3"):
        objective(encoders, Batch([rows(3)]), START)
