"""The trap of slow features: what never changes in an episode is easier to agree on than the ball, and what helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import multissl
from multissl.configs.rl import default
from multissl.engine.batches import Data
from multissl.evaluators.state_probe import StateProbe

pytestmark = pytest.mark.slow


def ball(folder: Path, **options: Any) -> float:
    """R2 of the ball in percent, on episodes held out, after a short run of the default recipe."""
    made = default()
    made.modality = made.modality.replace(**options)
    made.evals = {"state": StateProbe.Config(values=("ball_x", "ball_y"), train=3000, queries=0)}
    made = made.replace(steps=150, batch_size=64, data=Data(workers=0))
    return multissl.train(made, folder).metrics["state/r2"]


def test_a_fixed_background_hides_the_ball_and_taking_the_mean_out_shows_it(tmp_path: Path) -> None:
    noise = ball(tmp_path / "noise")
    fixed = ball(tmp_path / "fixed", background="fixed")
    taken = ball(tmp_path / "taken", background="fixed", subtract="episode")
    burst = ball(tmp_path / "burst", background="fixed", burst=16, pace=4, gap=0)
    found = f"noise {noise:.1f}, fixed {fixed:.1f}, mean taken out {taken:.1f}, bursts {burst:.1f}"
    assert noise > 40, found
    assert fixed < noise - 30, found
    assert taken > noise - 10, found
    assert burst > fixed + 15, found  # negatives of the same background help, and less
