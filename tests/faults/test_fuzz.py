"""Mutated files of every format are read, or refused in a line that names them. `make fuzz` runs many more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROBLEMS_OF_BEFORE = {
    # a damaged row group was an error of the run, not of the sample
    "parquet_image": (0, [2, 84]),
    # a member of a shard was named without the shard
    "tar": (0, [8]),
    # entries were compared before anything was asked of them
    "run_data": (0, [0]),
    # a label of more digits than a number holds
    "jsonl_text": (0, [87]),
    # a number of 5,000 digits
    "run_metrics": (0, [140]),
}
"""By format, the seed and the numbers of cases that were once no line with a name."""


def fuzz(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz", *words],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def test_whole_files_are_read() -> None:
    """Else what is asked of mutated ones would say nothing; a listing alone names pictures that are not there."""
    from tests.faults.fuzz.formats import all_formats

    names = [name for name in all_formats() if name != "csv_list"]
    fuzz("1", "--fine", "--cases", "-1", "--formats", *names)


def test_mutated_files_are_read_or_refused_by_name() -> None:
    assert "cases of seed 1" in fuzz("250", "--seed", "1")


@pytest.mark.parametrize("name", PROBLEMS_OF_BEFORE)
def test_what_was_a_problem_is_refused_by_name(name: str) -> None:
    seed, cases = PROBLEMS_OF_BEFORE[name]
    fuzz("1", "--seed", str(seed), "--formats", name, "--cases", *map(str, cases))
