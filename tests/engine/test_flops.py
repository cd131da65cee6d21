"""Operations are counted without numbers, as the architecture has them, and say how busy a device is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import multissl
from benchmarks.dinov2_step import raw_batch, step_flops, toy
from multissl.build import build
from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Losses, Progress
from multissl.contract.plans import StreamSpec
from multissl.engine import window
from multissl.engine.flops import Blueprint, StepFlops
from multissl.engine.window import Rates
from multissl.recipe import Recipe
from multissl.run.folder import RunFolder
from tests.helpers.ranks import run_ranks
from tests.helpers.stubs import Spread, recipe

CPU = torch.device("cpu")
START = Progress(step=0, total=10)


def counted(made: Recipe) -> tuple[StepFlops, Any]:
    """The operations of a step of a recipe, and the same from the sizes of its layers."""
    parts = build(made, CPU)
    raw, rng = raw_batch(parts, made, CPU)
    batch = parts.modality.views(raw, parts.learner.objective.plans(), rng)
    hidden = len(batch[0].masks[0].index) / made.batch_size
    return parts.blueprint.count(batch, START), step_flops(made, hidden)


def test_a_step_of_dinov2_has_the_operations_of_its_layers() -> None:
    flops, expected = counted(toy(4))
    assert flops.executed == flops.nominal
    tokens = 2 * 16 + 8 * 4
    pixels = 2 * 3 * 14**2 * 64 * tokens  # pictures get no gradient, which the formula does not know
    assert flops.nominal / 4 == pytest.approx(expected.nominal - pixels, rel=0.02)


def test_rows_that_drop_path_leaves_out_are_nominal_alone() -> None:
    made = toy(8)
    made.encoders["image"] = made.encoders["image"].replace(drop_path=0.5)
    flops, _ = counted(made)
    assert 0.5 * flops.nominal < flops.executed < 0.8 * flops.nominal


def test_chunks_are_encoded_twice_and_counted_so() -> None:
    whole, _ = counted(toy(4))
    chunked, _ = counted(toy(4).replace(chunk=2))
    assert chunked.nominal == whole.nominal
    assert 1.2 * whole.executed < chunked.executed < 1.4 * whole.executed  # one forward pass of four more


class Reads(Spread):
    """Asks for the number in a tensor in the middle of its step."""

    @dataclass(kw_only=True, slots=True)
    class Config(Spread.Config): ...

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        assert batch[0].x.sum().item() < 1e9
        return super().forward(encoders, batch, progress)


class Locked(Spread):
    """Holds what cannot be copied."""

    @dataclass(kw_only=True, slots=True)
    class Config(Spread.Config): ...

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__(cfg, encoders, streams)
        self.lines = (line for line in "ab")


@pytest.mark.parametrize(
    ("objective", "reason"), [(Reads, "DataDependentOutputException"), (Locked, "cannot pickle 'generator'")]
)
def test_what_cannot_be_counted_trains_and_is_said(
    objective: type[Spread], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    multissl.train(recipe().replace(objective=objective.Config(), steps=5), tmp_path)
    assert f"operations of a step are not counted: {'TypeError ' * (objective is Locked)}{reason}" in (
        " ".join(capsys.readouterr().err.split())
    )
    (line,) = [x for x in RunFolder(tmp_path).read_metrics() if x["kind"] == "train"]
    assert line["samples"] == 5 * 16
    assert "tflops" not in line


def test_counting_changes_neither_weights_nor_random_numbers() -> None:
    made = toy(4)
    made.encoders["image"] = made.encoders["image"].replace(drop_path=0.5)
    parts = build(made, CPU)
    before = {n: t.clone() for n, t in parts.learner.state_dict().items()}
    raw, rng = raw_batch(parts, made, CPU)
    batch = parts.modality.views(raw, parts.learner.objective.plans(), rng)
    torch.manual_seed(1)
    parts.blueprint.count(batch, START)
    assert all(torch.equal(t, before[n]) for n, t in parts.learner.state_dict().items())
    assert all(p.grad is None for p in parts.learner.parameters())


def test_rates_are_those_of_all_samples_beside_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    class Known(Blueprint):
        def __init__(self) -> None:
            self.learner = None

        def count(self, batch: Batch, progress: Progress) -> StepFlops:
            return StepFlops(executed=16e9, nominal=32e9)

    monkeypatch.setattr(window, "peak", lambda _: 1e12)
    monkeypatch.setattr(window, "power", lambda _: 300.0)
    rates = Rates(Known(), 16, CPU)
    assert rates.metrics(2, 100.0) == {"samples": 32, "watts": 300.0, "joules_per_sample": 3.0}
    assert rates.count(Batch([]), START) == ""
    metrics = rates.metrics(2, 100.0)
    assert metrics["tflops"] == pytest.approx(0.1)
    assert metrics["utilization_percent"] == pytest.approx(10)
    assert metrics["nominal_utilization_percent"] == pytest.approx(20)


def test_the_record_of_a_run_holds_them(tmp_path: Path) -> None:
    multissl.train(recipe().replace(steps=10), tmp_path)
    lines = [x for x in RunFolder(tmp_path).read_metrics() if x["kind"] == "train"]
    assert [x["samples"] for x in lines] == [80, 160]
    assert all(x["tflops"] > 0 for x in lines)


def on_ranks(_rank: int) -> float:
    return counted(toy(4))[0].executed


@pytest.mark.ranks
def test_ranks_send_nothing_while_they_count() -> None:
    one = counted(toy(4))[0].executed
    for executed in run_ranks(2, on_ranks):
        assert executed == pytest.approx(one, rel=0.01)  # features of both ranks are compared
