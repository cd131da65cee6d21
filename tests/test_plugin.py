"""A modality and a recipe of another package, found through its entry points: nothing of multissl knows of them.

The package is `tests/plugin`. It is installed here as an installer would do it, by a dist-info folder beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from multissl import catalogue, cli, registry
from multissl.run import train as run

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tests" / "plugin"
NAME = "accelerometer"
SMALL = {
    "infonce": [],
    "vicreg": ["--objective.projector.hidden", "16", "--objective.projector.out", "16"],
    "mae": [
        "--objective.decoder.dim",
        "16",
        "--objective.decoder.depth",
        "1",
        "--objective.decoder.heads",
        "2",
    ],
}


def install(site: Path) -> Path:
    """The dist-info folder that its pyproject.toml asks for."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    lines = [f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"]
    (info / "METADATA").write_text("\n".join(lines))
    groups = project["entry-points"].items()
    parts = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in groups]
    (info / "entry_points.txt").write_text("\n".join(parts))
    return site


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package on sys.path with its entry points; the folder that holds them."""
    site = install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(PACKAGE))
    monkeypatch.syspath_prepend(str(site))
    registry._entry_points.cache_clear()
    catalogue.entries.cache_clear()
    yield site
    registry._entry_points.cache_clear()
    catalogue.entries.cache_clear()


def test_no_file_of_ours_names_it() -> None:
    files = [p for p in (ROOT / "multissl").rglob("*") if p.suffix in (".py", ".json", ".css")]
    assert len(files) > 100
    assert not [p.name for p in files if NAME in p.read_text()]


def test_list_and_a_mistyped_name_know_it_without_importing_torch(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(install(tmp_path / "site")), str(PACKAGE), str(ROOT)])
    code = (
        "import sys; from multissl.cli import main; main(['list']); main(['train', 'accelerometre']);"
        " sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.split()[:1] == [NAME] for line in lines), done.stdout
    (modalities,) = (line for line in lines if line.startswith("modalities:"))
    assert NAME in modalities
    assert "did you mean accelerometer?" in done.stderr


@pytest.mark.parametrize("objective", SMALL)
def test_it_trains_reports_and_loads(
    objective: str, installed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["train", NAME, "--objective", objective, *SMALL[objective], "--out", str(out), "--steps", "4"]
    command += [
        "--batch-size",
        "8",
        "--data.workers",
        "0",
        "--tensorboard",
        "false",
        "--encoders.accelerometer.dim",
        "8",
    ]
    assert cli.main(command) == 0, capfd.readouterr().err
    saved = json.loads((out / "recipe.json").read_text())
    assert (saved["modality"]["kind"], saved["objective"]["kind"]) == (NAME, objective)
    assert (out / "report.html").stat().st_size > 1000
    assert list(out.glob("checkpoints/step_*"))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"knn/top1", "knn/raw", "linear/top1"} <= {k for x in lines if x["kind"] == "eval" for k in x}
    features = run.load(out).encode(list(np.zeros((5, 3, 120), np.float32)))
    assert features.shape == (5, 8)
    assert cli.main([*command[:-1], "8", "--steps", "6"]) == 0
    assert "resuming at step 4 of 6" in capfd.readouterr().err


def test_a_recording_that_cannot_be_read_is_skipped_and_options_are_checked(
    installed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    windows = np.random.default_rng(0).normal(size=(40, 3, 120)).astype(np.float32)
    windows[3, 1, 7] = np.nan
    np.savez(tmp_path / "worn.npz", windows=windows, labels=np.arange(40) % 2)
    out = tmp_path / "run"
    command = ["train", NAME, "--data", str(tmp_path / "worn.npz"), "--out", str(out), "--steps", "6"]
    command += ["--batch-size", "8", "--data.workers", "0", "--tensorboard", "false"]
    assert cli.main(command) == 0
    assert json.loads((out / "summary.json").read_text())["skipped"] == 1
    assert "sample 3 cannot be read and is skipped: recording 3" in capfd.readouterr().err
    assert cli.main([*command, "--modality.length", "97"]) == 2
    assert "want a multiple of patch=8, such as 96" in capfd.readouterr().err
