"""A test that is skipped for a missing package fails where all extras are installed, and is skipped elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    "whole file": "import pytest\nabsent = pytest.importorskip('absent_package')\n\ndef test_it() -> None: ...\n",
    "one test": "import pytest\n\ndef test_it() -> None:\n    pytest.importorskip('absent_package')\n",
    "by a message": (
        "import pytest\nfrom multissl import registry\n\ndef test_it() -> None:\n"
        "    try:\n        registry.EXTRAS['absent_package'] = 'video'\n        registry.require('absent_package')\n"
        "    except ImportError as error:\n        pytest.skip(str(error))\n"
    ),
}
OTHER = "import pytest\n\ndef test_it() -> None:\n    pytest.skip('the pair has no meaning')\n"


def run(folder: Path, text: str, *, all_extras: bool) -> str:
    """Run one file of tests beside a copy of our conftest; the last line of what pytest says."""
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (folder / "test_one.py").write_text(text)
    env = {k: v for k, v in os.environ.items() if k != "MULTISSL_ALL_EXTRAS"}
    env |= {"PYTHONPATH": str(ROOT)} | ({"MULTISSL_ALL_EXTRAS": "1"} if all_extras else {})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(folder)]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("where", FILES)
def test_a_missing_package_fails_only_where_all_extras_are_installed(where: str, tmp_path: Path) -> None:
    assert "1 skipped" in run(tmp_path, FILES[where], all_extras=False)
    last = run(tmp_path, FILES[where], all_extras=True)
    assert "1 failed" in last or "1 error" in last


def test_a_test_that_is_skipped_for_another_reason_stays_skipped(tmp_path: Path) -> None:
    assert "1 skipped" in run(tmp_path, OTHER, all_extras=True)
