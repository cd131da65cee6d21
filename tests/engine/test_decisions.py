"""Figures that lower the learning rate, end the run or name its best step, and the same run after a resume."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import multissl
from multissl.contract.decision import Decision, joined
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.engine import checkpoint
from multissl.engine.best import Best, best_step
from multissl.engine.checkpoint import Save
from multissl.parallel.ranks import barrier
from multissl.recipe import Recipe
from multissl.run import model
from multissl.run import train as run
from multissl.run.audit import audit
from multissl.run.folder import RunFolder, located
from tests.helpers.lean import lean_runs
from tests.helpers.ranks import run_ranks
from tests.helpers.stubs import recipe


class Scripted(Evaluator):
    """A figure that is what its options say: one value for each measurement, the last one from then on."""

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        values: tuple[float, ...] = (0.0,)
        low: float = -math.inf
        """Half of the learning rate for each measurement below it."""
        end: float = -math.inf
        """The run ends below it."""

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        place = progress.step // (self.cfg.every or 1)
        return {"value": self.cfg.values[min(place, len(self.cfg.values) - 1)]}

    @property
    def decides(self) -> bool:
        return True

    def metric_names(self) -> list[str]:
        return ["value"]

    def decision(self, history: list[dict[str, float]]) -> Decision:
        below = sum(entry["value"] < self.cfg.low for entry in history)
        ends = history[-1]["value"] < self.cfg.end
        text = f"{below} below" if below else "too low" if ends else ""
        return Decision(lr=0.5**below, stop=ends, text=text)


class Last(Evaluator):
    """Measures at both ends alone."""

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        return {"step": float(progress.step)}


def made(best: Best | None = None, **options: Any) -> Recipe:
    evals = {"scripted": Scripted.Config(every=5, **options), "last": Last.Config()}
    return recipe().replace(evals=evals, best=best or Best(), save=Save(every=10))


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "encoder.safetensors").read_bytes()).hexdigest()


def of_kind(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [
        x for x in RunFolder(folder).read_metrics() if x["kind"] == kind and (x["step"] or kind != "note")
    ]


def kept(folder: Path) -> list[int]:
    return [checkpoint.step_of(p) for p in checkpoint.find(RunFolder(folder).checkpoints)]


def die_after(folder: Path, step: int) -> None:
    """Leave a run as if it had been killed with this newest checkpoint."""
    for path in checkpoint.find(RunFolder(folder).checkpoints):
        if checkpoint.step_of(path) > step:
            (path / checkpoint.META).unlink()
    (folder / "summary.json").unlink()


def test_what_several_ask_for_is_done_together() -> None:
    whole = joined([Decision(lr=0.5, text="a"), Decision(), Decision(lr=0.1, stop=True, text="b")])
    assert whole == Decision(lr=0.05, stop=True, text="a; b")
    assert joined([]) == Decision()


@pytest.mark.usefixtures("lean")
def test_the_learning_rate_is_lowered_from_the_step_on_at_which_figures_ask_for_it(tmp_path: Path) -> None:
    asked = made(values=(1, 1, 0, 0, 1), low=0.5)
    run.train(made(), tmp_path / "plain")
    run.train(asked, tmp_path / "lowered")
    rates = [[x["lr"] for x in of_kind(tmp_path / n, "train")] for n in ("plain", "lowered")]
    factors = [b / a for a, b in zip(*rates, strict=True)]
    assert factors == pytest.approx([1, 1, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25])
    notes = [(x["step"], x["text"]) for x in of_kind(tmp_path / "lowered", "note")]
    assert notes == [(10, "1 below"), (15, "2 below")]


@pytest.mark.usefixtures("lean")
def test_a_resumed_run_decides_as_one_that_never_stopped(tmp_path: Path) -> None:
    asked = made(values=(1, 1, 0, 0, 1), low=0.5)
    run.train(asked, tmp_path)
    before = digest(tmp_path), of_kind(tmp_path, "note")
    die_after(tmp_path, 30)
    run.train(asked, tmp_path)
    assert (digest(tmp_path), of_kind(tmp_path, "note")) == before
    assert audit(tmp_path, 8, 24).differences == []


@pytest.mark.usefixtures("lean")
def test_a_run_that_figures_end_is_finished_with_all_its_evaluators(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = made(values=(1, 1, 1, 0), end=0.5)
    result = run.train(asked, tmp_path)
    assert result.metrics == {"scripted/value": 0.0, "last/step": 15.0}
    assert [x["step"] for x in of_kind(tmp_path, "eval")] == [0, 5, 10, 15]
    assert RunFolder(tmp_path).finish()["step"] == 15
    assert multissl.load(tmp_path).step == 15
    before = digest(tmp_path), (tmp_path / "metrics.jsonl").read_bytes()
    run.train(asked, tmp_path)
    assert (digest(tmp_path), (tmp_path / "metrics.jsonl").read_bytes()) == before
    assert "step 15: too low" in capfd.readouterr().err
    run.train(made(values=(1, 1, 1, 0), end=-1.0), tmp_path)  # without that bound it goes on
    assert RunFolder(tmp_path).finish()["step"] == 40


def test_the_best_checkpoint_is_kept_and_can_be_named(tmp_path: Path) -> None:
    asked = made(values=(9, 1, 2, 3, 2, 1), best=Best(figure="scripted"))
    run.train(asked, tmp_path)
    assert kept(tmp_path) == [15, 30, 40]  # 15 is none of save.every
    assert located(f"{tmp_path}@best")[1] == 15
    best, last = multissl.load(f"{tmp_path}@best"), multissl.load(tmp_path)
    assert (best.step, last.step) == (15, 40)
    x = [torch.ones(6)]
    assert not torch.equal(best.encode(x), last.encode(x))
    assert "By scripted/value step 15 was the best (3)" in (tmp_path / "README.md").read_text()


@pytest.mark.usefixtures("lean")
def test_a_run_that_gets_no_better_ends_and_says_why(tmp_path: Path) -> None:
    asked = made(values=(0, 3, 2, 1, 1), best=Best(figure="scripted/value", patience=2))
    run.train(asked, tmp_path)
    assert kept(tmp_path) == [5, 10, 15]
    (note,) = of_kind(tmp_path, "note")
    assert note["text"].startswith("scripted/value was best at step 5 (3) and not better in 2 measurements")
    assert "ends" in note["text"]
    assert {"scripted/value", "last/step"} < of_kind(tmp_path, "eval")[-1].keys()


class Falling(Scripted):
    """Gives nothing from its third measurement on, but for the fifth."""

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        place = progress.step // (self.cfg.every or 1)
        return super().run(encoders, modality, progress) if place < 3 or place == 5 else {}

    @property
    def decides(self) -> bool:
        return False


@pytest.mark.parametrize("alone", [True, False])
def test_a_figure_that_is_measured_no_more_is_said_once_with_what_follows(
    tmp_path: Path, alone: bool
) -> None:
    best = Best(figure="falling", patience=2)
    evals: dict[str, Evaluator.Config] = {"falling": Falling.Config(every=5, values=(0.0, 3.0, 2.0))}
    evals |= {} if alone else {"last": Last.Config(every=5)}
    asked = recipe().replace(steps=40, evals=evals, best=best, save=Save(every=10))
    with pytest.MonkeyPatch.context() as patch:  # an interrupted run says it at the same steps
        patch.setattr(run.Trainer, "_log", stopped_at(20))
        with pytest.raises(KeyboardInterrupt):
            run.train(asked, tmp_path)
    run.train(asked, tmp_path)
    said = [(x["step"], x["text"]) for x in of_kind(tmp_path, "note") if "any more" in x["text"]]
    assert [step for step, _ in said] == [15]  # at step 25 patience ends it
    assert said[0][1] == (
        "falling gives no value any more, by which steps are compared (best.figure=falling): until it does, step 5 "
        "stays the best, best.patience=2 counts no measurement without it, and the run goes on"
    )
    assert RunFolder(tmp_path).read_summary()["steps"] == 25


def stopped_at(step: int) -> Any:
    """Return a function that ends a run where the trainer logs a step."""
    right = run.Trainer._log

    def logged(self: Any, at: int, *args: Any) -> None:
        if at == step:
            raise KeyboardInterrupt
        right(self, at, *args)

    return logged


def test_the_best_is_the_earlier_of_equals_and_never_a_number_that_is_none() -> None:
    lines = [{"step": s, "f": v} for s, v in ((0, 0.0), (5, 2.0), (10, math.nan), (15, 2.0), (20, 3.0))]
    found = best_step(lines, "f"), best_step(lines, "f", lower=True), best_step(lines[:3], "f")
    assert [(b.step, b.since) for b in found if b] == [(20, 0), (5, 3), (5, 1)]
    assert best_step(lines, "g") is None


@pytest.mark.parametrize(
    ("best", "message"),
    [
        ({"patience": 3}, "best.patience=3: say by which figure"),
        ({"figure": "scripted/valu"}, r"scripted/valu: scripted has no such figure; did you mean scripted/value\?"),
        ({"figure": "scripte"}, "best.figure=scripte: no evaluator that measures .* is called scripte;"),
        ({"figure": "last/step"}, "last measures at the start and the end only; --evals.last.every N"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("lean")
def test_a_figure_that_nobody_measures_is_refused(tmp_path: Path, best: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run.train(made(best=Best(**best)), tmp_path)


class Silent(Evaluator):
    """Measures nothing."""

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        return {}

    def metric_names(self) -> list[str]:
        return ["value"]


def test_steps_are_not_compared_by_an_evaluator_that_measures_nothing(tmp_path: Path) -> None:
    asked = made(best=Best(figure="silent")).replace(evals={"silent": Silent.Config(every=5)})
    with pytest.raises(ValueError, match="silent: silent measures nothing on this data"):
        run.train(asked, tmp_path)


def test_a_run_that_ends_says_its_last_step_beside_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(model.log, "warning", lambda text, *values: said.append(text % values))
    run.train(made(values=(9, 1, 2, 3, 2, 1), best=Best(figure="scripted")), tmp_path)
    assert said
    for text in said:
        assert "at its last step, 40; by scripted/value those of step 15 were best" in text


@pytest.mark.usefixtures("lean")
def test_a_run_without_a_best_step_says_so(tmp_path: Path) -> None:
    run.train(made().replace(steps=5), tmp_path)
    with pytest.raises(ValueError, match="has no best step yet; a run trained with"):
        multissl.load(f"{tmp_path}@best")


def on_ranks(rank: int, folder: Path) -> list[Any]:
    """Return what a run is on this rank, and what it is again after a kill."""
    asked = made(values=(1, 0, 1, 3, 2, -1), low=0.5, end=-0.5, best=Best(figure="scripted"))
    ends: list[Any] = []
    with lean_runs():
        for killed in (False, True):
            if killed and rank == 0:
                die_after(folder, 20)
            barrier()
            result = run.train(asked, folder)
            barrier()
            ends.append((result.metrics, kept(folder), digest(folder), notes(folder)))
            barrier()
    return ends


def notes(folder: Path) -> list[dict[str, Any]]:
    return [*of_kind(folder, "note"), *of_kind(folder, "best")]


@pytest.mark.ranks
def test_two_ranks_decide_alike_after_a_resume_too(tmp_path: Path) -> None:
    (before, after), other = run_ranks(2, on_ranks, tmp_path)
    assert before[:2] == ({"scripted/value": -1, "last/step": 25.0}, [15, 20, 25])
    assert after == before
    assert other == [before, after]
