"""Shared by all tests: one thread per process, and what a skipped test means where every extra is installed."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Generator
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
