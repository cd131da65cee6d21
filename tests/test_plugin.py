"""A part of every kind in another package, found through its entry points: nothing of multissl knows of them.

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
from typing import Any

import numpy as np
import pytest
import torch

from multissl import catalogue, cli, registry
from multissl.build import build
from multissl.contract.data import Views
from multissl.contract.learning import Progress
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.batches import Data
from multissl.modalities.image.adapter import Image
from multissl.recipe import Recipe
from multissl.run.evaluate import evaluate
from multissl.run.model import load
from multissl.run.train import train
from multissl.weights.files import save_weights
from multissl.weights.loading import load_state

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


def entries() -> dict[str, dict[str, str]]:
    """The package's entry points by group of the registry."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    return {group.removeprefix("multissl."): names for group, names in project["entry-points"].items()}


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
        "--loggers",
        "none",
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
    features = load(out).encode(list(np.zeros((5, 3, 120), np.float32)))
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
    command += ["--batch-size", "8", "--data.workers", "0", "--loggers", "none"]
    assert cli.main(command) == 0
    assert json.loads((out / "summary.json").read_text())["skipped"] == 1
    assert "sample 3 cannot be read and is skipped: recording 3" in capfd.readouterr().err
    assert cli.main([*command, "--modality.length", "97"]) == 2
    assert "want a multiple of patch=8, such as 96" in capfd.readouterr().err


# a part of each kind


def test_the_package_adds_a_part_of_every_kind() -> None:
    assert {*entries()} == {*registry.GROUPS, "recipes"}


@pytest.mark.parametrize("group", [g for g in entries() if g != "recipes"])
def test_a_part_of_every_kind_is_found_by_its_name(group: str, installed: Path) -> None:
    for name, target in entries()[group].items():
        assert name in registry.names(group)
        cls = registry.resolve(name, group)
        assert f"{cls.__module__}:{cls.__qualname__}" == target
        assert registry.name_of(cls) == name


def recipe(**changes: Any) -> Recipe:
    """The package's recipe with its own objective, encoder, evaluator and optimizer."""
    made: Recipe = registry.recipe_entry_points()[NAME].load()()
    parts = {"objectives": "agreement", "encoders": "pooled", "evaluators": "width", "optimizers": "signs"}
    kinds = {group: registry.resolve(name, group).Config for group, name in parts.items()}
    mine: dict[str, Any] = {
        "objective": kinds["objectives"](),
        "encoders": {NAME: kinds["encoders"]()},
        "evals": {"width": kinds["evaluators"]()},
        "optim": kinds["optimizers"](lr=1e-3),
    }
    small = {"steps": 4, "batch_size": 8, "data": Data(workers=0)}
    return made.replace(**{**mine, **small, **changes})


def test_parts_of_every_kind_train_together_and_are_read_back(installed: Path, tmp_path: Path) -> None:
    train(recipe(), tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "recipe.json").read_text())
    kinds = [saved[part]["kind"] for part in ("modality", "objective", "optim")]
    assert kinds == [NAME, "agreement", "signs"]
    assert saved["encoders"][NAME]["kind"] == "pooled"
    model = load(tmp_path / "run")
    assert model.encode(list(np.zeros((5, 3, 120), np.float32))).shape == (5, 8)
    assert evaluate(tmp_path / "run")["width/deviation"] > 0


def test_a_logger_of_the_package_hears_of_a_run(installed: Path, tmp_path: Path) -> None:
    lines = registry.resolve("lines", "loggers").Config(digits=2)
    train(recipe(loggers={"lines": lines}, log_every=2), tmp_path / "run")
    (file,) = (tmp_path / "run").rglob("lines.txt")
    written = [line.split() for line in file.read_text().splitlines()]
    assert {words[0] for words in written if words[1:3] == ["train", "loss"]} == {"2", "4"}
    assert any(words[1:3] == ["eval", "width/deviation"] for words in written)


def test_an_optimizer_of_the_package_makes_its_own_steps(installed: Path) -> None:
    parts = build(recipe(optim=registry.resolve("signs", "optimizers").Config(lr=0.5)), torch.device("cpu"))
    weight = parts.learner.encoders[NAME].get_parameter("linear.weight")
    before = weight.detach().clone()
    weight.grad = torch.ones_like(weight)
    parts.optimizer.step(Progress(step=0, total=10))
    torch.testing.assert_close(weight, before - 0.5)


def test_a_kernel_of_the_package_attends_as_ours_does(installed: Path) -> None:
    spec = StreamSpec(kind="grid", shape=(3, 96), patch=(8,), num_tokens=12)
    torch.manual_seed(0)
    theirs = TransformerEncoder.Config(dim=16, depth=2, heads=2, attention="written").build(spec).eval()
    ours = TransformerEncoder.Config(dim=16, depth=2, heads=2).build(spec).eval()
    ours.load_state_dict(theirs.state_dict())
    views = Views(x=torch.randn(2, 3, 96), stream=NAME, role="clean")
    torch.testing.assert_close(theirs([views])[0].tokens, ours([views])[0].tokens, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="attention=writen: no such kernel; did you mean written"):
        TransformerEncoder.Config(attention="writen")


def old_file(path: Path) -> Path:
    save_weights(path, {"scale": torch.arange(48.0).view(6, 8), "shift": torch.ones(8)})
    return path


def test_a_layout_of_the_package_reads_its_files(installed: Path, tmp_path: Path) -> None:
    file = old_file(tmp_path / "old.safetensors")
    encoder = build(recipe(init=str(file)), torch.device("cpu")).learner.encoders[NAME]
    assert torch.equal(encoder.get_parameter("linear.weight"), torch.arange(48.0).view(6, 8).T)
    assert torch.equal(encoder.get_parameter("linear.bias"), torch.ones(8))


def test_a_source_of_the_package_lists_its_samples(installed: Path) -> None:
    data = Image.Config(data="stripes:20").build().dataset("train")
    assert {data[i].label for i in range(len(data))} == {0, 1}
    assert data[0].data.shape == (32, 32, 3)


# a package that cannot be imported


@pytest.fixture
def broken(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second package, whose module fails as it is imported, with an entry in every group."""
    (tmp_path / "multissl_torn.py").write_text("raise RuntimeError('its licence has run out')\n")
    info = tmp_path / "multissl_torn-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: multissl-torn\nVersion: 1.0\n")
    groups = [*registry.GROUPS, "recipes"]
    lines = [f"[multissl.{group}]\ntorn = multissl_torn:Thing\n" for group in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._entry_points.cache_clear()
    catalogue.entries.cache_clear()


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("group", registry.GROUPS)
def test_a_part_that_cannot_be_imported_is_named_and_hides_no_other(group: str) -> None:
    with pytest.raises(ImportError, match=r"'torn' of multissl-torn .*RuntimeError: its licence has run out"):
        registry.resolve("torn", group)
    assert "torn" in registry.names(group)
    for name in registry.names(group):
        if name != "torn":
            assert registry.name_of(registry.resolve(name, group)) == name


@pytest.mark.usefixtures("broken")
def test_commands_say_which_package_cannot_be_imported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["list"]) == 0
    assert "torn" in capfd.readouterr().out
    assert cli.main(["train", NAME, "--objective", "torn", "--out", str(tmp_path / "run")]) == 2
    assert "'torn' of multissl-torn" in capfd.readouterr().err
    assert cli.main(["show", "torn"]) == 2
    assert "'torn' of multissl-torn" in capfd.readouterr().err
    assert cli.main(["show", NAME]) == 0


@pytest.mark.usefixtures("broken")
def test_a_layout_or_source_that_cannot_be_imported_is_left_out_of_those_that_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr("multissl.registry.log.warning", lambda text, *v: warnings.append(text % v))
    file = old_file(tmp_path / "old.safetensors")
    encoder = build(recipe(init=str(file)), torch.device("cpu")).learner.encoders[NAME]
    assert torch.equal(encoder.get_parameter("linear.bias"), torch.ones(8))
    with pytest.raises(ValueError, match=r"missing linear\.weight, missing linear\.bias, unknown other"):
        load_state(encoder, {"other": torch.ones(1)})
    with pytest.raises(ValueError, match=r"modality\.data"):
        Image.Config(data="circles:20").build().dataset("train")
    for group in ("layouts", "sources"):
        (text,) = {w for w in warnings if w.startswith(f"torn is left out of the {group}: ")}
        assert "'torn' of multissl-torn" in text
    assert Image.Config(data="stripes:20").build().dataset("train")[0].data.shape == (32, 32, 3)
