"""A run that has finished, and one that goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from multissl.run import train
from multissl.run.folder import RunFolder
from tests.run.short import recipe


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train.train(recipe(30), folder)
    return folder


@pytest.fixture
def going(whole: Path, tmp_path: Path) -> Path:
    """A run as it is while it is trained, or was when it was killed: checkpoints of 10 and 20, nothing shipped."""
    run = RunFolder(tmp_path / "going")
    shutil.copytree(whole, run.path)
    for path in (run.encoder, run.modality, run.summary, run.report):
        path.unlink()
    shutil.rmtree(run.checkpoints / "step_00000030")
    return run.path
