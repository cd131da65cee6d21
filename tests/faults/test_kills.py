"""Runs that are ended from outside at some time: the same command again ends as an uninterrupted run."""

from __future__ import annotations

import random
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Wholes
from tests.faults.launched import launch
from tests.faults.runs import FAMILIES, again, compared, log_of, state, train
from tests.faults.warm import Warm

ENDS = {
    signal.SIGKILL: (-signal.SIGKILL, 0),
    # while it trains it saves and ends by itself; before and after it does what the system does
    signal.SIGTERM: (128 + signal.SIGTERM, -signal.SIGTERM, 0),
}
"""The exit codes of a run that a signal reaches; 0 of one that had ended."""


def problems_of(
    warm: Warm, wholes: Wholes, family: str, number: signal.Signals, count: int, folder: Path
) -> list[str]:
    """Return what went wrong with runs of a family that a signal ends, by its time."""
    whole, _, seconds = wholes(family)
    rng, problems = random.Random(f"{family} {number}"), []
    for place in range(count):
        run, after = folder / f"{family}_{place}", rng.uniform(0, seconds)
        ended = train(warm, FAMILIES[family], run, signal=int(number), after=after)
        log = log_of(run).read_text()
        problem = ""
        if ended.hung or ended.code not in ENDS[number] or "Traceback" in log:
            problem = f"{ended} {log[-3000:]}"
        problem = problem or again(warm, FAMILIES[family], run, whole)
        problems += [f"{family}, {number.name} after {after:.2f} s: {problem}"] * bool(problem)
    return problems


@pytest.mark.slow
@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_that_a_signal_ends_goes_on_as_if_it_had_not(
    warm: Warm, wholes: Wholes, family: str, number: signal.Signals, tmp_path: Path
) -> None:
    assert not problems_of(warm, wholes, family, number, 5, tmp_path)


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """What an uninterrupted run on two ranks leaves, and its seconds from its first line on."""
    folder = tmp_path_factory.mktemp("two") / "whole"
    ended, seconds = launch(folder)
    assert ended.code == 0, log_of(folder).read_text()
    return state(folder), seconds


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("number", ENDS)
def test_a_run_on_two_ranks_that_a_signal_ends_goes_on_as_if_it_had_not(
    on_two: tuple[dict[str, Any], float], number: signal.Signals, tmp_path: Path
) -> None:
    whole, seconds = on_two
    rng, problems = random.Random(number), []
    for place in range(5):
        run, after = tmp_path / str(place), rng.uniform(0, seconds)
        hit = launch(run, number, after)[0]
        log_of(run).rename(run.with_name(f"{run.name}.first"))  # torchrun says at length how its ranks ended
        problem = f"hung: {hit}" if hit.hung else compared(launch(run)[0], run, whole)
        problems += [f"{number.name} after {after:.2f} s: {problem}"] * bool(problem)
        shutil.rmtree(run, ignore_errors=True)
    assert not problems


CHAIN = [f"{Path(__file__).parents[1] / 'helpers' / 'chain.py'}:recipe"]
"""A run of three stages, which end after 4, 8 and 12 steps."""


@pytest.mark.slow
def test_a_chain_that_is_killed_over_its_borders_goes_on_as_if_it_had_not(warm: Warm, tmp_path: Path) -> None:
    whole = train(warm, CHAIN, tmp_path / "whole")
    expected = state(tmp_path / "whole")
    borders = [
        i for i, name in enumerate(whole.writes, 1) if re.fullmatch(r"_rename .*step_0000000[48]", name)
    ]
    assert len(borders) == 2
    problems = []
    for place in [border + away for border in borders for away in (-4, -1, 0, 1, 4)]:
        run = tmp_path / str(place)
        ended = train(warm, CHAIN, run, point=place, how="die")
        problem = "" if ended.code == -signal.SIGKILL else f"{ended}"
        problem = problem or again(warm, CHAIN, run, expected)
        problems += [f"killed at write {place}, {whole.writes[place - 1]}: {problem}"] * bool(problem)
    assert not problems
