"""Folders that somebody else made: values of other kinds in files with right digests are a line, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from multissl import files
from multissl.files import Damaged, replace_sealed_lines, sealed
from multissl.run import lock, train
from multissl.run.audit import window
from multissl.run.evaluate import judge
from multissl.run.folder import RunFolder
from multissl.run.report import write_report
from tests.helpers import stubs

BAD: list[Any] = [None, -1, 1.5, 10**400, "x", [1], {"a": {}}, [None, "x"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("received") / "run"
    for steps in (5, 10):
        train.train(stubs.recipe().replace(steps=steps), folder)
    judge(folder)
    return folder


def use(folder: Path) -> bool:
    """Return whether the page of a run was written; else what is wrong was said by a `Damaged`."""
    try:
        write_report(folder)
        window(folder)
    except Damaged:
        return False
    return True


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_values_of_other_kinds_under_right_digests_are_said(
    bad: Any, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunFolder, "write_report", lambda _run, _page: None)
    monkeypatch.setattr(files, "_sync", lambda _path: None)  # hundreds of files are written
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    run = RunFolder(folder)
    summary, sessions = run.read_summary(), run.read_sessions()
    for name in summary:
        run.summary.write_text(json.dumps(sealed({**summary, name: bad})))
        use(folder)
    run.write_summary(summary)
    for name in sessions[-1]:
        run.write_sessions([sessions[0], {**sessions[1], name: bad}])
        use(folder)
    run.write_sessions(sessions)
    for name in ("step", "time", "figures", "data"):
        replace_sealed_lines(run.evaluations, [{"step": 10, "figures": {}, name: bad}])
        use(folder)
    replace_sealed_lines(run.evaluations, [{"step": 10, "figures": {"knn/top1": bad}}])
    assert not use(folder), bad
    run.evaluations.unlink()
    whole = run.metrics.read_text()
    for line in map(json.loads, whole.splitlines()):
        for name in line:
            run.metrics.write_text(whole + json.dumps({**line, name: bad}) + "\n")
            assert use(folder), name


def test_what_was_written_is_of_its_kind(finished: Path) -> None:
    assert use(finished)
    assert len(RunFolder(finished).read_metrics()) == len(
        RunFolder(finished).metrics.read_text().splitlines()
    )


def test_a_figure_that_was_no_number_is_shown_as_that(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    RunFolder(folder).add_evaluation({"step": 10, "figures": {"knn/top1": {"value": None}}})
    assert "not a number" in write_report(folder).read_text()


@pytest.mark.parametrize("name", ["metrics.jsonl", "lock.json"])
def test_lines_that_no_reader_of_json_takes_are_nobodys(name: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for text in ("[" * 100_000, "1" * 5_000, '{"a": ' * 100_000, "\ud800"):
        (tmp_path / name).write_text(text, errors="surrogatepass")
        assert run.read_metrics() == []
        assert lock.read(run.lock) in (None, {})


@pytest.mark.parametrize("process", [0, -1, 10**40, True, "1", None])
def test_a_lock_that_names_no_process_is_nobodys(process: Any) -> None:
    assert not lock.is_alive({"process": process, "started": ""}) or process is True
    assert lock.is_alive({"process": os.getpid(), "started": lock.started(os.getpid())})
