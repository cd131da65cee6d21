"""A hundred windows of ten runs are as their runs say, and ten runs that were tampered with are found and placed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from multissl import cli
from multissl.contract.learning import Progress
from multissl.engine.batches import StepBatches
from multissl.engine.step import Step, StepResult
from multissl.run.audit import audit

STEPS, EVERY = 12, 4
RUNS: list[list[str]] = [
    ["image", "--batch_size", "4"],
    ["image", "--objective", "moco", "--batch_size", "4"],
    ["image", "--objective", "byol", "--batch_size", "4"],
    ["image", "--objective", "mae", "--batch_size", "4"],
    ["video", "--batch_size", "2"],
    ["audio", "--batch_size", "4"],
    ["text", "--batch_size", "4"],
    ["tabular", "--batch_size", "16"],
    ["rl", "--batch_size", "4"],
    ["image_text", "--batch_size", "4"],
]
TAMPERED = 6
"""The step that is tampered with, between two checkpoints."""


def train(words: list[str], folder: Path) -> None:
    code = cli.main([
        "train", *words, "--steps", str(STEPS), "--save.every", str(EVERY), "--save.keep_last", "9",
        "--data.workers", "0", "--evals", "none", "--out", str(folder),
    ])  # fmt: skip
    assert code == 0


def flip_a_bit(patch: pytest.MonkeyPatch) -> None:
    def tamper(step: Step, _result: StepResult) -> None:
        # of a norm, which every step reads: of a word that comes up later the checkpoint would tell first
        moved = [p for p in step.learner.parameters() if p.grad is not None and p.dim() == 1]
        weights = max(moved, key=lambda p: float(p.grad.abs().max()) if p.grad is not None else 0.0)
        assert weights.grad is not None
        weights.data.view(torch.int32).view(-1)[int(weights.grad.abs().argmax())] ^= 1 << 20

    _after_the_step(patch, tamper)


def change_the_rate(patch: pytest.MonkeyPatch) -> None:
    def tamper(step: Step, result: StepResult) -> None:
        for group in step.optimizer.torch.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data -= 0.1 * result.lr * parameter.grad.sign()

    _after_the_step(patch, tamper)


def swap_a_sample(patch: pytest.MonkeyPatch) -> None:
    original = StepBatches.index

    def swapped(self: StepBatches, position: int) -> int:
        index = original(self, position)
        return (index + 1) % len(self.samples) if position == TAMPERED * self.total + 1 else index

    patch.setattr(StepBatches, "index", swapped)


def _after_the_step(patch: pytest.MonkeyPatch, tamper: Callable[[Step, StepResult], None]) -> None:
    original = Step.__call__

    def tampered(self: Step, batch: Any, progress: Progress, stops: Callable[[], bool] = bool) -> StepResult:
        result = original(self, batch, progress, stops)
        if progress.step == TAMPERED:
            tamper(self, result)
        return result

    patch.setattr(Step, "__call__", tampered)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(RUNS)))
def test_ten_windows_of_a_run_are_as_it_says(number: int, tmp_path: Path) -> None:
    train(RUNS[number], tmp_path / "run")
    draw = random.Random(number)
    for _ in range(10):
        start, stop = sorted(draw.sample(range(STEPS + 1), 2))
        result = audit(tmp_path / "run", start, stop)
        assert result.exact
        assert not result.differences


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(RUNS)))
def test_a_run_that_was_tampered_with_is_found_and_placed(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tampers = (flip_a_bit, change_the_rate, swap_a_sample)
    with monkeypatch.context() as patch:
        tampers[number % 3](patch)
        train(RUNS[number], tmp_path / "run")
    differences = audit(tmp_path / "run", 0, STEPS).differences
    # a sample tells at its own step, a weight at the next one
    step = TAMPERED + (number % 3 != 2)
    assert [d.partition(":")[0] for d in differences] == [f"step {step}", "checkpoint 8"]
