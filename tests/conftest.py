"""Shared by all tests: one thread per process, and what a skipped test means where every extra is installed."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Generator, Iterator
from typing import Any

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes would fight for the cores

os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(
    prefix="multissl-tests-"
)  # the user's list is not the tests'

ALL_EXTRAS = "MULTISSL_ALL_EXTRAS"
"""With this variable set, as CI sets it, a test that is skipped because a package is missing fails."""
MISSING = re.compile(r"could not import|could not be imported|No module named|is not installed")


def refuse_missing(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip for a missing package into a failure where all extras are said to be installed."""
    if os.environ.get(ALL_EXTRAS) and report.skipped and MISSING.search(str(report.longrepr)):
        report.outcome = "failed"
        report.longrepr = f"{ALL_EXTRAS} is set, yet a package is missing: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, pytest.TestReport]:
    report = yield
    refuse_missing(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, pytest.CollectReport]:
    report = yield
    refuse_missing(report)
    return report


@pytest.fixture
def lean() -> Iterator[None]:
    """Leave out of runs what costs seconds and is tested elsewhere."""
    from tests.helpers.lean import lean_runs  # after the variables above, as it imports torch

    with lean_runs():
        yield


HEAVY = (
    "tests/verify/",
    "tests/faults/",
    "tests/test_exact.py",
    "tests/test_hostile_names.py",
    "tests/test_grid.py",
)
"""What takes longest, and so comes first where several processes share the tests."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first where several processes share the tests: none is left alone with it at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not item.nodeid.startswith(HEAVY))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give the tests of a file to one process: what they share, from fitted data to trained runs, is made once.

    So is what the tests of `faults` share, which a warm process runs. Another --dist that is asked for stays.
    """
    if config.option.dist != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/faults" if nodeid.startswith("tests/faults/") else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return ByFile(config, log)
