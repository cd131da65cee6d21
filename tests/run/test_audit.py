"""Steps of a run are taken again: honest ones are equal to the bit, and what was tampered with is found and placed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from multissl import cli
from multissl.contract.learning import Progress
from multissl.engine.batches import StepBatches
from multissl.engine.checkpoint import Save
from multissl.engine.optim.adamw import AdamW
from multissl.engine.step import Step, StepResult
from multissl.engine.trace import read_trace
from multissl.files import Damaged
from multissl.recipe import Recipe
from multissl.run import train
from multissl.run.audit import audit, described, window
from multissl.run.folder import RunFolder
from multissl.run.identity import DataChangedError
from tests.helpers import stubs

STEPS, EVERY = 40, 10


def recipe(**changes: Any) -> Recipe:
    made = stubs.recipe().replace(steps=STEPS, **changes)
    made.save = Save(every=EVERY, keep_last=9)
    return made


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest") / "run"
    train.train(recipe(), folder)
    return folder


def test_what_is_no_folder_of_a_run_is_said(honest: Path, tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match=r"holds no recipe\.json: give the folder of a run"):
            window(name)
    with pytest.raises(ValueError, match="want the folder alone; --steps A:20"):
        window(f"{honest}@20")


def test_a_record_that_is_there_is_not_said_to_be_gone(
    honest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit(honest, 20, 21)
    assert "is gone" not in capsys.readouterr().err


@pytest.mark.parametrize(("start", "stop"), [(0, 40), (13, 17), (20, 30), (39, 40), (5, 11)])
def test_honest_steps_are_equal_to_the_bit(honest: Path, start: int, stop: int) -> None:
    before = {p: p.stat().st_mtime_ns for p in honest.rglob("*")}
    result = audit(honest, start, stop)
    assert result.exact
    assert not result.differences
    assert result.start == start // EVERY * EVERY
    assert [*result.checkpoints] == [s for s in range(EVERY, STEPS + 1, EVERY) if result.start < s <= stop]
    assert {p: p.stat().st_mtime_ns for p in honest.rglob("*")} == before


def test_a_run_that_was_interrupted_and_extended_is_as_it_says(tmp_path: Path) -> None:
    train.train(recipe().replace(steps=15), tmp_path)
    train.train(recipe().replace(steps=30), tmp_path)  # another cosine from here on
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000015")
    result = audit(tmp_path, 12, 24)
    assert result.exact
    assert not result.differences
    assert [*result.checkpoints] == [20]


def flip_a_bit(step: Step) -> None:
    weights = next(p for p in step.learner.parameters() if p.requires_grad).data
    weights.view(torch.int32).view(-1)[0] ^= 1 << 12


def change_the_rate(step: Step) -> None:
    for group in step.optimizer.torch.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.data -= 1e-6 * parameter.grad


@pytest.mark.parametrize("tamper", [flip_a_bit, change_the_rate])
@pytest.mark.parametrize("step", [12, 29])
def test_weights_that_moved_otherwise_are_found_at_the_next_step_or_checkpoint(
    tmp_path: Path, step: int, tamper: Callable[[Step], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Step.__call__

    def tampered(self: Step, batch: Any, progress: Progress, stops: Callable[[], bool] = bool) -> StepResult:
        result = original(self, batch, progress, stops)
        if progress.step == step:
            tamper(self)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", tampered)
        train.train(recipe(), tmp_path)
    differences = audit(tmp_path, 0, STEPS).differences
    placed = [d.partition(":")[0] for d in differences]
    # after step 29 a checkpoint was written: its weights tell, and what follows is as it says
    assert placed == (["step 13", "checkpoint 20"] if step == 12 else ["checkpoint 30"])


def test_a_sample_that_was_swapped_is_found_at_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StepBatches.index

    def swapped(self: StepBatches, position: int) -> int:
        index = original(self, position)
        return (index + 1) % len(self.samples) if position == 17 * self.total + 3 else index

    with monkeypatch.context() as patch:
        patch.setattr(StepBatches, "index", swapped)
        train.train(recipe(), tmp_path)
    assert audit(tmp_path, 15, 19).differences[0].startswith("step 17: loss ")


def test_a_rate_that_is_not_the_recipes_is_found(tmp_path: Path) -> None:
    train.train(recipe(optim=AdamW.Config(lr=1e-2, weight_decay=0.1)), tmp_path)
    run = RunFolder(tmp_path)
    options = run.read_recipe()
    options["optim"]["lr"] = 2e-2
    run.write_recipe(options)
    assert audit(tmp_path, 21, 25).differences[0].startswith("step 20: learning rate ")


def test_a_trace_that_was_edited_is_no_trace(honest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(honest, folder)
    data = bytearray((folder / "trace.bin").read_bytes())
    data[32 * 12 + 9] ^= 1
    (folder / "trace.bin").write_bytes(data)
    with pytest.raises(Damaged, match=r"trace.bin is damaged: its first 640 bytes are not those"):
        audit(folder, 10, 20)


def test_a_trace_holds_every_step_once_also_of_a_resumed_run(honest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(honest, folder)
    for name in ("step_00000040", "step_00000030"):
        shutil.rmtree(folder / "checkpoints" / name)
    (folder / "summary.json").unlink()
    train.train(recipe(), folder)
    assert (folder / "trace.bin").read_bytes() == (honest / "trace.bin").read_bytes()
    entries = read_trace(folder / "trace.bin")
    assert [*entries] == [*range(STEPS)]
    first = next(x for x in RunFolder(folder).read_metrics() if x["kind"] == "train")
    losses = [entries[step].loss for step in range(first["step"])]
    assert sum(losses) / len(losses) == pytest.approx(first["loss"])


def test_elsewhere_numbers_are_compared_less_strictly_and_that_is_said(honest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(honest, folder)
    run = RunFolder(folder)
    (line,) = run.read_sessions()
    run.write_sessions([{**line, "threads": 999, "versions": {**line["versions"], "torch": "1.0"}}])
    result = audit(folder, 10, 20)
    assert not result.differences
    assert "within 0.0001, as this is not where it was trained (threads, torch)" in described(result)


def test_what_cannot_be_taken_again_is_said(
    honest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert window(honest) == (10, 40)
    for words, message in {
        "10:41": "has steps 0 to 40; want two of these",
        "20:20": "--steps 20:20: want two steps, the first before the second, such as 100:200",
        "x": "--steps x: want two steps",
    }.items():
        assert cli.main(["audit", str(honest), "--steps", words]) == 2
        assert message in capsys.readouterr().err
    folder = tmp_path / "run"
    shutil.copytree(honest, folder)
    run = RunFolder(folder)
    entries = run.read_data()
    entries[0]["splits"]["train"]["count"] += 1
    run.write_data(entries)
    with pytest.raises(DataChangedError, match="97 -> 96"):
        audit(folder, 10, 20)
    run.trace.unlink()
    with pytest.raises(ValueError, match="has no trace of its steps"):
        audit(folder, 10, 20)
    shutil.rmtree(run.checkpoints)
    with pytest.raises(ValueError, match="keeps no checkpoint"):
        window(folder)


def test_the_command_says_how_it_went(
    honest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["audit", str(honest), "--steps", "12:20"]) == 0
    assert (
        "steps 10 to 20 are as the run says, to the bit; checkpoints compared: 20" in capsys.readouterr().out
    )
    folder = tmp_path / "run"
    shutil.copytree(honest, folder)
    run = RunFolder(folder)
    options = run.read_recipe()
    options["seed"] = 1
    run.write_recipe(options)
    assert cli.main(["audit", str(folder), "--steps", "12:20"]) == 1
    assert "step 10: other samples than data and seed give; loss" in capsys.readouterr().out
