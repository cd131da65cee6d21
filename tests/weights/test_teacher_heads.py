"""Heads of a teacher: of a run's checkpoint, of a training file, of iBOT's one; what is refused, and when."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.build import build, fitted
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.checkpoint import Save, find
from multissl.engine.learner import Learner
from multissl.layers.frozen import PrototypeTeacher
from multissl.layers.heads import PrototypeHead
from multissl.objectives.dino import DINO
from multissl.objectives.dino_distill import DINODistill
from multissl.objectives.vicreg import VICReg
from multissl.parallel.state import tensors
from multissl.recipe import Recipe
from multissl.run import model
from multissl.run.train import train
from multissl.verify.small import shrunk
from multissl.weights.containers import Source
from multissl.weights.layouts.dinov2 import to_dinov2
from multissl.weights.teacher_heads import head_config, heads_of
from tests.helpers.paired_data import class_folders
from tests.weights.test_training_files import CPU, recipe, training_file

HEAD = PrototypeHead.Config(prototypes=16, bottleneck=4, hidden=8, layers=2)


def teaching(steps: int = 2) -> Recipe:
    """A DINOv2 of two blocks on small pictures."""
    made = recipe()
    made.objective = shrunk(DINO.Config())
    made.steps, made.batch_size, made.save = steps, 4, Save(every=1, keep_last=2)
    return made


def student(place: object, **options: Any) -> Recipe:
    """A student of one narrower block with heads of other widths."""
    made = teaching(3)
    made.encoders["image"] = TransformerEncoder.Config(dim=16, depth=1, heads=2)
    frozen = PrototypeTeacher.Config(weights=str(place))
    made.objective = shrunk(DINODistill.Config(frozen_teacher=frozen)).replace(
        **{"head": HEAD, "ibot_head": HEAD, "koleo_weight": 0.0} | options
    )
    return made


def trained(made: Recipe, folder: Path) -> None:
    """Train on a dozen pictures beside the run."""
    data = class_folders(folder.parent / "pictures", "png")
    train(made.replace(modality=made.modality.replace(data=data)), folder)


def made_for(recipe: Recipe) -> Any:
    """The objective of a recipe, with its teacher filled."""
    starts = model.starts_of(recipe)
    return build(fitted(recipe, starts), CPU, starts).learner.objective


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teaching") / "run"
    trained(teaching(), folder)
    return folder


# ------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("step", [1, 2, None])
def test_a_run_teaches_with_the_average_that_it_ships_and_its_heads(run: Path, step: int | None) -> None:
    objective = made_for(student(run if step is None else f"{run}@{step}"))
    saved = tensors(find(run / "checkpoints")[(step or 2) - 1])
    frozen = objective.frozen_teacher
    inside = "learner/objective.teacher.now."
    wanted = {n.removeprefix(inside): t for n, t in saved.items() if n.startswith(inside)}
    parts = {"encoders": frozen.encoders, **dict(frozen.heads.items())}
    found = {f"{part}.{n}": t for part, module in parts.items() for n, t in module.state_dict().items()}
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name]), name
    assert [h.mlp[0].out_features for h in (objective.dino_head, frozen.heads["dino_head"])] == [8, 16]


def test_a_distilled_run_is_resumed_exactly_with_the_same_teacher_alone_and_read_without(
    run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "teacher")
    made = student(tmp_path / "teacher")
    trained(made, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(find(tmp_path / "killed" / "checkpoints")[-1])  # as if it had ended before the last step
    (tmp_path / "killed" / "summary.json").unlink()
    trained(made, tmp_path / "killed")
    killed, whole = (tensors(find(tmp_path / f / "checkpoints")[-1]) for f in ("killed", "whole"))
    assert killed.keys() == whole.keys()
    assert not [n for n in whole if "frozen_teacher" in n and not n.endswith("digest")]
    for name, tensor in whole.items():
        assert torch.equal(tensor, killed[name]), name
    shutil.rmtree(
        find(tmp_path / "teacher" / "checkpoints")[-1]
    )  # what is its newest now holds other weights
    with pytest.raises(ValueError, match=r"frozen_teacher\.weights=.*teacher holds other weights than those"):
        trained(made.replace(steps=4), tmp_path / "killed")
    shutil.rmtree(tmp_path / "teacher")
    read = model.load(f"{tmp_path / 'whole'}@2").encoders["image"]
    saved = tensors(find(tmp_path / "whole" / "checkpoints")[0])
    for name, tensor in read.state_dict().items():
        assert torch.equal(tensor, saved[f"learner/objective.teacher.now.encoders.image.{name}"]), name


# ------------------------------------------------------------------------------------------ files


def written(folder: Path, contents: dict[str, Any]) -> str:
    torch.save(contents, folder / "teacher_checkpoint.pth")
    return f"dinov2:{folder / 'teacher_checkpoint.pth'}"


@pytest.fixture(scope="module")
def theirs() -> Learner:
    learner = build(recipe(), CPU).learner
    with torch.no_grad():
        for tensor in learner.parameters():
            tensor += 0.1 * torch.randn_like(tensor)
    return learner


def test_a_training_file_teaches_with_its_average_and_the_heads_of_that(
    theirs: Learner, tmp_path: Path
) -> None:
    encoder = TransformerEncoder.Config(heads=3)  # which names of DINOv2 do not tell of this width
    place = written(tmp_path, training_file(theirs))
    frozen = PrototypeTeacher.Config(weights=place, encoder=encoder)
    objective = made_for(student(place, frozen_teacher=frozen))
    source: Any = theirs.objective
    for name, head in objective.frozen_teacher.heads.items():
        for n, tensor in head.state_dict().items():
            assert torch.equal(tensor, source.teacher[name].state_dict()[n]), n
    right = source.teacher.encoders["image"].state_dict()
    for n, tensor in objective.frozen_teacher.encoder.state_dict().items():
        assert torch.equal(tensor, right[n]), n


def ibot_head(shared: bool) -> dict[str, Tensor]:
    """The head of iBOT's files, with prototypes of tokens behind the same layers."""
    head = HEAD.build(24).state_dict()
    last = {n: t for n, t in head.items() if n.startswith("last_layer.")}
    tokens = {n.replace("last_layer.", "last_layer2."): t if shared else t + 1 for n, t in last.items()}
    return head | tokens


def test_prototypes_of_tokens_in_ibot_s_head_are_a_second_head_unless_they_are_shared() -> None:
    for shared in (True, False):
        given = ibot_head(shared)
        heads = heads_of(Source({"teacher": {f"head.{n}": t for n, t in given.items()}}))
        assert [*heads] == ["dino_head"] if shared else ["dino_head", "ibot_head"]
        for name, head in heads.items():
            assert head.keys() == HEAD.build(24).state_dict().keys()
            other = "last_layer" if name == "dino_head" else "last_layer2"
            assert torch.equal(head["last_layer.weight_v"], given[f"{other}.weight_v"])
            assert torch.equal(head["mlp.0.weight"], given["mlp.0.weight"])


@pytest.mark.parametrize(
    "head",
    [
        HEAD,
        HEAD.replace(layers=1, hidden=4),
        HEAD.replace(layers=3, norm="batch"),
        HEAD.replace(bias=False, gain="none"),
    ],
)
def test_the_options_of_a_head_are_read_from_its_tensors(head: PrototypeHead.Config) -> None:
    assert head_config(head.build(12).state_dict()) == head


# --------------------------------------------------------------------------------------- refusals


def test_a_teacher_without_its_heads_is_refused_with_what_to_name_instead(
    run: Path, theirs: Learner, tmp_path: Path
) -> None:
    encoder: Any = theirs.encoders["image"]
    alone = written(tmp_path, to_dinov2(encoder))
    for place, said in (
        (alone, "it holds an encoder without its heads: name a run of dino that keeps a checkpoint"),
        (run / "encoder.safetensors", "it holds an encoder without its heads"),
    ):
        with pytest.raises(ValueError, match=rf"^objective\.frozen_teacher\.weights={place}: {said}"):
            made_for(student(place))


def test_a_run_of_another_objective_or_modality_or_patch_is_refused(run: Path, tmp_path: Path) -> None:
    other = teaching(1)
    other.objective = shrunk(VICReg.Config())
    trained(other, tmp_path / "vicreg")
    with pytest.raises(
        ValueError, match=r"frozen_teacher\.weights=.*vicreg: it was trained by vicreg, which has no"
    ):
        made_for(student(tmp_path / "vicreg"))
    elsewhere = student(run)
    elsewhere.encoders = {"audio": elsewhere.encoders["image"]}
    with pytest.raises(
        ValueError, match=r"frozen_teacher\.weights=.*its run reads image and the student audio: take"
    ):
        fitted(elsewhere, model.starts_of(elsewhere))
    coarse = student(run)
    coarse.modality = coarse.modality.replace(patch=8)
    with pytest.raises(
        ValueError, match=r"it reads patches of 4 x 4 and the student of 8 x 8, .*--modality\.patch 4\)"
    ):
        made_for(coarse)


def test_prototypes_of_another_number_and_no_checkpoint_are_said_before_anything_is_built(
    run: Path, tmp_path: Path
) -> None:
    made = student(run, head=HEAD.replace(prototypes=12))
    with pytest.raises(ValueError, match=r"^objective\.head\.prototypes=12: .* has 16 there"):
        fitted(made, model.starts_of(made))
    for each in find(run / "checkpoints"):
        each.rename(tmp_path / each.name)
    try:
        with pytest.raises(ValueError, match=r"keeps no checkpoint, and what a run ships has no heads"):
            model.starts_of(student(run))
    finally:
        for each in tmp_path.glob("step_*"):
            each.rename(run / "checkpoints" / each.name)
