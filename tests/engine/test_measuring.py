"""Measuring beside the steps: a signal ends it at once and it is made up for, a budget leaves out what is too slow."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.engine.checkpoint import Save
from multissl.engine.signals import EndRequest, MeasuringEnded
from multissl.engine.trainer import Interrupted
from multissl.evaluators.knn import KNN
from multissl.inference import clean_views
from multissl.parallel.ranks import rank
from multissl.recipe import Recipe
from multissl.run import train
from multissl.run.folder import RunFolder
from tests.helpers import stubs
from tests.helpers.ranks import run_ranks

AT: list[int] = []
"""Steps at which `Slow` is sent a signal while it measures."""


class Slow(Evaluator):
    """Counts its runs; where it is to be interrupted it takes 30 seconds otherwise."""

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options."""

        seconds: float = 0.0
        """Seconds that it takes."""

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """The step, as a figure."""
        time.sleep(self.cfg.seconds)
        if AT and AT[0] == progress.step:
            AT.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        return {"step": float(progress.step)}


def recipe(**slow: Any) -> Recipe:
    made = stubs.recipe().replace(steps=20, save=Save(every=15))
    made.evals = {"knn": KNN.Config(every=10), "slow": Slow.Config(every=10, **slow)}
    return made


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "encoder.safetensors").read_bytes()).hexdigest()


def figures(folder: Path) -> list[tuple[Any, ...]]:
    """Return the record without what is measured of time."""
    timed = {"samples_per_s", "waiting_percent", "memory_gib", "tflops", "utilization_percent"}
    return [
        tuple((n, v) for n, v in line.items() if n not in timed and not n.startswith("nominal_"))
        for line in RunFolder(folder).read_metrics()
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train.train(recipe(), folder)
    return folder


@pytest.mark.parametrize("at", [0, 10, 20])
def test_a_signal_ends_what_is_measured_within_a_second_and_it_is_made_up_for(
    whole: Path, tmp_path: Path, at: int
) -> None:
    AT.append(at)
    began = time.monotonic()
    with pytest.raises(Interrupted, match="no step was taken yet" if not at else f"checkpoint of step {at}"):
        train.train(recipe(), tmp_path)
    assert time.monotonic() - began < 20
    kept = [line["step"] for line in RunFolder(tmp_path).read_metrics() if line["kind"] == "eval"]
    assert kept == [*range(0, at, 10)]
    train.train(recipe(), tmp_path)
    assert figures(tmp_path) == figures(whole)
    assert digest(tmp_path) == digest(whole)


def test_a_signal_in_the_step_before_something_is_due_leaves_it_to_the_next_start(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(step: int) -> None:
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(stubs, "pause", end)
        with pytest.raises(Interrupted, match="checkpoint of step 10"):
            train.train(recipe(), tmp_path)
    train.train(recipe(), tmp_path)
    assert figures(tmp_path) == figures(whole)


def test_a_budget_leaves_out_what_took_longer_and_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recipe(seconds=0.5).replace(eval_seconds=0.3)
    made.evals["slow"].every = 5
    train.train(made, tmp_path)
    lines = [line for line in RunFolder(tmp_path).read_metrics() if line["kind"] == "eval"]
    measured = [line["step"] for line in lines if "slow/step" in line]
    assert measured == [0, 20]
    assert [line["step"] for line in lines if "knn/top1" in line] == [0, 10, 20]
    said = capsys.readouterr().err
    assert (
        said.count("slow took 1 s last and goes over eval_seconds=0.3: it is left out until the last step")
        == 1
    )


CALLS = 8
"""Batches that `Sent` encodes."""


class Sent(Evaluator):
    """Encodes batches; before one of them a signal reaches the second rank alone, once."""

    seen: ClassVar[int] = 0

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options."""

        mark: str = ""
        """A file that says that the signal was sent."""

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """The number of batches, as a figure."""
        views = clean_views(modality, [modality.dataset("val")[0]], "points", encoders.device)
        for Sent.seen in range(CALLS):
            if Sent.seen == 3 and progress.step == 10 and rank() == 1 and not Path(self.cfg.mark).exists():
                Path(self.cfg.mark).touch()
                os.kill(os.getpid(), signal.SIGTERM)
            encoders.encode([views])
        return {"batches": float(CALLS)}


def agreeing(number: int) -> int:
    """Return at which place a rank leaves off, of a signal that reaches the second one alone at the third."""
    ending = EndRequest(lambda _: None)
    place = 0
    with ending.heard():
        ending.agree()  # nothing is measured: steps have an answer of their own
        try:
            with ending.measuring():
                for place in range(CALLS):
                    if place == 3 and number == 1:
                        os.kill(os.getpid(), signal.SIGTERM)
                    ending.agree()
        except MeasuringEnded:
            return place
    return CALLS


@pytest.mark.ranks
def test_a_signal_to_one_rank_ends_what_all_measure_at_the_same_place() -> None:
    assert run_ranks(2, agreeing) == [3, 3]


def interrupted(_: int, folder: Path) -> tuple[str, int]:
    made = stubs.recipe().replace(steps=20, evals={"sent": Sent.Config(every=10, mark=f"{folder}.sent")})
    try:
        train.train(made, folder)
    except Interrupted as ended:
        return str(ended), Sent.seen
    return "", Sent.seen


@pytest.mark.slow
@pytest.mark.ranks
def test_a_run_on_two_ranks_ends_what_it_measures_where_a_signal_reaches_one(tmp_path: Path) -> None:
    ends = run_ranks(2, interrupted, tmp_path)
    assert [seen for _, seen in ends] == [3, 3]
    assert all("the checkpoint of step 10" in text for text, _ in ends)
    assert [x["step"] for x in RunFolder(tmp_path).read_metrics() if x["kind"] == "eval"] == [0]
    assert run_ranks(2, interrupted, tmp_path)[0][1] == CALLS - 1
    assert [x["step"] for x in RunFolder(tmp_path).read_metrics() if x["kind"] == "eval"] == [0, 10, 20]
