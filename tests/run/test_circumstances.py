"""What may befall the folder of a run, its clock and its data, and what becomes of the run: `docs/reliability.md`."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import time
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch

import multissl
from multissl import cli, files
from multissl.contract.data import Unreadable
from multissl.modalities.image.adapter import Image
from multissl.run import train
from multissl.run.folder import RunFolder
from multissl.run.lock import LockLostError
from tests.faults.injection import WRITES
from tests.helpers import stubs
from tests.run.short import recipe
from tests.sources.test_opening import encoded, parquet, tar


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders in which nothing can be written, as on a file system that is mounted so: modes do not bind root."""
    folders: list[Path] = []

    def refusing(name: str) -> Any:
        right = vars(files)[name]

        def write(target: Any, *args: Any) -> Any:
            path = Path(target.name if isinstance(target, FileIO) else target)
            # a folder that is there is made, or brought to the disk, without a change
            changes = name != "_sync" and not (name == "_unlink" and not path.exists())
            if changes and any(path.is_relative_to(folder) for folder in folders):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return right(target, *args)

        return write

    for name in WRITES:
        monkeypatch.setattr(files, name, refusing(name))
    return folders


def test_a_finished_run_that_cannot_be_written_to_is_used_as_any_other(
    whole: Path, tmp_path: Path, read_only: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    before, x = contents(whole), [torch.ones(6)]
    read_only.append(whole)
    assert train.train(recipe(30), whole).folder == whole
    assert "has finished its 30 steps already" in capfd.readouterr().err
    assert multissl.load(whole).encode(x).shape == multissl.load(f"{whole}@20").encode(x).shape
    assert cli.main(["encode", str(whole), "--out", str(tmp_path / "features.csv")]) == 0
    assert cli.main(["eval", str(whole), "collapse"]) == 0
    said = capfd.readouterr().err
    assert "these figures are not kept:" in said
    assert "(Read-only file system)" in said
    assert cli.main(["report", str(whole)]) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.endswith(
        "what was written before is intact. Give the command a copy of the folder that can be written to"
    )
    assert contents(whole) == before


def test_a_run_that_cannot_be_written_to_does_not_go_on_and_a_copy_of_it_does(
    whole: Path, going: Path, read_only: list[Path]
) -> None:
    before = contents(going)
    read_only.append(going)
    with pytest.raises(
        ValueError, match=r"--out .*going: cannot be written \(Read-only file system\).*a copy"
    ):
        train.train(recipe(30), going)
    assert multissl.load(going).step == 20
    assert contents(going) == before
    copy = going.with_name("copy")
    shutil.copytree(going, copy)
    train.train(recipe(30), copy)
    assert (copy / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()


def test_a_run_that_was_moved_goes_on_in_its_new_place(whole: Path, going: Path) -> None:
    moved = going.rename(going.with_name("moved"))
    train.train(recipe(30), moved)
    assert not going.exists()
    assert (moved / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()


def test_a_run_that_is_moved_while_it_is_trained_ends_before_its_next_checkpoint_and_goes_on_there(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    with monkeypatch.context() as patch:
        patch.setattr(stubs, "pause", lambda step: run.rename(moved) if step == 13 else None)
        with pytest.raises(LockLostError, match=r"it is gone.*nothing more is written here"):
            train.train(recipe(30), run)
    assert not run.exists()
    assert RunFolder(moved).read_sessions()[-1]["end"] is None
    lock = RunFolder(moved).lock
    lock.write_text(json.dumps(json.loads(lock.read_text()) | {"process": 2**22 + 1}))  # as it has ended
    train.train(recipe(30), moved)
    assert RunFolder(moved).read_sessions()[0]["end"] == "killed"
    assert (moved / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()


def test_a_clock_that_is_set_back_changes_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = itertools.count(time.time(), -3600)
    monkeypatch.setattr(time, "time", lambda: next(behind))
    train.train(recipe(20), tmp_path / "run")
    train.train(recipe(30), tmp_path / "run")
    sessions = RunFolder(tmp_path / "run").read_sessions()
    assert all(session["seconds"] >= 0 for session in sessions)
    assert RunFolder(tmp_path / "run").read_summary()["seconds"] >= 0
    steps = [x["step"] for x in RunFolder(tmp_path / "run").read_metrics() if x["kind"] == "train"]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_samples_of_a_shard_that_is_gone_are_listed_and_the_others_read(tmp_path: Path, kind: str) -> None:
    places = [tmp_path / f"{n}.{kind}" for n in range(2)]
    for number, place in enumerate(places):
        if kind == "tar":
            tar(place, {f"{number}_{i}.png": encoded() for i in range(3)})
        else:
            parquet(place, 3)
    modality = Image(Image.Config(data=str(tmp_path / f"*.{kind}")))
    samples = modality.dataset("all")
    places[1].unlink()
    for row in range(3):
        assert modality.extent(samples[row])["width"] > 0
    for row in range(3, 6):
        with pytest.raises(Unreadable, match=re.escape(places[1].name)):
            modality.extent(samples[row])
