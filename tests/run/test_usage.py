"""The README of a run: its lines of code run as they stand, and give what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from multissl import cli
from multissl.recipe import Recipe
from multissl.run import train
from multissl.run.folder import RunFolder
from tests.run.test_audits import RUNS


def blocks(run: Path) -> tuple[str, list[str]]:
    """Return the lines of Python and the commands of a run's README."""
    text = RunFolder(run).readme.read_text()
    python, shell = (re.findall(rf"(?s)```{kind}\n(.*?)```", text) for kind in ("python", "sh"))
    return python[0], shell[0].splitlines()


def check(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, commands = blocks(run)
    promised = re.findall(r"print\(features.shape\)  # (.*)", code)[0]
    capsys.readouterr()
    exec(code, {})  # our own lines
    assert capsys.readouterr().out.strip() == f"torch.Size([{promised[1:-1]}])"
    monkeypatch.chdir(run.parent)
    for command in commands:
        words = command.split()
        assert words[0] == "multissl"
        assert cli.main(words[1:]) == 0, command


def recipe() -> Recipe:
    from tests.helpers import stubs

    return stubs.recipe().replace(steps=4)


def test_its_lines_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train.train(recipe(), tmp_path / "a run")
    code, _ = blocks(tmp_path / "a run")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("torch.Size([4, ")
    text = RunFolder(tmp_path / "a run").readme.read_text()
    assert f"multissl eval '{tmp_path}/a run'" in text  # quoted for the shell


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(RUNS)))
def test_its_lines_run_in_every_modality(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", *RUNS[number], "--steps", "2", "--data.workers", "0", "--evals", "none"]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 0
    check(tmp_path / "run", capsys, monkeypatch)
