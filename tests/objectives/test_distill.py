"""Distillation: distances against loops, grids, several teachers, what checkpoints hold, runs as teachers, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.build import build, fitted
from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoders
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.checkpoint import Save, find
from multissl.layers.frozen import FrozenTeacher
from multissl.layers.heads import MLPHead
from multissl.losses.distill import feature_errors, grid_of, resample
from multissl.losses.phi_s import hadamard
from multissl.objectives.distill import Distill
from multissl.parallel.state import tensors
from multissl.recipe import Recipe
from multissl.run import model
from multissl.run.train import train
from multissl.weights.layouts.dinov2 import official_names
from multissl.weights.teachers import fill_teachers, teachers_of
from tests.helpers import stubs
from tests.objectives.plain import START

GRID = StreamSpec(kind="grid", shape=(3, 16, 16), patch=(4, 4), num_tokens=16)
SMALL = TransformerEncoder.Config(dim=16, depth=1, heads=2, init_std=0.0)
WIDE = TransformerEncoder.Config(dim=24, depth=1, heads=2, init_std=0.0)
HEAD = MLPHead.Config(hidden=8, layers=2, norm="layer")


def made(
    teachers: dict[str, FrozenTeacher.Config] | None = None, streams: str = "a", **options: Any
) -> tuple[Any, Encoders]:
    encoders = Encoders({s: SMALL.build(GRID) for s in streams})
    own = teachers or {"main": FrozenTeacher.Config(encoder=WIDE)}
    cfg = Distill.Config(**{"teachers": own, "head": HEAD, **options})
    return cfg.build(encoders, dict.fromkeys(streams, GRID)), encoders


def views(stream: str = "a", role: Any = "global", count: int = 1, batch: int = 6, **extra: Any) -> Views:
    x = torch.randn(count * batch, 3, 16, 16)
    return Views(x=x, stream=stream, role=role, num_views=count, **extra)


# ------------------------------------------------------------------------------------- the losses


def test_distances_are_those_of_their_names() -> None:
    pred, target = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    away = 1 - F.cosine_similarity(pred, target, dim=-1)
    difference = (pred - target).abs()
    near = torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean(-1)
    torch.testing.assert_close(feature_errors(pred, target, "cosine"), away)
    torch.testing.assert_close(feature_errors(pred, target, "smooth_l1"), near)
    torch.testing.assert_close(feature_errors(pred, target, "mixed"), 0.9 * away + 0.1 * near)
    torch.testing.assert_close(feature_errors(pred, target, "mse"), difference.square().mean(-1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert feature_errors(pred.bfloat16(), target, "mixed").dtype == torch.float32


def test_tokens_of_a_smaller_grid_are_means_and_a_plane_stays_a_plane() -> None:
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    plane = torch.stack([row, column]).flatten(1).T[None]  # [1, 64, 2]
    small = resample(plane, (8, 8), (4, 4)).unflatten(1, (4, 4))
    torch.testing.assert_close(small[0, 1:3, 1:3, 0], torch.tensor([[2.5, 2.5], [4.5, 4.5]]))
    assert resample(plane, (8, 8), (8, 8)) is plane
    assert resample(torch.randn(2, 6, 3), (6,), (4,)).shape == (2, 4, 3)
    assert resample(torch.randn(2, 8, 3), (2, 2, 2), (1, 2, 2)).shape == (2, 4, 3)
    assert grid_of(16, (8, 8)) == (4, 4)
    assert grid_of(8, (4, 8)) == (2, 4)
    with pytest.raises(ValueError, match="15 tokens lie on no grid"):
        grid_of(15, (8, 8))
    with pytest.raises(ValueError, match="on no grid"):
        grid_of(3, ())


@pytest.mark.parametrize("size", [1, 2, 12, 20, 24, 28, 36, 6, 7, 384])
def test_hadamard_matrices_are_orthogonal_and_even_where_there_are_any(size: int) -> None:
    matrix = hadamard(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    if size not in (6, 7):
        torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, size**-0.5))
    assert torch.equal(matrix, hadamard(size))


# ----------------------------------------------------------------------------------- the objective


def test_a_student_is_compared_with_each_teacher_by_heads_of_its_own() -> None:
    objective, encoders = made(
        {
            "one": FrozenTeacher.Config(encoder=WIDE, weight=0.5),
            "two": FrozenTeacher.Config(encoder=SMALL, patch=(8, 8)),
        },
        pooled_weight=2.0,
        num_views=2,
    )
    assert objective.plans()["a"].num_global == 2
    shown = views(count=2)
    losses = objective(encoders, Batch([shown]), START)
    (own,) = encoders.encode([shown])
    total = torch.zeros(())
    for name, weight in (("one", 0.5), ("two", 1.0)):
        (seen,) = objective.teachers[name].encoders.encode([shown])
        pred = objective.heads[f"{name}/pooled/a"](own.pooled)
        pooled = (1 - F.cosine_similarity(pred, seen.pooled, dim=-1)).mean()
        tokens = seen.tokens if name == "one" else resample(seen.tokens, (2, 2), (4, 4))
        apart = F.smooth_l1_loss(
            objective.heads[f"{name}/tokens/a"](own.tokens.flatten(0, 1)), tokens.flatten(0, 1)
        )
        torch.testing.assert_close(losses.terms[f"{name}/pooled"], pooled.detach())
        torch.testing.assert_close(losses.terms[f"{name}/tokens"], apart.detach())
        total = total + weight * (2 * pooled + apart)
    torch.testing.assert_close(losses.total.detach(), total.detach())
    losses.total.backward()
    assert any(p.grad is not None for p in encoders.parameters())
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is None) == name.startswith("teachers."), name


def test_a_teacher_of_another_stream_teaches_what_is_pooled_of_samples_that_have_both() -> None:
    teachers = {"seeing": FrozenTeacher.Config(encoder=WIDE, stream="b")}
    objective, encoders = made(teachers, "ab", students=("a",))
    assert [p.num_clean for p in objective.plans().values()] == [1, 1]
    present = torch.arange(6) != 2
    batch = Batch([views("a", "clean"), views("b", "clean", present=present)])
    losses = objective(encoders, batch, START)
    assert [*losses.terms] == ["seeing/pooled"]
    some = torch.tensor([0, 1, 3, 4, 5])
    whole = Batch([batch[0].samples(some), replace(batch[1].samples(some), present=None)])
    torch.testing.assert_close(losses.total, objective(encoders, whole, START).total)
    shipped = objective.exported(encoders)
    assert shipped["a"] is encoders["a"]
    assert shipped["b"] is objective.teachers["seeing"].encoder
    with pytest.raises(ValueError, match="pooled_weight=0 leaves nothing to compare"):
        made(teachers, "ab", students=("a",), pooled_weight=0.0)


def test_a_teacher_stays_in_evaluation_mode_and_has_no_gradient() -> None:
    objective, _ = made({"main": FrozenTeacher.Config(encoder=WIDE.replace(drop_path=0.5))})
    objective.train()
    assert not any(m.training for m in objective.teachers["main"].modules())
    assert not any(p.requires_grad for p in objective.teachers.parameters())


def test_balanced_targets_have_a_variance_of_one_and_what_was_measured_stays() -> None:
    objective, encoders = made(balance="phi_s", pooled="mse", tokens="mse")
    shown = views(batch=40)
    objective(encoders, Batch([shown]), START)
    balance = objective.balances["main/tokens"]
    (seen,) = objective.teachers["main"].encoders.encode([shown])
    flat = seen.tokens.flatten(0, 1).detach()
    variance = ((flat - balance.mean) @ balance.turn.T).var(0)
    torch.testing.assert_close(variance, torch.ones(24), rtol=1e-4, atol=0)
    assert variance.sum() < 25
    before = {n: b.clone() for n, b in objective.balances.named_buffers()}
    objective(encoders, Batch([views(batch=40)]), START)
    for name, buffer in objective.balances.named_buffers():
        assert torch.equal(buffer, before[name]), name
    again, others = made(balance="phi_s", pooled="mse", tokens="mse")
    for mine, theirs in ((again.teachers["main"], objective.teachers["main"]),):
        mine.encoders.load_state_dict(theirs.encoders.state_dict())
        mine.seal()
    again.load_state_dict(objective.state_dict())
    again(others, Batch([views(batch=40)]), START)  # goes on with what it has
    for name, buffer in again.balances.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_what_is_not_finite_is_not_measured_and_a_step_that_does_not_count_forgets_nothing() -> None:
    objective, encoders = made(balance="phi_s")
    bad = views(batch=40)
    bad.x = bad.x * float("nan")
    objective(encoders, Batch([bad]), START)
    assert not objective.balances["main/pooled"].measured
    objective(encoders, Batch([views(batch=40)]), START)
    turn = objective.balances["main/pooled"].turn.clone()
    for buffer in objective.balances.buffers():  # as the trainer puts them back
        buffer.zero_()
    objective(encoders, Batch([views(batch=40)]), START)
    assert torch.equal(objective.balances["main/pooled"].turn, turn)


# ------------------------------------------------------------------------------------------ state


def test_a_state_holds_the_digest_of_a_teacher_and_none_of_its_weights() -> None:
    objective, _ = made()
    state = objective.state_dict()
    assert [n for n in state if n.startswith("teachers.")] == ["teachers.main.digest"]
    objective.load_state_dict(state)
    other, _ = made()
    with pytest.raises(ValueError, match=r"objective\.teachers\.main\.weights=untrained holds other weights"):
        other.load_state_dict(state)


# ------------------------------------------------------------------------------------------ runs


def recipe(steps: int = 6) -> Recipe:
    """Points read by a transformer of one block."""
    made = stubs.recipe()
    made.encoders = {"points": TransformerEncoder.Config(dim=16, depth=1, heads=2)}
    made.steps, made.save = steps, made.save.__class__(every=3)
    return made


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Recipe]:
    """The folder of a teacher's run, that of a student's, and the student's recipe."""
    root = tmp_path_factory.mktemp("distilled")
    train(recipe(), root / "teacher")
    student = recipe()
    student.encoders = {"points": TransformerEncoder.Config(dim=8, depth=1, heads=2)}
    teacher = FrozenTeacher.Config(weights=str(root / "teacher"))
    student.objective = Distill.Config(teachers={"main": teacher}, head=HEAD, balance="phi_s")
    train(student, root / "student")
    return root / "teacher", root / "student", student


def test_a_run_is_a_teacher_whose_architecture_its_recipe_tells(taught: tuple[Path, Path, Recipe]) -> None:
    teacher, student, _ = taught
    options = json.loads((student / "recipe.json").read_text())["objective"]["teachers"]["main"]
    assert options["encoder"]["dim"] == 16
    saved = tensors(find(student / "checkpoints")[-1])
    inside = [n for n in saved if "teachers" in n]
    assert [n.rpartition(".")[2] for n in inside] == ["digest"]
    assert model.load(student).encoders["points"].dim == 8
    early = (
        model.load(f"{student}@3").encoders["points"].state_dict()
    )  # for which the teacher is not asked for
    for name, tensor in early.items():
        assert torch.equal(
            tensor, tensors(find(student / "checkpoints")[0])[f"learner/encoders.points.{name}"]
        )
    (own,) = stubs_of(student)
    right = model.load(teacher).encoders["points"].state_dict()
    for name, tensor in own.encoder.state_dict().items():
        assert torch.equal(tensor, right[name]), name


def stubs_of(student: Path) -> list[FrozenTeacher]:
    """The teachers of a run, filled again."""
    cfg = model.load(student).recipe
    encoders = Encoders({"points": cfg.encoders["points"].build(spec())})
    objective = cfg.objective.build(encoders, {"points": spec()})
    fill_teachers(objective)
    return [m for m in objective.modules() if isinstance(m, FrozenTeacher)]


def spec() -> StreamSpec:
    return StreamSpec(kind="columns", shape=(6,), num_tokens=6)


def test_a_run_goes_on_with_the_same_teacher_and_not_with_another(
    taught: tuple[Path, Path, Recipe], tmp_path: Path
) -> None:
    teacher, student, made = taught
    longer = made.replace(steps=9)
    train(longer, student)
    whole = tmp_path / "whole"
    train(longer, whole)
    for name, tensor in tensors(find(whole / "checkpoints")[-1]).items():
        assert torch.equal(tensor, tensors(find(student / "checkpoints")[-1])[name]), name
    train(recipe(9), teacher)  # the teacher learns on
    with pytest.raises(ValueError, match="holds other weights than those that the run was trained with"):
        train(made.replace(steps=12), student)


def test_a_checkpoint_of_a_run_is_a_teacher(tmp_path: Path) -> None:
    run = tmp_path / "teacher"
    train(recipe(4).replace(save=Save(every=2, keep_last=2)), run)
    student = recipe()
    student.objective = Distill.Config(teachers={"main": FrozenTeacher.Config(weights=f"{run}@2")}, head=HEAD)
    starts = model.starts_of(student)
    parts = build(fitted(student, starts), torch.device("cpu"), starts)
    (own,) = teachers_of(parts.learner.objective)
    early, late = (model.load(place).encoders["points"].state_dict() for place in (f"{run}@2", run))
    for name, tensor in own.encoder.state_dict().items():
        assert torch.equal(tensor, early[name]), name
    assert any(not torch.equal(early[name], late[name]) for name in early)
    missing = FrozenTeacher.Config(weights=f"{run}@3")
    student.objective = Distill.Config(teachers={"main": missing}, head=HEAD)
    with pytest.raises(ValueError, match=r"^objective\.teachers\.main\.weights=.*@3: .* none of step 3"):
        model.starts_of(student)


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"teachers": {}}, r"objective\.teachers is empty: name one"),
        ({"teachers": {"a.b": FrozenTeacher.Config()}}, "want a name without dots"),
        ({"pooled_weight": 0.0, "tokens_weight": 0.0}, "are both 0"),
        ({"tokens_weight": -1.0}, r"objective\.tokens_weight=-1\.0: want 0 or more"),
        ({"num_views": 0}, r"objective\.num_views=0: want 1 or more"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Distill.Config(**options)


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"stream": "b"}, r"objective\.teachers\.main\.stream=b is none of the data's"),
        ({"patch": (5, 5), "encoder": WIDE}, "does not divide views"),
        ({"patch": (2,), "encoder": WIDE}, "the stream's patches are"),
        ({"patch": (8, 8)}, r"give objective\.teachers\.main\.encoder"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(teacher: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made({"main": FrozenTeacher.Config(**teacher)})
    wrong_values: list[dict[str, Any]] = [{"weights": ""}, {"weight": 0.0}]
    for wrong in wrong_values:
        with pytest.raises(ValueError, match=r"objective\.teachers\.NAME"):
            FrozenTeacher.Config(**wrong)
    with pytest.raises(ValueError, match=r"objective\.students names 'z'"):
        made(students=("z",))


def test_weights_that_are_missing_are_said_before_anything_slow(tmp_path: Path) -> None:
    student = recipe()
    place = tmp_path / "none.safetensors"
    student.objective = Distill.Config(teachers={"main": FrozenTeacher.Config(weights=str(place))})
    with pytest.raises(ValueError, match=r"^objective\.teachers\.main\.weights=.*: no weights at"):
        fitted(student)


def test_padded_views_and_patches_of_another_size_are_refused() -> None:
    objective, encoders = made({"two": FrozenTeacher.Config(encoder=SMALL, patch=(8, 8))})
    valid: Tensor = torch.ones(6, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"patch=\(8, 8\): views of a have padding"):
        objective(encoders, Batch([views(valid=valid)]), START)


def test_published_weights_tell_a_teacher_s_architecture_and_what_contradicts_is_refused(
    tmp_path: Path,
) -> None:
    network = TransformerEncoder.Config(dim=24, depth=1, heads=2, norm_eps=1e-6).build(GRID)
    file = tmp_path / "published.pth"
    torch.save(official_names(network.state_dict()), file)
    student = recipe()
    told = FrozenTeacher.Config(weights=f"dinov2:{file}", encoder=TransformerEncoder.Config(heads=2))
    student.objective = Distill.Config(teachers={"main": told})
    derived: Any = fitted(student).objective
    encoder = derived.teachers["main"].encoder
    assert (encoder.dim, encoder.depth, encoder.heads) == (24, 1, 2)
    assert fitted(student.replace(objective=derived)).objective == derived
    wrong = told.replace(encoder=TransformerEncoder.Config(heads=2, depth=5))
    student.objective = Distill.Config(teachers={"main": wrong})
    with pytest.raises(ValueError, match=r"^objective\.teachers\.main\.weights=dinov2.*main\.encoder\.depth"):
        fitted(student)
