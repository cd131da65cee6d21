"""The owner of file names: what it says is where the files of a run are."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from multissl.run.folder import NotWritten, RunFolder
from multissl.run.train import train
from tests.helpers.laws import RUN_FILES
from tests.helpers.stubs import recipe


def test_it_names_everything_that_a_run_leaves(tmp_path: Path) -> None:
    made = recipe().replace(steps=10)
    made.objective.spoil = (3,)
    train(made, tmp_path)
    run = RunFolder(tmp_path)
    named = {
        run.recipe,
        run.metrics,
        run.checkpoints,
        run.encoder,
        run.modality,
        run.summary,
        run.report,
        run.code,
        run.data,
        run.sessions,
        run.trace,
        run.readme,
    }
    assert {*tmp_path.iterdir()} == {*named, run.nonfinite(3, 0).parent}
    assert run.nonfinite(3, 0).is_file()
    elsewhere = {run.lock.name, run.evaluations.name}  # while it is trained, and once it was measured later
    assert {p.name for p in tmp_path.iterdir()} | elsewhere == RUN_FILES  # those that the law knows
    assert run.read_recipe()["steps"] == run.read_summary()["steps"] == 10
    assert run.digests() == run.read_summary()["finished"]["sha256"]


def test_a_run_without_files_has_no_values(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "nowhere")
    assert (run.read_recipe(), run.read_summary(), run.read_metrics()) == ({}, {}, [])
    with pytest.raises(ValueError, match=r"nowhere holds no recipe.json: give the folder of a finished run"):
        run.check_shipped()


@pytest.mark.parametrize(
    "name", ["checkpoints", "nonfinite", "metrics.jsonl", "encoder.safetensors", "a/b", "..", ""]
)
def test_a_logger_cannot_take_the_place_of_something_else(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder of a logger can be called so; give it another name"):
        RunFolder(tmp_path).logger(name)
    assert RunFolder(tmp_path).logger("curves") == tmp_path / "curves"


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    run.write_recipe({"steps": 1})
    run.write_model({"w": torch.zeros(2)}, {"mean": 1})
    before = run.digests()

    def full(_state: object, path: Path, _metadata: None) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(NotWritten, match=r"No space left on device.*what was written before is intact"):
        run.write_model({"w": torch.ones(2)}, {"mean": 2})
    assert run.digests() == before
