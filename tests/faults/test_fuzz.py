"""Mutated files of every format are read, or refused in a line that names them. `make fuzz` runs many more."""

from __future__ import annotations

import functools
import os
import re
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


ASKED = {
    # else what is asked of mutated ones would say nothing; a listing alone names pictures that are not there
    "whole": ["1", "--fine", "--cases", "-1", "--without", "csv_list"],
    "mutated": ["250", "--seed", "1"],
    **{
        name: ["1", "--seed", str(seed), "--formats", name, "--cases", *map(str, cases)]
        for name, (seed, cases) in PROBLEMS_OF_BEFORE.items()
    },
}


@functools.cache
def said() -> dict[str, str]:
    """What one process says of all that is asked, by its name."""
    words = [word for asked in ASKED.values() for word in (*asked, "--then")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz", *words],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    parts = re.split(r"(?<= problems)\n", done.stdout)
    assert len(parts) == len(ASKED) + 1, f"{done.stdout}{done.stderr}"
    return dict(zip(ASKED, parts, strict=False))


@pytest.mark.parametrize("name", ASKED)
def test_files_are_read_or_refused_by_name(name: str) -> None:
    assert re.search(r"^[\d,]+ cases of seed \d+: \{.+\}\n0 problems\Z", said()[name], re.MULTILINE), said()[
        name
    ]
