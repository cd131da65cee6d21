"""Alarms: what a run says about its own collapse, in histories as they were logged and in training itself."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from multissl.configs.image import dino
from multissl.contract.alarms import common_alarm, no_choice, one_point, one_prototype, stalled
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.judging import alarm_of
from multissl.engine.optim.adamw import AdamW
from multissl.layers.heads import MLPHead, PrototypeHead
from multissl.layers.teacher import Teacher
from multissl.modalities.image.adapter import Image
from multissl.objectives.byol import BYOL
from multissl.objectives.dino import DINO
from multissl.objectives.vicreg import VICReg
from multissl.recipe import Recipe
from multissl.run import train as run
from multissl.run.folder import RunFolder
from multissl.run.report import write_report
from tests.helpers import stubs


def history(every: int = 20, **figures: Sequence[float]) -> list[dict[str, float]]:
    """A history of log windows, by figure; __ stands for a slash."""
    rows = zip(*figures.values(), strict=True)
    names = [n.replace("__", "/") for n in figures]
    return [{"step": every * (i + 1), **dict(zip(names, row, strict=True))} for i, row in enumerate(rows)]


# ------------------------------------------------------------------------------------ pure functions


@pytest.mark.parametrize(
    ("std", "found"),
    [
        ([0.9, 0.5, 0.3, 0.215, 0.205], None),  # a slow teacher at step 100: not there yet
        ([0.9, 0.5, 0.19, 0.15, 0.12, 0.1], 0.1),
        ([0.03, 0.028, 0.03, 0.031, 0.03], 0.03),
        ([0.08, 0.1, 0.13, 0.16, 0.19], None),  # an untrained encoder on its way up
        ([0.9, 0.1, 0.1], None),  # too few
        ([0.9, 0.1, 0.1, 0.1, 0.5], None),  # a dip
        ([0.9, 0.1, math.nan, 0.1, 0.1], None),
    ],
)
def test_embeddings_in_one_point(std: list[float], found: float | None) -> None:
    assert one_point(history(stats__std=std)) == found


def test_a_trend_needs_steps_and_not_only_lines() -> None:
    assert one_point(history(every=5, stats__std=[0.05] * 8)) is None
    assert one_point(history(every=5, stats__std=[0.05] * 14)) == 0.05
    assert one_point([{"step": 10.0, "loss": 1.0}] * 30) is None  # the figure is not logged


def test_uniform_targets_need_a_vanishing_divergence_too() -> None:
    full, k = math.log(64), 64
    healthy = history(stats__teacher_entropy=[0.97 * full] * 6, stats__teacher_kl=[0.001] * 6)
    started = history(stats__teacher_entropy=[0.995 * full] * 6, stats__teacher_kl=[0.5] * 6)
    empty = history(stats__teacher_entropy=[0.995 * full] * 6, stats__teacher_kl=[0.001] * 6)
    assert no_choice(healthy, k) is None
    assert no_choice(started, k) is None
    assert no_choice(empty, k) == pytest.approx(0.995)


def test_few_prototypes_take_everything() -> None:
    assert one_prototype(history(stats__prototype_use=[0.3, 0.1, 0.02, 0.01, 0.01, 0.01])) == 0.01
    assert one_prototype(history(stats__prototype_use=[0.3, 0.1, 0.02, 0.01, 0.01, 0.035])) is None
    assert (
        one_prototype(history(stats__prototype_use=[0.01, 0.015, 0.02, 0.03, 0.035])) is None
    )  # coming back


def test_a_loss_at_its_constant_value() -> None:
    value = math.log(127)
    constant = [value] * 5
    assert stalled(history(50, loss=[value + 0.001] * 5, stats__constant=constant)) == value + 0.001
    moving = [value, value, value, value - 0.1, value - 0.3]
    assert stalled(history(50, loss=moving, stats__constant=constant)) is None
    assert stalled(history(20, loss=constant, stats__constant=constant)) is None, "too early to tell"
    assert stalled(history(50, loss=constant)) is None, "nobody says what a constant output costs"
    said = common_alarm("infonce", history(50, loss=constant, stats__constant=constant))
    assert said is not None
    assert "optim.lr" in said


# -------------------------------------------------------------------------------------- in the run


class Sinking(stubs.Spread):
    """Raises an alarm with a moving figure from step 20 on, until it is told to stop."""

    @dataclass(kw_only=True, slots=True)
    class Config(stubs.Spread.Config):
        until: int = 100

    def alarm(self, history: Any, progress: Progress) -> str | None:
        assert progress.step + 1 == history[-1]["step"]
        assert all({"loss", "terms/pull", "stats/center"} <= h.keys() for h in history)
        assert [h["step"] for h in history] == [5 * (i + 1) for i in range(len(history))]
        last = history[-1]["step"]
        assert isinstance(self.cfg, Sinking.Config)
        return f"sinking (at {last / 7:.2f}): pull less" if 20 <= last < self.cfg.until else None


def sinking(until: int = 100) -> Recipe:
    return stubs.recipe().replace(objective=Sinking.Config(until=until))


def alarms(folder: Path) -> list[tuple[int, str]]:
    return [(x["step"], x["text"]) for x in RunFolder(folder).read_metrics() if x["kind"] == "alarm"]


def test_an_alarm_is_said_once_and_stands_in_report_and_verdict(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run.train(sinking(), tmp_path)
    assert alarms(tmp_path) == [(20, "sinking (at 2.86): pull less")]
    assert capfd.readouterr().err.count("step 20: sinking") == 1
    assert result.verdict.endswith("; alarm: sinking (at 2.86): pull less")
    assert json.loads((tmp_path / "summary.json").read_text())["alarm"].startswith("sinking")
    page = write_report(tmp_path).read_text()
    assert "<h2>Alarms</h2>" in page
    assert "step 20: sinking" in page


def test_an_alarm_that_is_over_leaves_the_verdict(tmp_path: Path) -> None:
    result = run.train(sinking(until=35), tmp_path)
    assert alarms(tmp_path) == [(20, "sinking (at 2.86): pull less"), (35, "")]
    assert "alarm" not in result.verdict
    assert "step 35: what raised the alarm is over" in write_report(tmp_path).read_text()


class Wary(Evaluator):
    """Raises an alarm from its fourth measurement on, and has to see all before it, the one before training too."""

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        return {"seen": progress.step / 2, "unknown": math.nan}

    def alarm(self, history: list[dict[str, float]]) -> str:
        assert all(math.isnan(entry.pop("unknown")) for entry in history)
        assert history == [{"step": 10 * i, "seen": 5.0 * i} for i in range(len(history))]
        return "wary of what it sees" if len(history) > 3 else ""


def test_an_evaluator_raises_an_alarm_beside_the_objective_and_after_a_resume(tmp_path: Path) -> None:
    made = sinking().replace(evals={"watch": Wary.Config(every=10)})
    run.train(made.replace(steps=20), tmp_path)
    assert [step for step, _ in alarms(tmp_path)] == [20]
    result = run.train(made.replace(steps=40), tmp_path)
    assert [(step, text.partition("; ")[2]) for step, text in alarms(tmp_path)] == [
        (20, ""),
        (35, "wary of what it sees"),
    ]
    assert result.verdict.endswith("pull less; wary of what it sees")


def test_a_resumed_run_remembers_the_figures_and_does_not_say_it_again(tmp_path: Path) -> None:
    run.train(sinking().replace(steps=30), tmp_path)
    run.train(sinking().replace(steps=40), tmp_path)  # `Sinking.alarm` checks that the history is whole
    assert len(alarms(tmp_path)) == 1
    assert alarm_of(RunFolder(tmp_path).read_metrics()).startswith("sinking")


# ------------------------------------------------------------------------------ deliberate collapse

HEAD = PrototypeHead.Config(prototypes=64, bottleneck=16, hidden=64, init_std=0.0)
MLP = MLPHead.Config(hidden=64, out=32, layers=2)
PLAIN = DINO.Config(
    ibot_weight=0.0, koleo_weight=0.0, num_local=0, head=HEAD, centering="ema", teacher_temperature_start=0.04,
    teacher_temperature=0.04, teacher=Teacher.Config(ema=0.9, final_ema=0.99),
)  # fmt: skip
YOU = BYOL.Config(
    projector=MLP, predictor=MLP, teacher=BYOL.Config().teacher.replace(ema=0.99, final_ema=1.0)
)
COLLAPSES: dict[str, tuple[Objective.Config, str]] = {
    "dino without centering": (PLAIN.replace(centering="none"), "objective.centering"),
    "dino with a teacher at temperature 1": (
        PLAIN.replace(teacher_temperature_start=1.0, teacher_temperature=1.0), "objective.teacher_temperature",
    ),
    "byol without predictor": (YOU.replace(use_predictor=False), "objective.use_predictor"),
    "byol without predictor, slow teacher": (
        YOU.replace(use_predictor=False, teacher=YOU.teacher.replace(ema=0.996, final_ema=1.0)),
        "objective.use_predictor",
    ),
    "simsiam without stopped gradient": (
        YOU.replace(target="student", stop_gradient=False), "objective.stop_gradient",
    ),
    "vicreg without variance": (VICReg.Config(variance=0.0, projector=MLP), "objective.variance"),
}  # fmt: skip
# At this batch a moving center is too weak for plain DINO: that run collapses, and says so.
HEALTHY: dict[str, Objective.Config] = {
    "byol": YOU,
    "simsiam": YOU.replace(target="student"),
    "vicreg": VICReg.Config(projector=MLP),
}


def tiny(objective: Objective.Config, steps: int) -> Recipe:
    encoder = TransformerEncoder.Config(
        dim=48, depth=2, heads=2, ffn_ratio=2.0, conv_stem=True, layerscale=1.0, init_std=0.0
    )
    modality = dino.default().modality
    assert isinstance(modality, Image.Config)
    return Recipe(
        modality=modality.replace(size=16, local_size=8, mask_group=4), encoders={"image": encoder},
        objective=objective, optim=AdamW.Config(lr=2e-3, warmup=20), batch_size=32, steps=steps, log_every=10,
        loggers={},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", COLLAPSES)
def test_a_deliberate_collapse_is_named_within_500_steps(name: str, tmp_path: Path) -> None:
    objective, option = COLLAPSES[name]
    result = run.train(tiny(objective, 500), tmp_path)
    said = alarm_of(RunFolder(tmp_path).read_metrics())
    assert option in said, RunFolder(tmp_path).read_metrics()[-1]
    assert said in result.verdict


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_the_same_run_without_the_mistake_raises_no_alarm(name: str, tmp_path: Path) -> None:
    run.train(tiny(HEALTHY[name], 500), tmp_path)
    assert not alarms(tmp_path)


@pytest.mark.slow
def test_the_recipe_of_the_demo_raises_no_alarm(tmp_path: Path) -> None:
    # Plain DINO on 32 samples per step collapses by itself, so its healthy run is the one that is shipped.
    run.train(dino.default().replace(steps=500, evals={}, loggers={}), tmp_path)
    assert not alarms(tmp_path)
