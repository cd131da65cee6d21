"""Lines of who trained a run when; the recipe that is written once; figures that are measured later."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from multissl import cli
from multissl.engine.trainer import Interrupted
from multissl.recipe import Recipe
from multissl.run import train
from multissl.run.evaluate import judge
from multissl.run.folder import RunFolder
from multissl.run.model import load
from multissl.run.report import report
from multissl.run.sessions import commit_of
from tests.helpers import stubs


def recipe(steps: int = 10) -> Recipe:
    return stubs.recipe().replace(steps=steps)


def test_a_line_says_who_trained_what_with_what(tmp_path: Path) -> None:
    train.train(recipe(), tmp_path)
    (line,) = RunFolder(tmp_path).read_sessions()
    assert line["end"] == "finished"
    assert (line["steps"], line["samples"], line["changed"], line["ranks"]) == ([0, 10], 160, {}, 1)
    assert line["began"] <= line["ended"]
    assert {"multissl", "torch", "python"} <= line["versions"].keys()
    assert {"command", "git", "host", "devices", "threads", "seconds", "folder"} <= line.keys()


def test_a_resumed_run_has_a_line_more_and_the_recipe_of_its_first(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    train.train(recipe(), tmp_path)
    first = run.recipe.read_bytes()
    train.train(recipe(20).replace(log_every=20), tmp_path)
    assert run.recipe.read_bytes() == first
    one, two = run.read_sessions()
    assert (one["steps"], two["steps"]) == ([0, 10], [10, 20])
    assert two["changed"] == {"steps": 20, "log_every": 20}
    assert (run.read_recipe()["steps"], run.read_options()["steps"]) == (10, 20)
    assert load(tmp_path).recipe.steps == 20
    page = report(tmp_path).read_text()
    assert "10 to 20" in page
    before = run.sessions.read_bytes()
    train.train(recipe(20).replace(log_every=20), tmp_path)  # finished: nothing is written
    assert run.sessions.read_bytes() == before


def test_a_run_that_never_saved_begins_anew_with_its_new_recipe(tmp_path: Path) -> None:
    made = recipe().replace(patience=1)
    made.objective.spoil = (0,)
    with pytest.raises(RuntimeError, match="not finite"):
        train.train(made, tmp_path)
    train.train(recipe(), tmp_path)
    run = RunFolder(tmp_path)
    assert run.read_recipe()["objective"]["spoil"] == []
    ends = [line["end"] for line in run.read_sessions()]
    assert ends[0].startswith("NonFinite: the loss was not finite 1 steps in a row")
    assert ends[1:] == ["finished"]


def test_what_ended_a_session_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(train.Trainer):
        def _note_skipped(self, step: int, skipped: list[tuple[int, str]]) -> None:
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train, "Trainer", Asked)
        with pytest.raises(Interrupted):
            train.train(recipe(), tmp_path)
    run = RunFolder(tmp_path)
    (line,) = run.read_sessions()
    assert line["end"] == "SIGTERM"
    lines = run.read_sessions()
    run.write_sessions([{**lines[0], "end": None, "ended": None}])  # as a kill leaves it
    train.train(recipe(), tmp_path)
    one, two = run.read_sessions()
    assert (one["end"], one["ended"], two["end"]) == ("killed", None, "finished")
    assert two["steps"][0] == one["steps"][1]


def test_a_commit_is_told_with_what_differs_from_it(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    (tmp_path / "file").write_text("one")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    clean = commit_of(tmp_path)
    assert clean
    assert (len(clean["commit"]), clean["dirty"]) == (40, False)
    (tmp_path / "file").write_text("two")
    assert commit_of(tmp_path) == {**clean, "dirty": True}


def test_figures_that_are_measured_later_are_kept_with_all_they_depend_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from multissl.evaluators.knn import KNN

    made = recipe()
    made.evals = {"knn": KNN.Config(k=(3,))}
    train.train(made, tmp_path)
    run = RunFolder(tmp_path)
    record = run.metrics.read_bytes()
    verdict = judge(tmp_path).verdict.text
    assert cli.main(["eval", str(tmp_path)]) == 0
    one, two = run.read_evaluations()
    assert run.metrics.read_bytes() == record
    assert one["protocols"]["knn"]["k"] == [3]
    assert (one["step"], one["verdict"]) == (10, verdict)
    assert {"value", "n", "low", "high"} <= one["figures"]["knn/top1"].keys()
    assert one["data"]["train"]["count"] == 96
    assert {"git", "versions", "host", "devices", "time", "seconds"} <= one.keys()
    assert one["figures"] == two["figures"]
    assert f"{one['time']}, step 10" in report(tmp_path).read_text()
    run.evaluations.unlink()
    run.evaluations.mkdir()
    assert judge(tmp_path).verdict.text == verdict  # what was computed is said, though it cannot be kept
    assert "these figures are not kept" in capsys.readouterr().err


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_sessions([{"steps": [0, 1]}, {"steps": [1, 2]}])
    text = run.sessions.read_text()
    for damaged in (text[:-4], text.replace("[1, 2]", "[1, 3]")):
        run.sessions.write_text(damaged)
        with pytest.raises(ValueError, match=r"line 2 of .*sessions.jsonl is damaged"):
            run.read_sessions()
    run.add_evaluation({"step": 1})
    run.add_evaluation({"step": 2})
    assert run.read_evaluations() == [{"step": 1}, {"step": 2}]
    run.evaluations.write_text(run.evaluations.read_text() + '{"step"')
    with pytest.raises(ValueError, match=r"line 3 of .*evaluations.jsonl is damaged"):
        run.add_evaluation({"step": 3})
