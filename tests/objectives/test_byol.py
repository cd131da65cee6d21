from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multissl.config import Config
from multissl.contract.data import Batch, Views
from multissl.contract.learning import Progress
from multissl.layers.heads import RankBatchNorm
from multissl.layers.teacher import Teacher
from multissl.losses.byol import byol_loss
from multissl.losses.common import embedding_std
from multissl.objectives.byol import BYOL
from tests.helpers.ranks import run_ranks
from tests.objectives.plain import HEAD, ROWS, START, alone_and_beside, encoders_of, rows

OTHER = ~torch.eye(2, dtype=torch.bool)


def made(streams: tuple[str, ...] = ("rows",), spec: Any = ROWS, **options: Any) -> tuple[Any, Any]:
    encoders = encoders_of(*streams)
    cfg = BYOL.Config(**{"projector": HEAD, "predictor": HEAD, **options})
    return BYOL(cfg, encoders, {stream: spec for stream in streams}), encoders


# -------------------------------------------------------------------------------------- the loss


def test_equal_vectors_cost_nothing_orthogonal_ones_2_and_opposite_ones_4() -> None:
    p = torch.eye(4).expand(2, 4, 4)
    for z, cost in ((3 * p, 0.0), (p.roll(1, -1), 2.0), (-p, 4.0)):
        torch.testing.assert_close(byol_loss(p, z, OTHER), torch.tensor(cost))


def test_conventions_of_byol_and_simsiam_agree() -> None:
    p, z = torch.randn(2, 8, 5), torch.randn(2, 8, 5)
    cos = torch.cosine_similarity(p, z.flip(0), dim=-1).mean()
    mean, total = byol_loss(p, z, OTHER), byol_loss(p, z, OTHER, "sum")
    torch.testing.assert_close((mean - 2) / 2, -cos)
    torch.testing.assert_close(total, 4 - 4 * cos)


def test_a_scale_of_a_half_is_simsiams_loss_and_none_is_refused() -> None:
    assert BYOL.Config(scale=0.5).scale == 0.5
    assert BYOL.Config().scale == 1.0
    with pytest.raises(ValueError, match=r"objective\.scale"):
        BYOL.Config(scale=0.0)


def test_missing_samples_count_for_nothing() -> None:
    p, z = torch.randn(2, 8, 5), torch.randn(2, 8, 5)
    there = torch.ones(2, 8, dtype=torch.bool)
    there[0, 2] = there[1, 5] = False
    spoilt_p, kept_p = alone_and_beside(p, there)
    spoilt_z, kept_z = alone_and_beside(z, there)
    pairs = OTHER[:, :, None] & there[:, None] & there
    torch.testing.assert_close(byol_loss(spoilt_p, spoilt_z, pairs), byol_loss(kept_p, kept_z, OTHER))
    assert byol_loss(p, z, pairs & False) == 0


def test_half_precision_inputs_are_computed_in_full() -> None:
    p, z = torch.randn(2, 64, 32), torch.randn(2, 64, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = byol_loss(p.bfloat16(), z.bfloat16(), OTHER)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, byol_loss(p, z, OTHER), rtol=0, atol=0.01)
    assert byol_loss(p.double(), z.double(), OTHER).dtype == torch.float64


def grad(rank: int, p: Tensor, z: Tensor, pairs: Tensor, ranks: int) -> Tensor:
    mine = p.chunk(ranks, 1)[rank].clone().requires_grad_()
    some = pairs.chunk(ranks, 2)[rank]
    return torch.autograd.grad(byol_loss(mine, z.chunk(ranks, 1)[rank], some), mine)[0] / ranks


@pytest.mark.ranks
def test_two_ranks_that_miss_different_samples_give_the_gradient_of_one() -> None:
    p, z = torch.randn(2, 8, 5), torch.randn(2, 8, 5)
    there = torch.ones(2, 8, dtype=torch.bool)
    there[0, :3] = False  # all on the first rank
    pairs = OTHER[:, :, None] & there[:, None] & there
    found = torch.cat(run_ranks(2, grad, p, z, pairs, 2), 1)
    torch.testing.assert_close(found, grad(0, p, z, pairs, 1))


# --------------------------------------------------------------------------------- the objective


def test_only_the_student_has_a_gradient_and_the_teacher_follows_slowly() -> None:
    objective, encoders = made(teacher=Teacher.Config(ema=0.9, final_ema=0.9, buffers="keep"))
    batch = Batch([rows()])
    objective(encoders, batch, START).total.backward()
    assert all(p.grad is not None for p in encoders.parameters())
    for name, p in objective.named_parameters():
        assert (p.grad is None) == name.startswith("teacher."), name
    assert not [n for n, _ in objective.teacher.named_parameters() if "predictor" in n]
    before = copy.deepcopy(objective.teacher.state_dict())
    with torch.no_grad():
        for p in [*encoders.parameters(), *objective.projectors.parameters()]:
            p += 1
    objective.after_step(encoders, START)
    for name, p in objective.teacher.named_parameters():
        torch.testing.assert_close(p, before[name] + 0.1)


def test_the_teacher_normalizes_by_the_batch_and_keeps_its_own_statistics() -> None:
    objective, encoders = made()
    objective.train()
    norms = [m for m in objective.teacher.modules() if isinstance(m, RankBatchNorm)]
    assert norms
    assert all(m.training for m in norms)
    objective(encoders, Batch([rows()]), START)
    student = [m for m in objective.projectors.modules() if isinstance(m, RankBatchNorm)]
    moved = norms[0].running_mean.clone()
    assert moved.abs().sum() > 0
    with torch.no_grad():
        student[0].running_mean += 1
    objective.after_step(encoders, START)
    assert torch.equal(norms[0].running_mean, moved)


def test_heads_take_the_views_apart() -> None:
    """A view that is shifted and scaled as a whole leaves a batch norm of its own unmoved."""
    objective, encoders = made(projector=HEAD.replace(last_norm=True))
    objective.train()
    x = torch.randn(16, 6)
    moved = torch.cat([x[:8], 3 * x[8:] + 2])

    def costs(x: Tensor) -> Tensor:
        views = Views(x=x, stream="rows", role="global", num_views=2)
        return objective(encoders, Batch([views]), START).total.detach()

    torch.testing.assert_close(costs(moved), costs(x), rtol=1e-3, atol=1e-3)


def test_simsiam_has_no_teacher_and_stops_the_gradient() -> None:
    objective, encoders = made(target="student")
    assert objective.teacher is None
    assert not [n for n in objective.state_dict() if "teacher" in n]
    batch = Batch([rows()])
    losses = objective(encoders, batch, START)
    assert objective.exported(encoders) is encoders
    stopped = torch.autograd.grad(losses.total, list(encoders.parameters()))
    through, _ = made(target="student", stop_gradient=False)
    through.load_state_dict(objective.state_dict())
    other = torch.autograd.grad(through(encoders, batch, START).total, list(encoders.parameters()))
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(stopped, other, strict=True))


@pytest.mark.parametrize(
    ("options", "collapses"),
    [({}, False), ({"stop_gradient": False, "use_predictor": False}, True)],
)
def test_the_spread_tells_a_deliberate_collapse_from_learning(
    options: dict[str, Any], collapses: bool
) -> None:
    wide = HEAD.replace(hidden=32, out=16)
    objective, encoders = made(target="student", projector=wide, predictor=wide, **options)
    parameters = [*encoders.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.2, momentum=0.9)
    x = torch.randn(32, 6)
    losses = None
    for _ in range(150):
        views = [torch.cat([x + 0.5 * torch.randn_like(x), x + 0.5 * torch.randn_like(x)])]
        batch = Batch([Views(x=views[0], stream="rows", role="global", num_views=2)])
        losses = objective(encoders, batch, START)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert losses is not None
    assert (losses.stats["std"] < 0.2) == collapses


def test_an_alarm_names_the_option_that_let_embeddings_collapse() -> None:
    history = [{"step": float(s), "stats/std": 0.01} for s in range(0, 200, 10)]
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "raise objective.teacher.ema"),
        ({"use_predictor": False}, "objective.use_predictor"),
        ({"target": "student", "stop_gradient": False}, "objective.stop_gradient"),
    ]
    for options, way in cases:
        assert way in made(**options)[0].alarm(history, START)
    assert made()[0].alarm([{**h, "stats/std": 0.9} for h in history], START) is None


def test_streams_predict_each_other() -> None:
    objective, encoders = made(("a", "b"))
    assert [(p.num_clean, p.num_global) for p in objective.plans().values()] == [(1, 0), (1, 0)]
    batch = Batch([rows(1, stream="a"), rows(1, stream="b")])
    losses = objective(encoders, batch, START)
    losses.total.backward()
    assert all(p.grad is not None for p in [*encoders.parameters(), *objective.predictors.parameters()])
    present = torch.arange(8) < 5
    objective.eval()  # running statistics, so that rows do not touch each other
    gaps = Batch([replace(batch[0], present=present), batch[1]])
    whole = Batch(replace(v, x=v.x[:5]) for v in batch)
    torch.testing.assert_close(
        objective(encoders, gaps, START).total, objective(encoders, whole, START).total
    )


def test_actions_lead_from_a_view_to_the_next() -> None:
    spec = replace(ROWS, condition_dim=3)
    objective, encoders = made(spec=spec)
    objective.eval()
    condition = torch.randn(24, 3)
    batch, first = rows(3, condition=condition), condition.clone()
    loss = objective(encoders, Batch([batch]), START).total
    first[:8] = 9  # what led to the first view is nobody's question
    assert torch.equal(objective(encoders, Batch([replace(batch, condition=first)]), START).total, loss)
    first[8:] += 1
    assert not torch.equal(objective(encoders, Batch([replace(batch, condition=first)]), START).total, loss)
    with pytest.raises(ValueError, match="promises conditions of 3 values and gives none"):
        objective(encoders, Batch([rows(3)]), START)
    with pytest.raises(ValueError, match="nobody to read the actions"):
        made(spec=spec, use_predictor=False)


def test_the_predictor_may_keep_its_learning_rate() -> None:
    assert made()[0].param_rules() == []
    objective, _ = made(constant_predictor_lr=True)
    (rule,) = objective.param_rules()
    assert rule.constant
    kept, names = {id(p) for p in rule.parameters()}, [n for n, _ in objective.named_parameters()]
    assert [n for n, p in objective.named_parameters() if id(p) in kept] == [
        n for n in names if n.startswith("predictors.")
    ]


def test_export_is_the_student_unless_the_teacher_is_asked_for() -> None:
    objective, encoders = made()
    assert objective.exported(encoders) is encoders
    objective, encoders = made(export="teacher")
    assert objective.exported(encoders) is objective.teacher["encoders"]


def test_state_is_the_whole_truth() -> None:
    objective, encoders = made()
    objective(encoders, Batch([rows()]), START)
    objective.after_step(encoders, Progress(step=0, total=10))
    again, _ = made()
    again.load_state_dict(objective.state_dict())
    batch = Batch([rows()])
    assert torch.equal(again(encoders, batch, START).total, objective(encoders, batch, START).total)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"predictor": HEAD.replace(out=7)},
            r"objective\.predictor\.out=7: want objective\.projector\.out=5",
        ),
        ({"target": "student", "export": "teacher"}, "objective.export=teacher"),
        ({"stop_gradient": False}, "objective.stop_gradient=False.*target=student"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BYOL.Config(**{"projector": HEAD, "predictor": HEAD, **options})


def test_spread_of_a_point_and_of_a_sphere() -> None:
    assert embedding_std(torch.ones(2, 8, 4)) == 0
    assert 0.9 < embedding_std(torch.randn(2, 512, 64)) < 1.0
    assert isinstance(BYOL.Config(), Config)
    assert isinstance(made()[0], nn.Module)
