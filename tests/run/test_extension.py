"""More steps at a resume: what they do to the schedules is said, and a constant rate is extended exactly."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from multissl.engine import checkpoint
from multissl.engine.optim.adamw import AdamW
from multissl.recipe import Recipe
from multissl.run.folder import RunFolder
from multissl.run.train import train
from multissl.schedules import Schedule
from tests.helpers.stubs import recipe


def constant(**changes: object) -> Recipe:
    optim = AdamW.Config(lr=1e-2, warmup=5, lr_shape="constant", cooldown=10, weight_decay=0.1)
    return recipe().replace(optim=optim, **changes)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "encoder.safetensors").read_bytes()).hexdigest()


def test_a_constant_rate_falls_on_a_line_in_its_last_steps() -> None:
    s = Schedule(base=1.0, final=0.2, shape="constant", cooldown=4, warmup=2)
    assert [s.at(step, 10) for step in (1, 2, 6, 7, 8, 9, 10)] == pytest.approx([1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_a_run_extended_before_its_cool_down_is_one_that_had_been_so_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(constant(steps=40), tmp_path / "whole")
    short = tmp_path / "short"
    train(constant(steps=30), short)
    assert digest(short) != digest(tmp_path / "whole")
    shutil.copytree(short, tmp_path / "late")
    for made in checkpoint.find(RunFolder(short).checkpoints):
        if checkpoint.step_of(made) > 20:  # in the cool-down
            shutil.rmtree(made)
    capsys.readouterr()
    train(constant(steps=40), short)
    said = capsys.readouterr().err
    assert "30 -> 40 steps, resumed at step 20: rates are those of a run of 40 steps from the start" in said
    assert digest(short) == digest(tmp_path / "whole")

    train(constant(steps=40), tmp_path / "late")
    said = capsys.readouterr().err
    assert "Step 30 lies in the cool-down of before" in said
    assert "remove those after step 20 to go on from there" in said
    assert digest(tmp_path / "late") != digest(tmp_path / "whole")


def test_what_a_cosine_jumps_to_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(recipe().replace(steps=20), tmp_path)
    capsys.readouterr()
    train(recipe().replace(steps=40), tmp_path)
    said = capsys.readouterr().err
    old, new = (Schedule(base=1e-2, final=1e-6, warmup=5).at(20, total) for total in (20, 40))
    assert f"20 -> 40 steps, resumed at step 20: learning rate {old:.4g} -> {new:.4g}" in said
    assert (
        "not the run that had been so long from the start; --optim.lr_shape constant --optim.cooldown N is"
        in said
    )
    train(recipe().replace(steps=40), tmp_path)
    assert "steps, resumed at" not in capsys.readouterr().err  # as many as before


def test_a_cool_down_belongs_to_a_constant_rate_and_has_room() -> None:
    with pytest.raises(
        ValueError, match=r"optim.cooldown=3 with optim.lr_shape=cosine: want lr_shape=constant, or 0"
    ):
        AdamW.Config(cooldown=3)
    with pytest.raises(ValueError, match=r"optim.stretch=1.25 with optim.lr_shape=constant"):
        AdamW.Config(lr_shape="constant", stretch=1.25)
    with pytest.raises(ValueError, match=r"optim.cooldown=10 and optim.warmup=5 are more than steps=14"):
        constant(steps=14)
