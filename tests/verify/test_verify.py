"""`multissl verify`: bugs turn the right column red, a right machine is green, and the exit code says so."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from multissl import cli, registry
from multissl.verify.cases import Case, cases
from multissl.verify.checks import CHECKS, Findings
from multissl.verify.table import as_text
from tests.helpers.ranks import free_port
from tests.verify.planted import BUGS

ROOT = Path(__file__).parents[2]
RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@functools.cache
def red() -> dict[str, dict[str, str]]:
    """The red columns of every bug on two processes."""
    with tempfile.TemporaryDirectory() as name:
        ports = [str(free_port()) for _ in range(len(BUGS) + 1)]
        words = ["2", "-m", "tests.verify.planted", name, f"{name}/red.json", *ports]
        done = subprocess.run(
            [*RANKS, *words], check=True, cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert not done.stdout, done.stdout  # of gloo, which says from C++ that ranks are connected
        return json.loads(Path(name, "red.json").read_text())


@pytest.mark.ranks
@pytest.mark.parametrize("name", BUGS)
def test_a_bug_turns_its_column_red(name: str) -> None:
    assert BUGS[name].column in red()[name], red()[name]


@pytest.mark.ranks
def test_without_a_bug_nothing_is_red_and_bugs_of_one_column_leave_others_green() -> None:
    assert not red()["none"]
    assert set(red()["weights that are not restored on one process"]) == {"moved"}
    assert set(red()["shards with twice the gradient"]) == {"sharded"}
    assert set(red()["a loss in half precision"]) == {"half"}
    assert {bug.column for bug in BUGS.values()} == set(CHECKS)


def test_every_objective_has_a_case() -> None:
    chosen, reasons = cases()
    assert not reasons
    assert [case.objective for case in chosen] == [*registry.names("objectives")]


def test_one_process_compares_what_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "vicreg", "--processes", "1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == [*CHECKS]
    assert printed[1].split() == ["vicreg", "image", "right", "right", "right", "-", "-", "right", "right"]
    assert printed[-1] == "5 of 5 comparisons are right"


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_every_objective_is_right_on_several_processes(count: int) -> None:
    command = [sys.executable, "-m", "multissl", "verify", "--processes", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "WRONG" not in done.stdout
    assert "Gloo" not in done.stdout


def test_a_red_column_is_explained(tmp_path: Path) -> None:
    it = Findings(Case("dino", "image"), torch.device("cpu"), tmp_path)
    it.problems = {"repeated": "", "ranks": "0 loss: 0.1 beside 2"}
    text = as_text([it])
    assert text.splitlines()[1].split() == ["dino", "image", "right", "-", "-", "WRONG", "-", "-", "-"]
    assert "dino, ranks: 0 loss: 0.1 beside 2" in text
    assert text.endswith("1 of 2 comparisons are right")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", "3"], "--processes 3: want 1, 2, 4 or 8"),
        (["dinos"], "dinos"),
        (["--processes", "many"], "invalid int value: 'many'"),
    ],
)
def test_what_cannot_be_verified_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", *words]) == 2
    assert message in capsys.readouterr().err


def test_under_a_launcher_a_folder_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["verify", "vicreg"]) == 2
    assert "--folder PATH" in capsys.readouterr().err
