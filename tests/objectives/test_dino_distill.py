"""DINOv2's distillation: the loss by a loop, what the frozen teacher is and is not, what a state holds, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multissl.config import from_dict, to_dict
from multissl.contract.encoder import Encoders
from multissl.encoders.mlp import MLPEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.learner import Learner
from multissl.layers.frozen import PrototypeTeacher
from multissl.layers.teacher import Teacher
from multissl.objectives.dino_distill import DINODistill
from tests.objectives.plain import Linear
from tests.objectives.test_dino import HEAD, OTHER, SPEC, START, Stub, batch_of, slow_total

WIDE, NARROW = TransformerEncoder.Config(dim=8, depth=1, heads=2, drop_path=0.5), HEAD.replace(hidden=6)


def build(whose: dict[str, Any] | None = None, **options: Any) -> tuple[Encoders, DINODistill]:
    """Student and objective in fp64, no two of student, average and frozen teacher alike, heads with opinions."""
    torch.manual_seed(1)
    encoders = Encoders({"rows": Stub()}).double()
    heads: dict[str, Any] = {"head": HEAD, "ibot_head": OTHER, "encoder": WIDE}
    defaults: dict[str, Any] = {"head": NARROW, "ibot_head": OTHER, "num_local": 2, "koleo_group": 4}
    defaults["frozen_teacher"] = PrototypeTeacher.Config(**(heads if whose is None else whose))
    cfg = DINODistill.Config(**defaults | options)
    objective = DINODistill(cfg, encoders, SPEC).double()
    with torch.no_grad():
        for p in objective.parameters():
            p += 0.5 * torch.randn_like(p)
    return encoders, objective


def frozen_of(objective: DINODistill) -> dict[str, nn.Module]:
    return {"encoders": objective.frozen_teacher.encoders, **dict(objective.frozen_teacher.heads.items())}


def embedding(encoders: Encoders) -> Tensor:
    return dict(encoders.named_parameters())["rows.embed.weight"]


# -------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"centering": "ema", "num_local": 0},
        {"ibot_weight": 0.0, "koleo_weight": 0.0},
        {"dino_weight": 0.0},
        {"tied_heads": True, "frozen_teacher": PrototypeTeacher.Config(head=HEAD, encoder=WIDE)},
    ],
)
def test_the_loss_is_dino_s_with_targets_of_the_frozen_teacher_and_whole_views(
    options: dict[str, Any],
) -> None:
    encoders, objective = build(**options)
    batch = batch_of(4, objective.cfg.num_local if objective.cfg.dino_weight else 0)
    expected, terms = slow_total(encoders, objective, batch, frozen_of(objective), "none")
    losses = objective(encoders, batch, START)
    torch.testing.assert_close(losses.total, expected)
    for name, value in losses.terms.items():
        torch.testing.assert_close(value, terms[name].detach())
    other, _ = slow_total(encoders, objective, batch)
    assert not torch.allclose(other, expected)


def test_no_mask_token_stands_in_the_student_and_the_frozen_teacher_learns_nothing() -> None:
    encoders, objective = build(koleo_weight=0.0)
    learner = Learner(encoders, objective).train()
    before = {n: t.clone() for n, t in objective.frozen_teacher.held().items()}
    learner(batch_of(4, 2), START).total.backward()
    assert dict(encoders.named_parameters())["rows.mask_token"].grad is None
    for name, parameter in learner.named_parameters():
        stays = name.startswith(("objective.frozen_teacher.", "objective.teacher.")) or "mask_token" in name
        assert (parameter.grad is None) == stays, name
    assert not any(m.training for m in objective.frozen_teacher.modules())
    objective.after_step(encoders, START)
    for name, tensor in objective.frozen_teacher.held().items():
        assert torch.equal(tensor, before[name]), name


def test_the_average_of_the_student_is_moved_and_shipped() -> None:
    encoders, objective = build(teacher=Teacher.Config(ema=0.5, final_ema=0.5))
    assert objective.exported(encoders) is objective.teacher.encoders
    before, student = (embedding(e).clone() for e in (objective.teacher.encoders, encoders))
    objective(encoders, batch_of(4, 2), START)
    objective.after_step(encoders, START)
    torch.testing.assert_close(embedding(objective.teacher.encoders), (before + student) / 2)
    assert objective.plans()["rows"].mask_ratio == (0.1, 0.5)
    assert DINODistill.Config().maskings() == {"none"}


def test_an_untrained_teacher_has_the_student_s_networks() -> None:
    _, objective = build(whose={})
    frozen = objective.frozen_teacher
    assert isinstance(frozen.encoder, Stub)
    assert [len(next(head.parameters())) for head in frozen.heads.values()] == [6, 8]


# ------------------------------------------------------------------------------------------ state


def test_a_state_holds_the_digest_and_no_weights_of_the_teacher() -> None:
    _, objective = build()
    objective.frozen_teacher.seal()
    state = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    assert [n for n in state if n.startswith("frozen_teacher.")] == ["frozen_teacher.digest"]
    objective.load_state_dict(state)
    with torch.no_grad():
        next(objective.frozen_teacher.heads["ibot_head"].parameters()).add_(1)
    objective.frozen_teacher.seal()
    with pytest.raises(
        ValueError, match=r"^objective\.frozen_teacher\.weights=untrained holds other weights"
    ):
        objective.load_state_dict(state)
    objective.frozen_teacher.leave_empty()
    objective.load_state_dict(state)


def test_the_config_comes_back_from_json() -> None:
    frozen = PrototypeTeacher.Config(head=HEAD, encoder=WIDE)
    cfg = DINODistill.Config(frozen_teacher=frozen, head=NARROW, tied_heads=True)
    assert from_dict(DINODistill.Config, to_dict(cfg)) == cfg


# -------------------------------------------------------------------------------------- refusals

PLACE = r"objective\.frozen_teacher\.weights=place"


@pytest.mark.parametrize(
    ("teacher", "options", "said"),
    [
        ({"head": OTHER, "ibot_head": OTHER}, {}, rf"^objective\.head\.prototypes=12: .*{PLACE} has 9 there"),
        ({"head": HEAD, "ibot_head": HEAD}, {}, rf"^objective\.ibot_head\.prototypes=9: .*{PLACE} has 12 "),
        ({"head": HEAD}, {}, rf"^objective\.ibot_weight=1\.0: .*{PLACE} has no head for tokens; set it to 0, or"),
        ({"ibot_head": OTHER}, {}, rf"^objective\.dino_weight=1\.0: .*{PLACE} has no head for views; set it to 0"),
        ({"head": HEAD, "ibot_head": HEAD}, {"tied_heads": True}, r"^objective\.tied_heads=True: .* set it to False"),
    ],
)  # fmt: skip
def test_heads_that_a_student_cannot_learn_from_are_named(
    teacher: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    frozen = PrototypeTeacher.Config(weights="place", **teacher)
    with pytest.raises(ValueError, match=said):
        DINODistill.Config(head=HEAD, ibot_head=OTHER, frozen_teacher=frozen, **options)


def test_encoders_whose_tokens_have_no_places_are_refused_unless_tokens_are_left_out() -> None:
    student = Encoders({"rows": Linear()})
    teacher: dict[str, Any] = {"encoder": MLPEncoder.Config()}
    with pytest.raises(ValueError, match=r"^encoders\.rows: sampled tokens .*objective\.ibot_weight=0"):
        DINODistill(DINODistill.Config(), student, SPEC)
    with pytest.raises(
        ValueError, match=r"^objective\.frozen_teacher\.encoder: .* those of mlp are of no places"
    ):
        build(teacher)
    _, objective = build(teacher, ibot_weight=0.0)
    assert [*objective.frozen_teacher.heads] == ["dino_head"]


def test_heads_that_nothing_asks_for_are_left() -> None:
    _, objective = build(ibot_weight=0.0)
    assert [*objective.frozen_teacher.heads] == ["dino_head"]
    with pytest.raises(ValueError, match=r"^objective\.frozen_teacher\.weights is empty: give a file"):
        PrototypeTeacher.Config(weights="")


def test_alarms_advise_what_helps_here() -> None:
    _, objective = build()
    few: list[dict[str, float]] = [
        {"step": float(s), "stats/prototype_use": 0.01} for s in range(100, 1000, 50)
    ]
    said = objective.alarm(few, START)
    assert said
    assert "objective.frozen_teacher.weights" in said
    assert "teacher.ema" not in said
