"""A run that ends after its last checkpoint, at whatever point, ships in the end what an uninterrupted one ships."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from multissl.engine import checkpoint
from multissl.run import train as run
from multissl.run.folder import NotWritten, RunFolder
from multissl.run.model import load
from tests.helpers.ranks import run_ranks
from tests.helpers.stubs import recipe

FEW, ALL = 20, 40
"""The steps of a finished run, and those it is given later."""


class Killed(BaseException):
    """The process ends here."""


def train(folder: Path, steps: int = ALL) -> run.Result:
    return run.train(recipe().replace(steps=steps), folder)


def shipped(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "encoder.safetensors").read_bytes(), (folder / "modality.json").read_bytes()


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("short")
    train(folder, FEW)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, short: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(short, folder)
    train(folder)
    assert shipped(folder)[0] != shipped(short)[0]
    return folder


MOMENTS = {
    "encoder.safetensors": (RunFolder, "write_encoder"),
    "modality.json": (RunFolder, "write_modality"),
    "summary.json": (RunFolder, "write_summary"),
    "report.html": (run, "write_report"),
    "the record that it has finished": (run, "record_finish"),
}
"""What is written after the last checkpoint, and the function in which the process is killed."""


def killed(*_args: object, **_options: object) -> None:
    raise Killed


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_after_its_last_checkpoint_ships_what_an_uninterrupted_one_ships(
    short: Path, whole: Path, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(short, folder)
    (folder / "report.html").unlink()
    owner, function = MOMENTS[moment]
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, killed)
        with pytest.raises(Killed):
            train(folder)
    assert checkpoint.step_of(checkpoint.find(RunFolder(folder).checkpoints)[-1]) == ALL
    (folder / "encoder.safetensors.tmp").write_bytes(b"half of it")  # as SIGKILL leaves it
    train(folder)
    assert shipped(folder) == shipped(whole)
    assert summary(folder)["steps"] == ALL
    assert (folder / "report.html").is_file()
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("name", ["encoder.safetensors", "modality.json"])
@pytest.mark.parametrize("content", [None, b"", b"of fewer steps"], ids=["missing", "empty", "older"])
def test_what_the_last_step_did_not_write_is_written_again(
    whole: Path, tmp_path: Path, name: str, content: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    train(folder)
    assert "has finished" not in capfd.readouterr().err
    assert shipped(folder) == shipped(whole)
    train(folder)
    assert f"has finished its {ALL} steps already" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "null", '{"verdict": "learned"}', '{"finished": 40}'])
def test_a_summary_that_does_not_say_what_is_shipped_is_no_record_of_a_finished_run(
    whole: Path, tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "summary.json").write_text(text)
    train(folder)
    assert "has finished" not in capfd.readouterr().err
    assert summary(folder)["finished"]["step"] == ALL
    assert shipped(folder) == shipped(whole)


def test_nothing_is_trained_and_no_figure_is_lost_where_only_files_are_missing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.helpers import stubs

    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "encoder.safetensors").unlink()
    monkeypatch.setattr(stubs, "pause", lambda step: pytest.fail(f"step {step} is trained"))
    train(folder)
    assert RunFolder(folder).read_metrics() == RunFolder(whole).read_metrics()


@pytest.mark.parametrize("steps", [FEW, FEW - 5])
def test_fewer_steps_than_were_taken_ship_those_that_were_taken(
    tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.helpers import stubs

    with monkeypatch.context() as patch:
        patch.setattr(stubs, "pause", lambda step: killed() if step == FEW + 3 else None)
        with pytest.raises(Killed):
            train(tmp_path)
    train(tmp_path, steps)
    assert summary(tmp_path)["steps"] == FEW
    taken = shipped(tmp_path)
    train(tmp_path, FEW + 1)
    assert summary(tmp_path)["steps"] == FEW + 1
    assert shipped(tmp_path) != taken


def test_a_disk_that_fills_up_after_the_last_checkpoint_leaves_the_older_files_and_says_what_to_do(
    short: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(short, folder)

    save = safetensors.torch.save_file

    def full(state: dict[str, torch.Tensor], path: Path, metadata: None) -> None:
        if not path.name.startswith("encoder"):
            return save(state, path, metadata)
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(NotWritten, match=r"No space left on device.* Free some space, then repeat"):
            train(folder)
    assert shipped(folder) == shipped(short)
    assert summary(folder) == summary(short)
    assert not list(folder.glob("*.tmp"))
    train(folder)
    assert shipped(folder) == shipped(whole)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_a_finished_run_is_left_as_it_is(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    train(folder)
    with pytest.raises(ValueError, match=r"(?s)finished its 40 steps.*steps: 40 -> 20.*another --out"):
        train(folder, FEW)
    shutil.rmtree(folder / "checkpoints")
    train(folder)
    other = recipe().replace(steps=ALL)
    other.objective.pull = 2.0
    with pytest.raises(ValueError, match=r"another recipe"):
        run.train(other, folder)
    with pytest.raises(ValueError, match=r"its checkpoints are gone: it cannot take 50"):
        train(folder, 50)
    assert files_of(folder) == files_of(whole)


@pytest.mark.parametrize("name", ["encoder.safetensors", "modality.json", "recipe.json", "summary.json"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_flipped_bit_of_a_finished_run_is_refused_by_name(
    whole: Path, tmp_path: Path, name: str, part: float
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    data = bytearray((folder / name).read_bytes())
    data[int(len(data) * part)] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=name):
        load(folder)


def on_ranks(_rank: int, folder: str) -> None:
    made = recipe().replace(steps=FEW)
    made.parallel.shard = 2
    run.train(made, f"{folder}/whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_model", killed)
        with pytest.raises(Killed):
            run.train(made, f"{folder}/killed")
    for _ in range(2):  # writes it, then tells its result again
        run.train(made, f"{folder}/killed")


@pytest.mark.ranks
def test_several_ranks_ship_what_an_uninterrupted_run_of_theirs_ships(tmp_path: Path) -> None:
    run_ranks(2, on_ranks, str(tmp_path))
    assert shipped(tmp_path / "killed") == shipped(tmp_path / "whole")
    killed_run, whole_run = (summary(tmp_path / name)["finished"] for name in ("killed", "whole"))
    assert {**killed_run, "record": None} == {**whole_run, "record": None}  # it holds measured times
