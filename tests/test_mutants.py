"""The tool that plants bugs: where it plants them, what it leaves alone, and that its lists fit the code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from multissl import registry
from tests.modalities.test_contract import SMALL
from tools import mutants
from tools.mutation import Mutant, mutants_of

PARAMETERS = {*SMALL, *(name for group in registry.GROUPS for name in registry.names(group))}
"""What tests are parametrized by."""
SOURCE = '''
"""A docstring with 3 words or more."""
LIMIT = 5


def measure(values: list[int], split: str = "train", low: float = 2.0) -> float:
    """Another of 4."""
    if not values:
        raise ValueError(f"{len(values)} values: want 1 or more")
    assert len(values) > 0, "never 7"
    log(values, split)
    total: float = sum(values) / max(len(values), 1)
    if split == "val" and total < 0.5 * low:
        total = blend(total, low)
    warn("only 9 values")
    return total if values[0] is not None else 1e-12


def figures() -> int:
    return 8
'''


def changed() -> set[tuple[str, str, str]]:
    return {(m.kind, *m.lines(SOURCE)[1:]) for m in mutants_of("a.py", SOURCE)}


def test_bugs_of_every_kind_are_planted_in_functions() -> None:
    whole = 'if split == "val" and total < 0.5 * low:'
    assert changed() == {
        ("arguments swapped", "log(values, split)", "log(split, values)"),
        ("call dropped", "log(values, split)", "pass"),
        ("operator turned", "total: float = sum(values) / max(len(values), 1)",
         "total: float = sum(values) * max(len(values), 1)"),
        ("constant changed", "total: float = sum(values) / max(len(values), 1)",
         "total: float = sum(values) / max(len(values), 2)"),
        ("condition inverted", whole, 'if not (split == "val" and total < 0.5 * low):'),
        ("operator turned", whole, 'if split == "val" or total < 0.5 * low:'),
        ("operator turned", whole, 'if split != "val" and total < 0.5 * low:'),
        ("operator turned", whole, 'if split == "val" and total <= 0.5 * low:'),
        ("operator turned", whole, 'if split == "val" and total < 0.5 / low:'),
        ("name exchanged", whole, 'if split == "test" and total < 0.5 * low:'),
        ("constant changed", whole, 'if split == "val" and total < 1.0 * low:'),
        ("arguments swapped", "total = blend(total, low)", "total = blend(low, total)"),
        ("condition inverted", "return total if values[0] is not None else 1e-12",
         "return total if not (values[0] is not None) else 1e-12"),
        ("operator turned", "return total if values[0] is not None else 1e-12",
         "return total if values[0] is None else 1e-12"),
        ("constant changed", "return total if values[0] is not None else 1e-12",
         "return total if values[1] is not None else 1e-12"),
    }  # fmt: skip


def test_every_bug_of_the_package_is_still_python_and_changes_one_place() -> None:
    rooms = mutants.candidates()
    assert all(len(bugs) > 300 for bugs in rooms.values())
    for bug in mutants.draw(rooms, 200, 7):
        source = (mutants.ROOT / bug.file).read_text()
        ast.parse(bug.apply(source))
        number, old, new = bug.lines(source)
        assert old != new
        assert source.splitlines()[number - 1].strip() == old


def test_a_seed_draws_the_same_bugs_and_every_room_has_its_share() -> None:
    rooms = {name: [Mutant(name, "f", "k", i, i, "") for i in range(50)] for name in ("a", "b", "c")}
    first, again, other = (mutants.draw(rooms, 20, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert [sum(m.file == name for m in first) for name in rooms] == [7, 7, 6]


def test_every_file_has_tests_that_exist() -> None:
    files = {bug.file for bugs in mutants.candidates().values() for bug in bugs}
    assert len(files) > 90
    for test in {test for file in files for test in mutants.tests_of(file).split()}:
        path, _, name = test.partition("::")
        assert (mutants.ROOT / path).exists(), test
        function, _, parameter = name.partition("[")
        assert not name or f"def {function}(" in (mutants.ROOT / path).read_text(), test
        assert not parameter or parameter.rstrip("]") in PARAMETERS, test


def test_named_and_equivalent_bugs_are_those_of_the_code_as_it_is() -> None:
    named, reasons = mutants.read_list()
    jobs = mutants.jobs_of(named)
    assert len(jobs) == len(named) > 30
    for job in jobs:
        ast.parse(job.text)
        assert job.text != (mutants.ROOT / job.file).read_text()
    every = {}
    for bugs in mutants.candidates().values():
        for bug in bugs:
            source = (mutants.ROOT / bug.file).read_text()
            every[bug.file, bug.function, *bug.lines(source)[1:]] = bug
            every[bug.file, bug.function, bug.lines(source)[1], mutants.ANY] = bug
    assert all(reasons.values())
    assert not reasons.keys() - every.keys(), "listed, but no bug of the code"


def test_a_bug_that_a_test_notices_is_killed_and_one_that_none_does_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUTANTS", str(tmp_path))
    file = "multissl/schedules.py"
    source = (mutants.ROOT / file).read_text()
    bug = source.replace("return self.final\n", "return self.base\n", 1)
    for text, killed in ((bug, True), (source, False)):
        _, outcome = mutants.run(mutants.Job("a bug", file, text, "tests/test_schedules.py"))
        assert outcome.killed is killed, outcome
        assert outcome.seconds > 0
    assert (mutants.ROOT / file).read_text() == source
