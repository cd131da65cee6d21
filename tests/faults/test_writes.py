"""A run whose writes fail, anywhere and in any way: the same command again ends as an uninterrupted run.

The same encoder and fitted state, the same files of checkpoints, the same record without measured times; and the
command whose write failed says so in a line.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from tests.faults.conftest import Wholes
from tests.faults.injection import HOWS, WANTS_SPACE, How
from tests.faults.runs import COMMANDS, again, log_of, state, train
from tests.faults.warm import Warm, changed

QUICK = "rl"
"""The modality whose run is the shortest."""
ENDS: tuple[How, ...] = ("die", "full")


def problems_of(
    warm: Warm, wholes: Wholes, name: str, faults: Iterable[tuple[int, How]], folder: Path
) -> list[str]:
    """Return what went wrong, by the write that failed and how."""
    whole, writes, _ = wholes(name)
    problems = []
    for point, how in faults:
        run = folder / f"{name}_{point}_{how}"
        problem = failed(warm, COMMANDS[name], run, point, how, whole)
        problem = problem or again(warm, COMMANDS[name], run, whole)
        if problem:
            problems.append(f"{name}, write {point} ({writes[point - 1]}), {how}: {problem}")
    return problems


def failed(warm: Warm, words: list[str], folder: Path, point: int, how: How, whole: dict[str, object]) -> str:
    """Run a command whose write fails; return what is wrong with how it ends."""
    ended = train(warm, words, folder, point=point, how=how)
    log = log_of(folder).read_text()
    if how == "die":
        return "" if ended.code == -9 else f"did not die: {ended}"
    if ended.hung or "Traceback" in log:
        return f"no line of an error: {ended} {log[-3000:]}"
    if not ended.code:  # a failure that does not matter, as where a file is gone already
        return "" if not changed(whole, state(folder)) else f"no error was said: {log[-1500:]}"
    last = log.splitlines()[-1]
    return "" if ended.code == 1 and last.startswith("error: ") else f"{ended.code}: {last}"


def drawn(writes: Sequence[str], count: int, seed: str) -> list[int]:
    """Return write points, one from each of equally long parts of a run."""
    random_points = random.Random(seed)
    edges = [1 + round(len(writes) * i / count) for i in range(count + 1)]
    return [random_points.randrange(a, b) for a, b in pairwise(edges)]


def test_a_run_whose_writes_fail_ends_as_an_uninterrupted_one(
    warm: Warm, wholes: Wholes, tmp_path: Path
) -> None:
    points = drawn(wholes(QUICK)[1], 9, "quick")
    faults: list[tuple[int, How]] = [(point, HOWS[place % 3]) for place, point in enumerate(points)]
    assert not problems_of(warm, wholes, QUICK, faults, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_of_each_modality_whose_writes_fail_ends_as_an_uninterrupted_one(
    warm: Warm, wholes: Wholes, name: str, tmp_path: Path
) -> None:
    faults: list[tuple[int, How]] = [
        (point, how) for point in drawn(wholes(name)[1], 10, name) for how in ENDS
    ]
    assert not problems_of(warm, wholes, name, faults, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_every_write_of_a_run_may_fail(warm: Warm, wholes: Wholes, part: int, tmp_path: Path) -> None:
    writes = wholes(QUICK)[1]
    first = {write: place for place, write in reversed([*enumerate(writes)])}
    possible: dict[How, Callable[[int], bool]] = {
        "die": lambda place: True,
        "full": lambda place: writes[place].split()[0] in WANTS_SPACE,
        "error": lambda place: first[writes[place]] == place,  # of equal writes the first
    }
    faults: list[tuple[int, How]] = [
        (place + 1, how)
        for place in range(part, len(writes), 4)
        for how, may in possible.items()
        if may(place)
    ]
    assert not problems_of(warm, wholes, QUICK, faults, tmp_path)
