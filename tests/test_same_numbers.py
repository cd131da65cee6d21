"""The record that proves a refactoring: equal for equal code, different where a number differs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import same_numbers
from multissl.evaluators.collapse import Collapse
from multissl.run import train as run
from tests.helpers import stubs


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The numbers of two runs of one recipe, and of a third with another seed."""
    made = []
    for seed in (0, 0, 1):
        recipe = stubs.recipe().replace(steps=10, seed=seed, log_every=1)
        recipe.evals = {"collapse": Collapse.Config(samples=32)}
        folder = tmp_path_factory.mktemp("run")
        run.train(recipe, folder)
        made.append(same_numbers.numbers_of(folder))
    return made


def test_two_runs_of_the_same_code_have_the_same_numbers(numbers: list[dict[str, Any]]) -> None:
    assert not same_numbers.differences({"a": numbers[0]}, {"a": numbers[1]})


def test_another_seed_changes_record_encoder_and_checkpoint(numbers: list[dict[str, Any]]) -> None:
    lines = "\n".join(same_numbers.differences({"a": numbers[0]}, {"a": numbers[2]}))
    assert "loss" in lines
    assert "of the encoder differ" in lines
    assert "of the checkpoint differ" in lines


def test_every_number_that_changes_is_noticed(numbers: list[dict[str, Any]]) -> None:
    assert len(numbers[0]["checkpoint"]) > len(numbers[0]["encoder"]) > 0
    for part in ("encoder", "checkpoint"):
        for name in numbers[0][part]:
            changed = copy.deepcopy(numbers[0])
            del changed[part][name]
            assert len(same_numbers.differences({"a": numbers[0]}, {"a": changed})) == 1


def test_a_law_lists_the_figures_that_are_measured_times(tmp_path: Path) -> None:
    """All other figures of the record repeat to the digit; a new one joins `MEASURED` or is exact."""
    records = []
    for name in ("first", "second"):
        run.train(stubs.recipe().replace(steps=10, log_every=1), tmp_path / name)
        records.append([json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()])
    first, second = records
    changed = {
        key for a, b in zip(first, second, strict=True) for key in {*a, *b} if a.get(key) != b.get(key)
    }
    assert changed <= same_numbers.MEASURED
