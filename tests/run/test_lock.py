"""One process at a time trains in a folder: who holds a lock, when it counts as left behind, and how it is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from multissl import cli
from multissl.run import lock, train
from multissl.run.folder import RunFolder
from multissl.run.lock import Lock, LockLostError, RunBusyError, locked
from tests.helpers.stubs import recipe


class Lines(list[str]):
    """What was said."""

    def __call__(self, text: str) -> None:
        self.append(text)


def holder(path: Path, **values: object) -> None:
    """Write a lock of this process, but for some values."""
    path.write_text(json.dumps({"token": "theirs", **lock.this_process(), "since": "then", **values}))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "lock.json"


def test_a_lock_is_there_while_it_is_held(place: Path) -> None:
    with locked(place, Lines()):
        assert lock.read(place)
        with pytest.raises(RunBusyError, match=rf"being trained by process {os.getpid()} on .*another --out"):
            Lock(place, Lines()).acquire()
    assert not place.exists()


def test_one_of_many_takes_it(place: Path) -> None:
    holder(place, process=2**22 + 1)  # no process has this number
    refused, said, together = [], Lines(), threading.Barrier(8)

    def take() -> None:
        together.wait()
        try:
            Lock(place, said).acquire()
        except RunBusyError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7


def test_a_process_that_ended_left_its_lock_behind(place: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    said = Lines()
    holder(place, process=child.pid)
    with locked(place, said):
        pass
    who = f"process {child.pid} on {lock.this_process()['host']} (since then)"
    assert said == [f"{who} ended without giving lock.json back: going on"]


def test_another_process_may_have_its_number_by_now(place: Path) -> None:
    holder(place, started="1")
    with locked(place, Lines()):
        pass


def test_a_lock_that_nobody_touches_is_watched_and_taken(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.3)
    holder(place, machine="elsewhere")
    said, began = Lines(), time.monotonic()
    with locked(place, said):
        assert time.monotonic() - began >= 0.3
    assert "watching for 0 seconds whether it is still there" in said[0]


def test_a_copy_of_a_folder_that_is_trained_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.3)
    run, copy, moved = tmp_path / "run", tmp_path / "copy", tmp_path / "moved"
    run.mkdir()
    with locked(run / "lock.json", Lines()):
        shutil.copytree(run, copy)
        said = Lines()
        with locked(copy / "lock.json", said):
            assert "trains in another folder, of which this is a copy: going on" in said[-1]
        run.rename(moved)
        with pytest.raises(RunBusyError):
            lock.check_free(moved / "lock.json", Lines())
        moved.rename(run)


def test_a_lock_of_another_machine_that_is_touched_is_held(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 5.0)
    monkeypatch.setattr(lock, "BEAT", 0.1)
    with locked(place, Lines()) as held:
        holder(place, machine="elsewhere", token=held.token)
        os.utime(place, (0, 0))  # a clock that was set back is no matter
        with pytest.raises(RunBusyError, match="give another --out"):
            Lock(place, Lines()).acquire()


def test_who_lost_the_lock_writes_nothing_more(tmp_path: Path) -> None:
    made = recipe().replace(steps=40)
    run = RunFolder(tmp_path)

    class Robbed(Lock):
        def check(self) -> None:
            holder(run.lock)
            super().check()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multissl.run.preparing.Lock", Robbed)
        with pytest.raises(LockLostError, match=r"process \d+ on .* has taken it"):
            train.train(made, tmp_path)
    assert not [*run.checkpoints.glob("*")]
    assert lock.read(run.lock) == {
        **(lock.read(run.lock) or {}),
        "token": "theirs",
    }  # not given back for them


def test_two_trainings_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = recipe().replace(steps=10)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    with locked(run.lock, Lines()):
        with pytest.raises(RunBusyError, match="is being trained by process"):
            train.train(made, run.path)
        assert [p.name for p in run.path.iterdir()] == ["lock.json"]
        assert cli.main(["train", "image", "--out", str(run.path), "--restart"]) == 2  # it is not set aside
    assert "is being trained by process" in capsys.readouterr().err
    train.train(made, run.path)
    with locked(run.lock, Lines()):  # one that has finished is only read
        assert train.train(made, run.path).verdict
