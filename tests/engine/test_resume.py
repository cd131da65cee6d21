"""A run that is killed and started again ends as one that never was."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from multissl.engine import checkpoint
from multissl.parallel.ranks import barrier
from multissl.recipe import Recipe
from multissl.run import train as run
from multissl.run.folder import RunFolder
from tests.helpers.ranks import run_ranks
from tests.helpers.stubs import recipe

ROOT = Path(__file__).parents[2]


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "encoder.safetensors").read_bytes()).hexdigest()


def train(folder: Path, **changes: object) -> run.Result:
    return run.train(recipe().replace(**changes), folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def command(folder: Path, **environment: str) -> subprocess.Popen:
    recipe_file = f"{ROOT / 'tests' / 'helpers' / 'stubs.py'}:recipe"
    return subprocess.Popen(
        [sys.executable, "-m", "multissl", "train", recipe_file, "--out", str(folder)],
        cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_stopping_at_a_checkpoint_and_going_on_changes_nothing(whole: Path, tmp_path: Path) -> None:
    train(tmp_path, steps=40, save=recipe().save)
    assert digest(tmp_path) == digest(whole)
    for folder in checkpoint.find(RunFolder(tmp_path).checkpoints)[1:]:
        (folder / "meta.json").unlink()  # as if the run had died before this checkpoint was whole
    train(tmp_path)
    assert digest(tmp_path) == digest(whole)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if x["kind"] == "train"] == list(range(5, 41, 5))


@pytest.mark.parametrize(
    "stops",
    [pytest.param([23], id="once"), pytest.param([12, 19, 34], id="three times", marks=pytest.mark.slow)],
)
def test_a_run_killed_outright_ends_bit_identical(whole: Path, tmp_path: Path, stops: list[int]) -> None:
    for stop in stops:
        marker = tmp_path / f"reached_{stop}"
        process = command(tmp_path, PAUSE_AT=f"{stop}:{marker}")
        deadline = time.monotonic() + 60
        while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        _, said = process.communicate()
        assert marker.exists(), said
    last = command(tmp_path)
    _, said = last.communicate()
    assert last.returncode == 0, said
    assert digest(tmp_path) == digest(whole)


def test_a_run_killed_inside_a_write_goes_on_from_the_last_whole_checkpoint(
    whole: Path, tmp_path: Path
) -> None:
    train(tmp_path, steps=40)
    newest = checkpoint.find(RunFolder(tmp_path).checkpoints)[-1]
    newest.rename(newest.with_name(f"writing_{newest.name}"))
    (newest.with_name(f"writing_{newest.name}") / "meta.json").unlink()
    (tmp_path / "encoder.safetensors").unlink()
    assert checkpoint.step_of(checkpoint.find(RunFolder(tmp_path).checkpoints)[-1]) == 30
    train(tmp_path)
    assert digest(tmp_path) == digest(whole)
    assert not list((tmp_path / "checkpoints").glob("writing_*"))


def test_another_recipe_stops_with_its_difference(whole: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)another recipe:\n  objective.pull: 1.0 -> 2.0\n.*--restart"):
        run.train(changed(), whole)


def changed() -> Recipe:
    made = recipe()
    made.objective.pull = 2.0
    return made


def test_a_recipe_saved_before_an_option_existed_goes_on_with_its_default(tmp_path: Path) -> None:
    train(tmp_path, steps=20)
    saved = json.loads((tmp_path / "recipe.json").read_text())
    del saved["sha256"]  # earlier versions wrote none
    assert saved["objective"].pop("pull") == 1.0
    (tmp_path / "recipe.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"another recipe:\n  objective.pull: 1.0 -> 2.0"):
        run.train(changed(), tmp_path)
    train(tmp_path, steps=20)
    saved["objective"]["push"] = 1.0  # an option of long ago
    (tmp_path / "recipe.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"objective.push: 1.0 -> \(absent\)"):
        train(tmp_path, steps=20)


def test_a_finished_run_tells_its_result_again(whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = digest(whole)
    train(whole)
    assert "has finished its 40 steps already" in capfd.readouterr().err
    assert digest(whole) == before


def test_a_finished_run_can_be_given_more_steps(whole: Path, tmp_path: Path) -> None:
    train(tmp_path, steps=20)
    result = train(tmp_path, steps=40)
    assert checkpoint.step_of(checkpoint.find(RunFolder(result.folder).checkpoints)[-1]) == 40


def on_ranks(rank: int, folder: str, steps: int) -> list[float]:
    run.train(recipe().replace(steps=steps), folder)
    lines = [json.loads(x) for x in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [x["loss"] for x in lines if x["kind"] == "train"]


@pytest.mark.ranks
def test_two_ranks_to_one_and_back(tmp_path: Path) -> None:
    """Dropout draws by rank, so losses are compared where it is off: only loading and going on is asked here."""
    run_ranks(2, on_ranks, str(tmp_path), 10)
    one = on_ranks(0, str(tmp_path), 20)
    back = run_ranks(2, on_ranks, str(tmp_path), 30)[0]
    assert len(one) == 4
    assert back[:4] == one
    assert len(back) == 6


@pytest.mark.ranks
@pytest.mark.parametrize("shard", [1, 2])
def test_sharded_and_unsharded_runs_have_the_same_losses(tmp_path: Path, shard: int) -> None:
    alone = plain(0, str(tmp_path / "one"), 1)
    both = run_ranks(2, plain, str(tmp_path / "two"), shard)
    torch.testing.assert_close(torch.tensor(both[0]), torch.tensor(alone), rtol=1e-5, atol=1e-6)


def plain(rank: int, folder: str, shard: int) -> list[float]:
    made = recipe().replace(steps=20)
    made.encoders["points"].dropout = 0.0
    made.parallel.shard = shard
    run.train(made, folder)
    lines = [json.loads(x) for x in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    barrier()
    return [x["loss"] for x in lines if x["kind"] == "train"]
