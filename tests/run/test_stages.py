"""A run with stages: what they take over, where it goes on after a kill, what reads its checkpoints."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from multissl.engine import checkpoint
from multissl.engine.batches import StepBatches
from multissl.engine.trainer import Trainer
from multissl.evaluators.collapse import Collapse
from multissl.parallel.state import tensors
from multissl.recipe import Recipe
from multissl.run import train as run
from multissl.run.audit import audit
from multissl.run.folder import RunFolder
from multissl.run.model import load
from multissl.run.stages import TakeOver
from multissl.stages import Stage
from tests.faults.runs import state
from tests.helpers.chain import GRAM, HIGH, first, recipe
from tests.helpers.lean import lean_runs


class Killed(BaseException):
    """Ends a run where a process would have been killed."""


@pytest.fixture(autouse=True, scope="module")
def lean() -> Any:
    """For all runs of this file, which share one of them."""
    with lean_runs():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain") / "run"
    run.train(recipe(), folder)
    return folder


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    record = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return [x for x in record if x["kind"] == kind]


def rates(folder: Path) -> list[float]:
    return [x["lr"] for x in lines(folder, "train")]


def test_a_chain_is_one_run_whose_schedules_begin_anew_in_every_stage(whole: Path, tmp_path: Path) -> None:
    assert [x["step"] for x in lines(whole, "train")] == list(range(1, 13))
    alone = run.train(first(), tmp_path / "alone").folder
    assert rates(whole)[:4] == rates(alone)
    assert rates(whole)[4:8] == [lr / 2 for lr in rates(alone)[:3]] + [rates(whole)[7]]
    assert rates(whole)[8:] == rates(whole)[4:8]
    warm = [x["stats/teacher_temperature"] for x in lines(whole, "train")]
    assert warm[:4] == warm[4:8] == warm[8:]
    samples = [x["samples"] for x in lines(whole, "train")]
    assert samples == [*range(8, 65, 8), 68, 72, 76, 80]
    assert [x["step"] for x in lines(whole, "note") if "goes on" in x["text"]] == [4, 8]


def test_checkpoints_of_borders_are_kept_and_say_their_stage(whole: Path) -> None:
    kept = checkpoint.find(RunFolder(whole).checkpoints)
    said = [(checkpoint.step_of(k), checkpoint.read_meta(k)["stage"]) for k in kept]
    assert said == [(4, "first"), (8, "high"), (12, "gram")]
    sides = [load(f"{whole}@{step}").recipe.modality.size for step, _ in said]  # type: ignore[attr-defined]
    assert sides == [8, 16, 16]
    assert load(whole).recipe.objective.gram.weight == 2  # type: ignore[attr-defined]
    assert load(f"{whole}@4").encode(torch.zeros(2, 8, 8, 3, dtype=torch.uint8).numpy()).shape == (2, 16)


def drawn(made: Recipe) -> list[int]:
    """Return which samples a recipe draws, stage after stage."""
    samples: list[int] = []
    for stage in made.run_stages():
        begins = (stage.offset, stage.span.samples)
        batches = StepBatches(
            stage.recipe.modality.build(), {}, stage.recipe.batch_size, 0, 0, 1, False, begins
        )
        samples += [i for step in range(stage.offset, stage.stop) for i in batches.indices(step).tolist()]
    return samples


def test_the_order_of_the_data_goes_on_over_borders() -> None:
    assert drawn(recipe()) == drawn(first().replace(steps=10))


KILLS = {
    "before the border's checkpoint is whole": (checkpoint, "_finish", 4),
    "behind it": (TakeOver, "_fill", 4),
    "in the next stage, before a checkpoint of its own": (Trainer, "_log", 5),
    "behind a checkpoint of that stage": (Trainer, "_log", 7),
    "before the next border's checkpoint": (checkpoint, "_finish", 8),
    "in the last stage": (Trainer, "_log", 10),
}
"""What a run is about to do when it is killed, and after which step."""


def test_a_chain_that_is_killed_over_its_borders_ends_as_if_it_had_not(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, name, step in KILLS.values():
        with monkeypatch.context() as patch:
            right = getattr(place, name)

            def killed(*args: Any, right: Any = right, step: int = step) -> Any:
                at = {
                    "_log": lambda: args[1],
                    "_finish": lambda: args[2]["step"],
                    "_fill": lambda: args[0].stage.offset,
                }
                if at[right.__name__]() == step:
                    raise Killed
                return right(*args)

            patch.setattr(place, name, killed)
            with pytest.raises(Killed):
                run.train(recipe(), tmp_path)
    run.train(recipe(), tmp_path)
    problems = [n for n, v in state(whole).items() if state(tmp_path).get(n) != v]
    assert not problems


def moments(folder: Path) -> dict[str, torch.Tensor]:
    return tensors(folder, checkpoint.STATES)


@pytest.mark.parametrize("optimizer", ["keep", "reset"])
def test_moments_go_on_but_for_those_of_what_is_resampled(
    tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: dict[str, Any] = {}
    right = TakeOver.load

    def noted(self: TakeOver, folder: Path, learner: Any, optim: torch.optim.Optimizer) -> int:
        step = right(self, folder, learner, optim)
        if self.crosses:
            names = {id(p): n for n, p in learner.named_parameters()}
            loaded.update({names[id(p)]: values["exp_avg"].clone() for p, values in optim.state.items()})
        return step

    monkeypatch.setattr(TakeOver, "load", noted)
    run.train(first().then(Stage(name="high", steps=1, changes=HIGH.changes, optimizer=optimizer)), tmp_path)  # type: ignore[arg-type]
    if optimizer == "reset":
        assert not loaded
        return
    before = moments(RunFolder(tmp_path).checkpoints / "step_00000004")
    weight = next(n for n in loaded if n.endswith("qkv.weight") and n.startswith("encoders"))
    table = next(n for n in before if "pos_embed" in n and n.endswith("exp_avg"))
    assert torch.equal(loaded[weight], before[f"{checkpoint.STATES}{weight}/exp_avg"])
    assert not any("pos_embed" in n for n in loaded)
    assert before[table].abs().max() > 0


def test_a_border_is_measured_once_by_the_stage_that_ends(tmp_path: Path) -> None:
    made = first().replace(evals={"collapse": Collapse.Config(every=3)}).then(HIGH)
    run.train(made, tmp_path)
    assert [x["step"] for x in lines(tmp_path, "eval")] == [0, 3, 4, 6, 8]


def test_a_finished_run_takes_another_stage(whole: Path, tmp_path: Path) -> None:
    run.train(first(), tmp_path)
    assert run.train(first(), tmp_path).metrics == {}
    run.train(first().then(HIGH), tmp_path)
    run.train(recipe(), tmp_path)
    assert digest(tmp_path) == digest(whole)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "encoder.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("made", "named"),
    [
        pytest.param(
            first().then(HIGH.replace(changes={"modality.size": 24})), "modality.size: 16 -> 24", id="changes"
        ),
        pytest.param(recipe().replace(steps=6), "stages.first.steps: 4 -> 6, at step 12", id="steps"),
        pytest.param(first().then(HIGH), "stages.gram", id="gone"),
        pytest.param(
            first().then(HIGH, GRAM.replace(steps=3)),
            "stages.gram.steps: 4 -> 3, at step 12",
            id="fewer steps",
        ),
    ],
)
def test_stages_that_have_begun_stay_as_they_are(whole: Path, made: Recipe, named: str) -> None:
    with pytest.raises(ValueError, match="has started stages") as error:
        run.train(made, whole)
    assert named in str(error.value)


REFUSED = {
    "width": ({"encoders.image.dim": 32}, "encoders.image.dim=32"),
    "depth": ({"encoders.image.depth": 2}, "would come in"),
    "prototypes": ({"objective.head.prototypes": 32}, "objective.head.prototypes=32"),
    "channels": ({"modality.channels": 1}, "channels"),
    "views that do not tile": ({"modality.size": 18}, "modality.size=18: want a multiple of patch=4"),
    "larger views that do not tile": (
        {"objective.gram.weight": 1.0, "objective.gram.size": [18, 18]}, "objective.gram.size=18 18 does not divide",
    ),
    "tokens that do not tile": ({"modality.patch": 6}, "modality.size=16: want a multiple of patch=6: 12 or 18"),
    "local views larger than global ones": (
        {"modality.local_size": 20}, "modality.local_size=20 is more than modality.size=16",
    ),
    "global views smaller than local ones": (
        {"modality.size": 4}, "modality.local_size=8 is more than modality.size=4: local views would show more",
    ),
    "an anchor that sees less than the views": (
        {"objective.gram.weight": 1.0, "objective.gram.size": [12, 12]},
        "objective.gram.size=12 12 is smaller than the student's views, 16 x 16",
    ),
    "an anchor that sees less than it learned on": (
        {"objective.gram.weight": 1.0, "modality.size": 8},
        "an anchor that sees 8 x 8, where the stage before learned on views of 16 x 16",
    ),
    "one sample": ({"batch_size": 1}, "a batch of 1 leaves one alone: change batch_size"),
    "a group of one sample": (
        {"batch_size": 9, "objective.koleo_group": 4}, "objective.koleo_group=4, and a batch of 9 leaves one alone",
    ),
    "a score of what is learned from": (
        {"evals": {"mine": {"kind": "knn", "split": "train"}}},
        "evals.mine.split=train: knn learns from the train split",
    ),
    "larger views of another shape": (
        {"objective.gram.weight": 1.0, "objective.gram.size": [16, 32]}, "has not the shape of the student's views",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_stage_cannot_change_is_refused_before_anything_is_trained(case: str, tmp_path: Path) -> None:
    changes, named = REFUSED[case]
    with pytest.raises(ValueError, match="stage bad") as error:
        run.train(first().then(HIGH, Stage(name="bad", steps=1, changes=changes)), tmp_path)
    assert named in str(error.value)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_an_audit_takes_the_steps_of_a_border_again(whole: Path) -> None:
    result = audit(whole, 2, 12)
    assert not result.differences
    assert list(result.checkpoints) == [4, 8, 12]


def test_the_first_loss_of_higher_resolution_is_near_the_last_one_of_lower(tmp_path: Path) -> None:
    made = first().replace(steps=20)
    made.optim.lr = 1e-2
    run.train(
        made.then(Stage(name="high", steps=2, changes={"modality.size": 12, "optim.lr": 0.0})), tmp_path
    )
    losses = [x["terms/dino_global"] for x in lines(tmp_path, "train")]
    before, after = sum(losses[15:20]) / 5, sum(losses[20:22]) / 2
    assert abs(after - before) < 0.2 * (losses[0] - before)
    (note,) = (x["text"] for x in lines(tmp_path, "note") if "goes on" in x["text"])
    assert "positions 2x2 -> 3x3 in 2 encoders, copies included" in note
