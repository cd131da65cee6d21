"""Checkpoints of modules and optimizers, sharded or not, through torch.distributed.checkpoint."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn


def save_state(state: dict[str, Any], folder: Path) -> None:
    """Write a nested state of tensors, sharded or not, into a folder (torch.distributed.checkpoint)."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        with _quiet():
            save(state, checkpoint_id=str(folder))
    except (
        CheckpointException
    ) as error:  # no Exception, so nobody would catch it; the first rank's reason is enough
        reason = next(iter(error.failures.values()))[0]
        raise OSError(str(reason) or type(reason).__name__) from reason


def load_state(state: dict[str, Any], folder: Path) -> None:
    """Read what `save_state` wrote into a state of the same structure, on any number of ranks.

    The format unpickles its metadata: only for checkpoints of one's own runs.
    """
    from torch.distributed.checkpoint.state_dict_loader import load

    with _quiet():
        load(state, checkpoint_id=str(folder))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says about its own storage classes, and about a group that one rank does not need."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        warnings.filterwarnings(
            "ignore", message="torch.distributed is disabled, unavailable or uninitialized"
        )
        yield


def optimizer_state(learner: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimizer's state by parameter name, so that it can be loaded on another number of ranks.

    A new optimizer has a state of zeros for every trainable parameter, one that took steps has none for parameters that
    never had a gradient.
    """
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return cast(dict[str, Any], get_optimizer_state_dict(learner, optimizer))


def restore_optimizer(learner: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give the optimizer what `optimizer_state` made; a parameter without a state gets one with its first gradient."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    set_optimizer_state_dict(learner, optimizer, state, options=StateDictOptions(strict=False))


def drop_unsaved(state: dict[str, Any], folder: Path, name: str) -> None:
    """Take parameters that had no state when a folder was written out of what `optimizer_state` made.

    `name` is the optimizer's within the state that was written.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    saved = FileSystemReader(folder).read_metadata().state_dict_metadata
    for parameter, values in list(state["state"].items()):
        if values and not any(f"{name}.state.{parameter}.{value}" in saved for value in values):
            del state["state"][parameter]
