"""A run of a second that keeps checkpoints, and its weights."""

from __future__ import annotations

from pathlib import Path

import torch

from multissl.engine import checkpoint
from multissl.evaluators.collapse import Collapse
from multissl.recipe import Recipe
from multissl.run.model import load
from tests.helpers import stubs


def recipe(steps: int) -> Recipe:
    made = stubs.recipe().replace(steps=steps)
    made.save = checkpoint.Save(every=10, keep_last=4)
    made.evals = {"collapse": Collapse.Config()}
    return made


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return dict(load(folder).encoders.state_dict())


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
