"""A training file of DINO, iBOT or DINOv2 gives heads, centers and the slow copy beside the encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.build import build
from multissl.configs.image import dino
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.learner import Learner
from multissl.objectives.dino import DINO
from multissl.objectives.vicreg import VICReg
from multissl.recipe import Recipe
from multissl.verify.small import shrunk
from multissl.weights.layouts.dinov2 import to_dinov2
from multissl.weights.training_files import parts_of

CPU = torch.device("cpu")


def recipe(place: object = "", **options: Any) -> Recipe:
    made = dino.default()
    made.modality = made.modality.replace(size=16, local_size=8, patch=4)
    made.encoders["image"] = TransformerEncoder.Config(dim=24, depth=2, heads=3, layerscale=1e-5)
    made.objective = shrunk(DINO.Config(centering="ema")).replace(**options)
    made.init, made.evals = str(place), {}
    return made


@pytest.fixture(scope="module")
def theirs() -> Learner:
    """A training whose student, teacher and centers are unlike each other."""
    learner = build(recipe(), CPU).learner
    assert isinstance(learner.objective, DINO)
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in (*learner.parameters(), *learner.objective.centers.buffers()):
            tensor += 0.1 * torch.randn_like(tensor)
    return learner


def side(encoder: Any, heads: Any, prefix: str) -> dict[str, Tensor]:
    """One of the two networks, under official names."""
    state = {f"{prefix}backbone.{n}": t for n, t in to_dinov2(encoder).items()}
    for name in ("dino_head", "ibot_head"):
        state |= {f"{prefix}{name}.{n}": t for n, t in heads[name].state_dict().items()}
    return state


def training_file(learner: Learner) -> dict[str, Any]:
    """What DINOv2's training writes."""
    objective: Any = learner.objective
    student = {"dino_head": objective.dino_head, "ibot_head": objective.ibot_head}
    centers = {
        "dino_loss.center": objective.centers["dino"].center[None],
        "ibot_patch_loss.center": objective.centers["ibot"].center[None, None],
    }
    return {
        "model": side(learner.encoders["image"], student, "student.")
        | side(objective.teacher.encoders["image"], objective.teacher.now, "teacher.")
        | centers,
        "iteration": 7,
    }


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(
        "multissl.weights.training_files.tell", lambda text, *values: lines.append(text % values)
    )
    return lines


def written(folder: Path, contents: dict[str, Any]) -> Path:
    torch.save(contents, folder / "model_0000007.rank_0.pth")
    return folder / "model_0000007.rank_0.pth"


def learner_from(place: Path, **options: Any) -> Learner:
    return build(recipe(f"dinov2:{place}", **options), CPU).learner


def test_a_training_goes_on_from_all_that_its_file_holds(
    theirs: Learner, tmp_path: Path, said: list[str]
) -> None:
    ours = learner_from(written(tmp_path, training_file(theirs)))
    state = ours.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor.nan_to_num(7), state[name].nan_to_num(7)), name
    (line,) = said
    assert line == (
        "beside the encoder the objective goes on from the file's student.backbone, student.dino_head, "
        "student.ibot_head, teacher.dino_head, teacher.ibot_head, dino_center, ibot_center"
    )


def test_parts_of_other_sizes_begin_anew_and_are_said(
    theirs: Learner, tmp_path: Path, said: list[str]
) -> None:
    place = written(tmp_path, training_file(theirs))
    head = shrunk(DINO.Config()).head.replace(prototypes=8)
    objective: Any = learner_from(place, head=head).objective
    other: Any = theirs.objective
    for name, tensor in objective.ibot_head.state_dict().items():
        assert torch.equal(tensor, other.ibot_head.state_dict()[name]), name
    assert "dino_head" not in said[0].replace("ibot_head", "")
    assert "dino_center (it has 16 prototypes, the objective 8)" in said[1]
    assert "student.dino_head (last_layer.weight_g is (16, 1), the objective's (8, 1))" in said[1]


def test_a_teacher_alone_gives_the_student_the_same(theirs: Learner, tmp_path: Path, said: list[str]) -> None:
    objective: Any = theirs.objective
    state = side(objective.teacher.encoders["image"], objective.teacher.now, "")
    ours: Any = learner_from(written(tmp_path, {"teacher": state}))
    for mine in (ours.objective.dino_head, ours.objective.teacher["dino_head"]):
        for name, tensor in objective.teacher["dino_head"].state_dict().items():
            assert torch.equal(tensor, mine.state_dict()[name]), name
    right = objective.teacher.encoders["image"].state_dict()
    for encoders in (ours.encoders, ours.objective.teacher.encoders):
        assert all(torch.equal(t, right[n]) for n, t in encoders["image"].state_dict().items())
    assert "center" not in said[0]


def test_names_of_dino_and_ibot_and_of_newer_weight_norms_are_read() -> None:
    x = torch.ones(2, 3)
    dino = {
        "student": {"module.backbone.norm.bias": x, "module.head.mlp.0.weight": x},
        "teacher": {"backbone.norm.bias": x, "head.last_layer.parametrizations.weight.original1": x},
        "dino_loss": {"center": x},
        "optimizer": {"state": {0: {"exp_avg": x}}},
    }
    parts = parts_of(dino)
    assert set(parts) == {
        "student.backbone", "student.dino_head", "teacher.backbone", "teacher.dino_head", "dino_center"
    }  # fmt: skip
    assert set(parts["teacher.dino_head"]) == {"last_layer.weight_v"}
    assert set(parts_of({"ibot_loss": {"center": x, "center2": x}})) == {"dino_center", "ibot_center"}
    assert parts_of({"blocks.0.norm1.weight": x}) == {}


def test_an_objective_without_such_parts_takes_the_encoder_alone(
    theirs: Learner, tmp_path: Path, said: list[str]
) -> None:
    made = recipe(f"dinov2:{written(tmp_path, training_file(theirs))}")
    made.objective = shrunk(VICReg.Config())
    learner = build(made, CPU).learner
    right: Any = theirs.objective
    for name, tensor in right.teacher.encoders["image"].state_dict().items():
        if name != "tokenizer.mask_token":
            assert torch.equal(tensor, learner.encoders["image"].state_dict()[name]), name
    assert not said
