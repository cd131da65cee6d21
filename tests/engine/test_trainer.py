"""What the loop does when something goes wrong, and what it writes when nothing does."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from multissl import cli
from multissl.engine import checkpoint
from multissl.engine.batches import ENDING
from multissl.engine.checkpoint import CheckpointError, Save
from multissl.engine.loggers.tensorboard import TensorBoard
from multissl.engine.trainer import Interrupted, NonFinite
from multissl.run import train as run
from multissl.run.folder import RunFolder
from multissl.run.model import load
from tests.helpers.ranks import run_ranks
from tests.helpers.stubs import recipe


def spoilt(steps: tuple[int, ...], **changes: Any) -> Any:
    made = recipe().replace(**changes)
    made.objective.spoil = steps
    return made


def test_a_step_that_is_not_finite_is_skipped_dumped_and_named(tmp_path: Path) -> None:
    run.train(spoilt((3, 7)), tmp_path)
    dumps = sorted((tmp_path / "nonfinite").iterdir())
    assert [p.name for p in dumps] == ["step_3_rank_0.json", "step_7_rank_0.json"]
    record = json.loads(dumps[0].read_text())
    assert record["not_finite"][0] == "pull"
    assert len(record["samples"]) == 16
    losses = [x["loss"] for x in RunFolder(tmp_path).read_metrics() if x["kind"] == "train"]
    assert all(v is not None and v == v for v in losses)


def test_a_loss_that_stays_not_finite_stops_the_run_and_keeps_what_was_saved(tmp_path: Path) -> None:
    with pytest.raises(NonFinite, match=r"5 steps in a row, up to step 29 .*lower --optim.lr"):
        run.train(spoilt(tuple(range(25, 40))), tmp_path)
    assert checkpoint.step_of(checkpoint.find(RunFolder(tmp_path).checkpoints)[-1]) == 20


@pytest.mark.parametrize(("spoilt_steps", "last"), [((0, 1, 2), 2), ((0, 1, 3, 4, 6, 7, 8, 9), 8)])
def test_a_run_stops_after_as_many_steps_in_a_row_as_it_has_patience(
    tmp_path: Path, spoilt_steps: tuple[int, ...], last: int
) -> None:
    """Counted from the run's first step on, and anew after every good one."""
    with pytest.raises(NonFinite, match=f"3 steps in a row, up to step {last} "):
        run.train(spoilt(spoilt_steps, patience=3), tmp_path)
    run.train(spoilt(spoilt_steps[:2], patience=3), tmp_path / "patient")


def one_rank_spoils(rank: int, folder: str) -> list[float]:
    run.train(spoilt((3,) if rank == 1 else ()), folder)
    return [x["loss"] for x in RunFolder(Path(folder)).read_metrics() if x["kind"] == "train"]


@pytest.mark.ranks
def test_all_ranks_skip_what_one_rank_cannot_use(tmp_path: Path) -> None:
    first, second = run_ranks(2, one_rank_spoils, str(tmp_path))
    assert first == second
    assert {p.name for p in (tmp_path / "nonfinite").iterdir()} == {f"step_3_rank_{r}.json" for r in (0, 1)}


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """Let no file grow beyond 2 kB, as on a full disk. Keep it short: pytest's own output may be such a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_keeps_earlier_checkpoints_and_says_what_to_do(tmp_path: Path) -> None:
    from multissl.build import build
    from multissl.parallel.ranks import process_group

    with process_group() as device:
        parts = build(recipe(), device)
        whole = tmp_path / "checkpoints" / "step_00000010"
        whole.mkdir(parents=True)
        (whole / "meta.json").write_text('{"format": 1, "step": 10}')
        with (
            small_disk(),
            pytest.raises(CheckpointError, match=r"step 20 could not be written .*step 10 is intact.*--out"),
        ):
            checkpoint.save(RunFolder(tmp_path).checkpoints, 20, parts.learner, parts.optimizer.torch, Save())
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000010"]


def test_a_run_from_before_the_draws_changed_is_not_resumed(tmp_path: Path) -> None:
    run.train(recipe(), tmp_path)
    newest = checkpoint.find(RunFolder(tmp_path).checkpoints)[-1]
    (newest / "meta.json").write_text(json.dumps({"format": 1, "step": checkpoint.step_of(newest)}))
    with pytest.raises(
        ValueError, match=r"format 1: since then the order of random draws changed.*--restart"
    ):
        run.train(recipe().replace(steps=checkpoint.step_of(newest) + 2), tmp_path)
    load(tmp_path)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_saves_a_checkpoint_and_the_same_command_goes_on(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.helpers import stubs

    monkeypatch.setattr(stubs, "pause", lambda step: os.kill(os.getpid(), number) if step == 13 else None)
    with pytest.raises(Interrupted, match=r"checkpoint of step 14 .*repeat the command"):
        run.train(recipe(), tmp_path)
    assert checkpoint.step_of(checkpoint.find(RunFolder(tmp_path).checkpoints)[-1]) == 14
    monkeypatch.undo()
    assert run.train(recipe(), tmp_path).folder == tmp_path


def stopped_by(*numbers: signal.Signals, step: int = 13) -> Any:
    """What stands in for `stubs.pause`: the signals arrive in the middle of a step."""
    return lambda now: [os.kill(os.getpid(), n) for n in numbers] if now == step else None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_a_launcher_passes_on_once_more_saves_a_checkpoint_too(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.helpers import stubs

    monkeypatch.setattr(stubs, "pause", stopped_by(number, number))
    with pytest.raises(Interrupted, match="checkpoint of step 14 "):
        run.train(recipe(), tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_ends_a_run_at_once_that_was_asked_to_end(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.helpers import stubs

    monkeypatch.setattr(stubs, "pause", stopped_by(number, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run.train(recipe(), tmp_path)
    assert checkpoint.newest_step(RunFolder(tmp_path).checkpoints) == 10


def test_under_nohup_a_closed_terminal_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.helpers import stubs

    monkeypatch.setattr(stubs, "pause", stopped_by(signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run.train(recipe(), tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert checkpoint.newest_step(RunFolder(tmp_path).checkpoints) == 40


def test_only_the_last_and_the_marked_checkpoints_are_kept(tmp_path: Path) -> None:
    run.train(recipe().replace(save=Save(every=5, keep_last=2, keep_every=20)), tmp_path)
    assert [checkpoint.step_of(p) for p in checkpoint.find(RunFolder(tmp_path).checkpoints)] == [20, 35, 40]


def test_a_folder_that_cannot_be_written_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--out .*file/run: cannot be written \(Not a directory\)"):
        run.train(recipe(), tmp_path / "file" / "run")


def test_a_run_leaves_what_others_read(tmp_path: Path) -> None:
    made = recipe().replace(loggers={"tensorboard": TensorBoard.Config()})
    run.train(made, tmp_path)
    for name in ("recipe.json", "metrics.jsonl", "summary.json", "report.html", "encoder.safetensors"):
        assert (tmp_path / name).stat().st_size > 0, name
    assert list((tmp_path / "tensorboard").glob("events*"))
    model = load(tmp_path)
    features = model.encode([torch.zeros(6), torch.ones(6)])
    assert features.shape == (2, 8)


def test_loading_an_unfinished_run_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no recipe.json: give the folder of a run"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("option", "value"), [("batch_size", 0), ("steps", 0), ("clip", -1.0), ("patience", 0)]
)
def test_a_limit_names_option_value_and_what_is_wanted(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{option}={value}: want"):
        recipe().replace(**{option: value})


def test_a_second_signal_that_no_launcher_passed_on_ends_a_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.helpers import stubs

    monkeypatch.setattr("multissl.engine.signals.PASSED_ON", -1.0)
    monkeypatch.setattr(stubs, "pause", stopped_by(signal.SIGUSR1, signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        run.train(recipe(), tmp_path)
    assert checkpoint.newest_step(RunFolder(tmp_path).checkpoints) == 10


@pytest.mark.parametrize(
    ("number", "words", "code"),
    [
        (signal.SIGUSR1, ["--requeue-signal", "USR1"], 75),
        (signal.SIGTERM, ["--requeue-signal", "SIGUSR1"], 143),
        (signal.SIGUSR2, [], 140),
        (signal.SIGINT, [], 130),
    ],
)
def test_the_exit_code_says_which_signal_and_whether_to_run_again(
    number: signal.Signals, words: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def ended(*_: Any, **__: Any) -> None:
        raise Interrupted("interrupted: the checkpoint is there", number)

    monkeypatch.setattr("multissl.run.train.train", ended)
    assert cli.main(["train", "tabular", "--out", str(tmp_path / "run"), *words]) == code
    assert capsys.readouterr().err == "error: interrupted: the checkpoint is there\n"


def test_a_signal_that_saves_nothing_cannot_ask_for_another_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "tabular", "--requeue-signal", "KILL"]) == 2
    assert "--requeue-signal KILL: want one of INT, TERM, HUP, USR1, USR2" in capsys.readouterr().err
    assert set(cli.ENDING) == set(ENDING)
