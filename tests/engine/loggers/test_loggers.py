"""Loggers: what reaches each of them, and that none of them can end a run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from multissl import cli, options
from multissl.contract.learning import Figure
from multissl.contract.logger import Kind, Logger, Session
from multissl.engine.loggers.mlflow import MLflow, flattened, key_of
from multissl.engine.loggers.tensorboard import TensorBoard
from multissl.engine.loggers.wandb import WandB
from multissl.engine.marked import MarkedNotWritten
from multissl.engine.metrics import Metrics
from multissl.engine.trainer import NonFinite
from multissl.files import Lines
from multissl.recipe import Recipe, read_recipe
from multissl.run.folder import RunFolder
from multissl.run.train import train
from tests.helpers import stubs
from tests.helpers.stubs import recipe

FIGURE = Figure("What it sees", np.full((4, 6, 3), 200, np.uint8), "four samples")
RECIPE = {"steps": 8, "optim": {"kind": "adamw", "lr": 0.1}, "evals": {}}


def filled(cfg: Logger.Config, session: Session) -> None:
    """Give a logger a bit of everything, and close it."""
    logger: Logger = cfg.build(session)
    for step in (1, 2):
        values = {"loss": 5.0 / step, "terms/pull": 1.0, "bad": float("nan"), "unreadable": 0}
        logger.log("train", session.start + step, values)
    logger.log("eval", session.start + 2, {"state/r2": 80.0, "state/r2/ball_x": 81.0})
    logger.log("note", session.start + 2, {"text": "sample 7 cannot be read"})
    logger.draw(session.start + 2, [FIGURE])
    logger.close()


def session(tmp_path: Path, name: str, start: int = 0) -> Session:
    return Session(name="run", folder=tmp_path / name, start=start, recipe=RECIPE)


# ------------------------------------------------------------------------------------------- each of them


def test_tensorboard_has_curves_figures_texts_and_options(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    filled(TensorBoard.Config(), session(tmp_path, "curves"))
    events = EventAccumulator(str(tmp_path / "curves")).Reload()
    tags: Any = events.Tags()
    assert set(tags["scalars"]) == {
        "train/loss", "train/terms/pull", "train/unreadable", "eval/state/r2", "eval/state/r2/ball_x",
    }  # fmt: skip
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 5.0), (2, 2.5)]
    assert tags["images"] == ["figures/What it sees"]
    image = events.Images("figures/What it sees")[0]
    assert (image.step, image.height, image.width) == (2, 4, 6)
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
    assert "sample 7" in texts["note/text/text_summary"]
    assert '"lr": 0.1' in texts["recipe/text_summary"]


def test_wandb_keeps_all_offline_and_a_resumed_run_its_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    cfg = WandB.Config(mode="offline", project="test")
    filled(cfg, session(tmp_path, "there"))
    identity = (tmp_path / "there" / "id.txt").read_text()
    folders = [*(tmp_path / "there").glob("wandb/offline-run-*")]
    assert [f.name.rpartition("-")[2] for f in folders] == [identity]
    (journal,) = folders[0].glob("*.wandb")
    parts = (b"train/loss", b"eval/state/r2/ball_x", b"sample 7 cannot be read", b"optim")
    # The process of W&B that writes the journal may still be writing when `finish` returns.
    deadline = time.monotonic() + 60
    while not all(part in journal.read_bytes() for part in parts) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [part for part in parts if part not in journal.read_bytes()] == []
    assert len([*folders[0].glob("files/media/images/**/*.png")]) == 1
    filled(cfg, session(tmp_path, "there", start=2))
    assert (tmp_path / "there" / "id.txt").read_text() == identity
    filled(cfg, session(tmp_path, "there"))
    assert (tmp_path / "there" / "id.txt").read_text() != identity


@pytest.mark.filterwarnings("ignore::FutureWarning:mlflow.*", "ignore::DeprecationWarning:mlflow.*")
def test_mlflow_keeps_all_in_the_folder_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    from mlflow import MlflowClient

    filled(MLflow.Config(), session(tmp_path, "there"))
    filled(MLflow.Config(), session(tmp_path, "there", start=2))
    client = MlflowClient(tracking_uri=(tmp_path / "there" / "store").as_uri())
    experiment = client.get_experiment_by_name("multissl")
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params == {"steps": "8", "optim.kind": "adamw", "optim.lr": "0.1", "evals": "{}"}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 5.0), (2, 2.5), (3, 5.0), (4, 2.5)]
    assert run.data.metrics["eval/state.r2"] == 80.0
    assert run.data.metrics["eval/state.r2.ball_x"] == 81.0
    assert "train/bad" not in run.data.metrics
    files = [p.name for p in (tmp_path / "there" / "store").rglob("*") if p.is_file()]
    assert {"00_What_it_sees.png", "notes.txt", "0.json", "2.json"} <= set(files)


def test_names_and_options_take_the_form_that_mlflow_wants() -> None:
    assert key_of("eval", "knn/top1, %") == "eval/knn.top1. ."
    assert dict(flattened({"a": {"b": [1, 2]}, "c": "x" * 600})) == {"a.b": "[1, 2]", "c": "x" * 500}


# ------------------------------------------------------------------------------------------- in a run


class Fragile(Logger):
    """Counts what it is given, and fails where it is asked to."""

    seen: ClassVar[list[str]] = []

    @dataclass(kw_only=True, slots=True)
    class Config(Logger.Config):
        fail: str = ""

    def __init__(self, cfg: Config, session: Session) -> None:
        self.cfg = cfg
        self._do("open")

    def _do(self, what: str) -> None:
        Fragile.seen.append(what)
        if what == self.cfg.fail:
            raise ConnectionError("no route to host\nand a second line")

    def log(self, kind: Kind, step: int, metrics: Mapping[str, Any]) -> None:
        self._do(kind)

    def draw(self, step: int, figures: Sequence[Figure]) -> None:
        assert figures
        self._do("draw")

    def close(self) -> None:
        self._do("close")


@pytest.fixture
def seen() -> list[str]:
    Fragile.seen.clear()
    return Fragile.seen


def fragile(fail: str = "", **changes: Any) -> Recipe:
    good, bad = Fragile.Config(), Fragile.Config(fail=fail)
    return recipe().replace(loggers={"bad": bad, "good": good} if fail else {"good": good}, **changes)


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stubs.Points, "figures", lambda _self, _batch: [FIGURE])


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("fail", ["open", "train", "draw", "close"])
def test_a_logger_that_fails_is_said_once_and_left_out_and_the_training_goes_on(
    fail: str, tmp_path: Path, seen: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    train(fragile(fail, steps=20), tmp_path)
    said = capfd.readouterr().err
    assert said.count("the logger bad failed and is left out from now on: no route to host") == 1
    assert "second line" not in said
    lines = RunFolder(tmp_path).read_metrics()
    assert [x["step"] for x in lines if x["kind"] == "train"] == [5, 10, 15, 20]
    assert [x["text"] for x in lines if x["kind"] == "note"] == [
        "the logger bad failed and is left out from now on: no route to host"
    ]
    assert seen.count(fail) == 2 if fail != "train" else seen.count(fail) == 5  # the good one has them all
    assert seen.count("close") == (1 if fail == "open" else 2)
    assert RunFolder(tmp_path).read_summary()["finished"]["step"] == 20


@pytest.mark.usefixtures("pictures")
def test_loggers_take_the_figures_of_the_report_and_are_closed_last(tmp_path: Path, seen: list[str]) -> None:
    train(fragile(steps=10), tmp_path)
    assert seen == ["open", "train", "train", "draw", "close"]


def test_loggers_are_closed_where_the_training_fails(tmp_path: Path, seen: list[str]) -> None:
    made = fragile(patience=1)
    made.objective.spoil = (7,)
    with pytest.raises(NonFinite):
        train(made, tmp_path)
    assert seen == ["open", "train", "note", "close"]


def test_loggers_are_closed_where_a_kill_comes_from_the_keyboard(
    tmp_path: Path, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(step: int) -> None:
        if step == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(stubs, "pause", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(fragile(), tmp_path)
    assert seen == ["open", "train", "close"]


def test_a_run_that_finished_opens_no_logger_again(tmp_path: Path, seen: list[str]) -> None:
    train(fragile(steps=10), tmp_path)
    seen.clear()
    train(fragile(steps=10), tmp_path)
    assert seen == []


def test_a_record_that_cannot_be_written_ends_the_run_with_a_way_out(tmp_path: Path) -> None:
    metrics = Metrics({}, RunFolder(tmp_path), start=0, recipe={}, say=print)
    metrics.record._file.close()
    metrics.record._file._file = Lines(Path("/dev/full"))
    with pytest.raises(MarkedNotWritten, match=r"No space left on device.*go on from the newest checkpoint"):
        metrics.log("train", 1, {"loss": 1.0})
    metrics.close()
    metrics.close()


# ------------------------------------------------------------------------------------------- options


def test_tensorboard_is_what_a_recipe_logs_to_by_default(tmp_path: Path) -> None:
    made = recipe().replace(loggers={"tensorboard": TensorBoard.Config()}, steps=10)
    assert Recipe(
        modality=made.modality, encoders=made.encoders, objective=made.objective
    ).loggers == made.loggers  # fmt: skip
    train(made, tmp_path)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_loggers_may_change_when_a_run_is_resumed(tmp_path: Path, seen: list[str]) -> None:
    train(recipe().replace(steps=10), tmp_path)
    train(fragile(steps=20), tmp_path)
    assert seen.count("train") == 2


def test_a_missing_package_or_a_name_that_is_taken_stops_a_run_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"loggers.checkpoints: no folder of a logger can be called so"):
        train(recipe().replace(loggers={"checkpoints": Fragile.Config()}), tmp_path / "a")
    monkeypatch.setattr(Fragile, "packages", ("wandb.no_such_part",))
    with pytest.raises(ImportError, match=r"pip install 'multissl\[wandb\]'"):
        train(fragile(), tmp_path / "b")


def loggers(*args: str) -> dict[str, Any]:
    return options.open_recipe("rl", list(args))[0].loggers


def test_loggers_are_left_out_added_and_set_by_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert loggers("--loggers", "none") == {}
    assert loggers("loggers.tensorboard=none") == {}
    assert loggers("--loggers.tensorboard.seconds", "5") == {"tensorboard": TensorBoard.Config(seconds=5.0)}
    both = loggers("--loggers.mine", "wandb", "--loggers.mine.mode", "offline")
    assert both == {"tensorboard": TensorBoard.Config(), "mine": WandB.Config(mode="offline")}
    assert loggers("--loggers.tensorboard", "none", "loggers.mine=mlflow") == {"mine": MLflow.Config()}
    for args, message in {
        ("--loggers", "no"): "--loggers no: want none, which leaves them all out",
        ("--loggers.tensorbord", "none"): "loggers has no logger 'tensorbord'; did you mean tensorboard?",
        ("--loggers.mine", "wandbb"): "no logger is called 'wandbb'; did you mean wandb?",
        ("--tensorboard", "false"): "no option --tensorboard: it is called --loggers now",
    }.items():
        assert cli.main(["show", "rl", *args]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(("old", "new"), [(True, ["tensorboard"]), (False, [])])
def test_a_recipe_of_an_earlier_format_names_its_loggers(old: bool, new: list[str], tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "old_runs" / "format1" / "tabular" / "recipe.json"
    values = json.loads(source.read_text()) | {"tensorboard": old}
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    assert [*read_recipe(tmp_path / "recipe.json").loggers] == new


def test_the_old_option_is_refused_with_the_new_one_named() -> None:
    with pytest.raises(TypeError, match="has no option 'tensorboard': it is called 'loggers' now"):
        recipe().replace(tensorboard=True)
