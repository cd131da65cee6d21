"""Checkpoints as versions before format 3 wrote them: through torch.distributed.checkpoint, with a pickled outline."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multissl.engine import checkpoint
from multissl.engine.checkpoint import GROUPS, LEARNER, STATES
from multissl.files import remove_folder
from multissl.parallel.state import read_index, tensors


def write_pickled(folder: Path, state: dict[str, Any], step: int) -> None:
    """Write a nested state as older versions did."""
    from torch.distributed.checkpoint.state_dict_saver import save

    with (
        warnings.catch_warnings()
    ):  # of torch's own storage classes, and of a group that one rank does not need
        warnings.simplefilter("ignore")
        save(state, checkpoint_id=str(folder))
    (folder / "meta.json").write_text(json.dumps({"format": 2, "step": step}))


def as_before(folder: Path) -> None:
    """Turn a checkpoint into the pickled one that an older version would have written."""
    state, step = nested(folder), checkpoint.step_of(folder)
    remove_folder(folder)
    write_pickled(folder, state, step)


def nested(folder: Path) -> dict[str, Any]:
    """Return the state of a checkpoint as older versions handed it to their writer."""
    learner: dict[str, Tensor] = {}
    moments: dict[str, dict[str, Any]] = {}
    values = read_index(folder)["values"]
    for name, value in {**tensors(folder), **values}.items():
        if name.startswith(LEARNER):
            learner[name.removeprefix(LEARNER)] = value
        elif name.startswith(STATES):
            parameter, _, key = name.removeprefix(STATES).rpartition("/")
            moments.setdefault(parameter, {})[key] = value
    groups = [
        {n: tuple(v) if n == "betas" else v for n, v in group.items()} for group in values[GROUPS]
    ]  # JSON has no tuples
    return {"learner": learner, "optimizer": {"state": moments, "param_groups": groups}}


def equal(one: Any, two: Any) -> bool:
    """Return whether two states hold the same numbers under the same names."""
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(equal(one[n], two[n]) for n in one)
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    return list(one) == list(two) if isinstance(one, list | tuple) else one == two
