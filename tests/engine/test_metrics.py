from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from multissl.engine.display import Display
from multissl.engine.loggers.record import Record
from multissl.files import Damaged
from multissl.run import train as run
from multissl.run.folder import RunFolder
from tests.helpers.stubs import recipe

LINES = [
    '{"kind": "eval", "step": 0, "knn/top1": 25}\n',
    '{"step": 5,  "kind": "train", "loss": 1.50}\n',  # as somebody else would have written it
    '{"kind": "train", "step": 10, "loss": null}\n',
    '{"kind": "note", "step": 11, "text": "step 10 skipped"}\n',
    '{"kind": "train", "step": 15, "loss": 1.25}\n',
]
NEXT = {"kind": "train", "step": 20, "loss": 1.0}


def resumed(folder: Path, text: str, step: int) -> str:
    """A record after a run has gone on from a step and written one line more."""
    (folder / "metrics.jsonl").write_text(text)
    made = Record(RunFolder(folder).metrics, step)
    made.log("train", 20, {"loss": 1.0})
    made.close()
    return (folder / "metrics.jsonl").read_text()


@pytest.mark.parametrize(("step", "kept"), [(15, 5), (14, 4), (10, 3), (4, 1)])
def test_resuming_drops_the_lines_past_its_step_and_leaves_the_others_as_they_stand(
    tmp_path: Path, step: int, kept: int
) -> None:
    assert resumed(tmp_path, "".join(LINES), step) == "".join(LINES[:kept]) + json.dumps(NEXT) + "\n"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("cut", range(1, len(LINES[4])))
def test_a_line_that_was_cut_short_is_not_glued_to_the_next(tmp_path: Path, cut: int) -> None:
    lines = resumed(tmp_path, "".join(LINES)[:-cut], 15).splitlines(keepends=True)
    whole = 5 if cut == 1 else 4  # the line that lacks its end alone is whole
    assert lines == [*LINES[:whole], json.dumps(NEXT) + "\n"]
    assert [x["step"] for x in RunFolder(tmp_path).read_metrics()] == [*[0, 5, 10, 11, 15][:whole], 20]


def test_a_resumed_run_without_a_record_begins_one(tmp_path: Path) -> None:
    Record(RunFolder(tmp_path).metrics, 5).close()
    assert RunFolder(tmp_path).read_metrics() == []


@pytest.mark.parametrize("step", [0, 10])
def test_the_record_is_whole_at_any_moment_of_a_start(tmp_path: Path, step: int) -> None:
    """Before each line of code, as a kill may come at any: what was recorded stands in a file of the folder."""
    record = tmp_path / "metrics.jsonl"
    record.write_text("".join(LINES))
    wanted = "".join(LINES[: 3 if step else 5])
    moments: list[bool] = []

    def look(_frame: FrameType, _event: str, _value: Any) -> Callable[..., Any]:
        moments.append(any(p.read_text().startswith(wanted) for p in tmp_path.glob("metrics.jsonl*")))
        return look

    sys.settrace(look)
    try:
        Record(RunFolder(tmp_path).metrics, step).close()
    finally:
        sys.settrace(None)
    assert len(moments) > 10
    assert all(moments)


def test_a_start_without_a_checkpoint_sets_the_earlier_record_aside(tmp_path: Path) -> None:
    record = tmp_path / "metrics.jsonl"
    for number in (1, 2):
        record.write_text(LINES[number])
        made = Record(RunFolder(tmp_path).metrics, 0)
        made.close()
        earlier = tmp_path / f"metrics.jsonl.old{number}"
        assert made.earlier == earlier
        assert earlier.read_text() == LINES[number]
        assert record.read_text() == ""
    made = Record(RunFolder(tmp_path).metrics, 0)
    made.close()
    assert made.earlier is None  # nothing was recorded


class Killed(BaseException):
    """The process ends here."""


def test_a_run_killed_before_its_first_checkpoint_loses_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.helpers import stubs

    def end(step: int) -> None:
        if step == 8:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(stubs, "pause", end)
        with pytest.raises(Killed):
            run.train(recipe(), tmp_path)
    first = RunFolder(tmp_path).read_metrics()
    assert [x["step"] for x in first] == [5]
    run.train(recipe(), tmp_path)
    assert "the metrics of an earlier start are in" in capfd.readouterr().err
    assert [x["step"] for x in RunFolder(tmp_path).read_metrics()] == list(range(5, 41, 5))
    assert json.loads((tmp_path / "metrics.jsonl.old1").read_text()) == first[0]


class Closed(io.StringIO):
    """A terminal or pipe whose other end is gone."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), BrokenPipeError()], ids=["terminal", "pipe"]
)
def test_lines_that_nobody_can_read_any_more_end_no_run(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    display = Display(True)
    monkeypatch.setattr(sys, "stderr", Closed(error))
    display.say("one")
    display.say("two")
    assert display.console.quiet


def test_a_record_goes_on_after_the_bytes_that_its_checkpoint_knows(tmp_path: Path) -> None:
    path = RunFolder(tmp_path).metrics
    first = Record(path, 0)
    first.log("train", 5, {"loss": 2.0})
    mark = first.mark()
    first.log("note", 5, {"text": "after the checkpoint"})
    first.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])  # its last line was cut short
    again = Record(path, 5, mark)
    assert path.read_bytes() == whole[: mark["bytes"]]
    again.log("note", 5, {"text": "after the checkpoint"})
    assert again.mark()["bytes"] == len(whole)
    again.close()
    assert path.read_bytes() == whole


def test_a_record_that_was_changed_before_its_mark_is_refused_by_name(tmp_path: Path) -> None:
    path = RunFolder(tmp_path).metrics
    first = Record(path, 0)
    first.log("train", 5, {"loss": 2.0})
    mark = first.mark()
    first.close()
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole.replace(b"2.0", b"3.0"), b""):
        path.write_bytes(damaged)
        with pytest.raises(Damaged, match=r"metrics.jsonl is damaged: its first .* move it away"):
            Record(path, 5, mark)
        assert path.read_bytes() == damaged
    path.unlink()
    again = Record(path, 5, mark)
    again.close()
    assert again.lost
