"""What loggers are given by the trainer: metrics as they come, and the figures of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from multissl.contract.learning import Figure, Losses
from multissl.contract.logger import Kind, Logger, Session
from multissl.engine import trainer
from multissl.run import train as run
from tests.helpers.stubs import recipe


class Drawn(Logger):
    """Notes which figures it is given, and at which step."""

    @dataclass(kw_only=True, slots=True)
    class Config(Logger.Config):
        pass

    def __init__(self, cfg: Config, session: Session) -> None:
        del cfg, session

    def log(self, kind: Kind, step: int, metrics: Mapping[str, Any]) -> None:
        LOGGED.append((kind, step))

    def draw(self, step: int, figures: Sequence[Figure]) -> None:
        DRAWN.append((step, len(figures)))


LOGGED: list[tuple[str, int]] = []
DRAWN: list[tuple[int, int]] = []


def test_loggers_are_given_the_figures_of_the_report(tmp_path: Path) -> None:
    LOGGED.clear()
    DRAWN.clear()
    run.train(recipe().replace(steps=3, log_every=1, loggers={"mine": Drawn.Config()}), tmp_path)
    assert [step for kind, step in LOGGED if kind == "train"] == [1, 2, 3]
    assert [step for step, _ in DRAWN] == [3]


@pytest.mark.parametrize(("groups", "listed"), [(1, 1), (15, 15), (16, 0), (40, 0)])
def test_norms_of_fewer_than_16_groups_are_listed(groups: int, listed: int) -> None:
    window = trainer.Window()
    norms = {f"group_{i}": torch.tensor(float(i)) for i in range(groups)}
    window.add(Losses(total=torch.tensor(1.0), terms={}), norms, lr=0.1, waited=0.0, samples=4)
    means = window.summary()
    assert sum(name.startswith("gradient_norm/") for name in means) == listed
