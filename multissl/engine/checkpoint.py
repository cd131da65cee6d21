"""Checkpoints of one's own runs: written aside, renamed when whole, the last k and every n-th kept.

A folder `step_00001000` among a run's checkpoints holds the state of learner and optimizer
(torch.distributed.checkpoint, loads on any number of ranks) and `meta.json`. There is no loader state and no generator
state: the step number is both.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from multissl.config import Config
from multissl.parallel.collectives import all_true
from multissl.parallel.ranks import barrier, is_main
from multissl.parallel.sharding import local
from multissl.parallel.state import drop_unsaved, load_state, optimizer_state, restore_optimizer, save_state

FORMAT = 2
"""1: before random draws were named by tag; such a run cannot go on with the views it would have seen."""


@dataclass(kw_only=True, slots=True)
class Save(Config):
    """When checkpoints are written and kept."""

    every: int = 1000
    """Steps between checkpoints; one more is written at the end and when the run is interrupted."""
    keep_last: int = 2
    """Number of newest checkpoints that are kept, 1 or more."""
    keep_every: int = 0
    """Keep the checkpoints of these steps for good; 0 keeps none."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep_last < 1:
            raise ValueError(
                f"save.every={self.every}, save.keep_last={self.keep_last}: want 1 or more of each"
            )


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; earlier ones are intact."""


class NonFinite(RuntimeError):
    """The loss or its gradient stayed infinite or not a number, or the weights became so."""


def step_of(folder: Path) -> int:
    """Return the step at which a checkpoint folder resumes."""
    return int(folder.name.removeprefix("step_"))


def find(folder: Path) -> list[Path]:
    """Return the whole checkpoints in the folder of a run's checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step_*") if (p / "meta.json").is_file())


def newest_step(folder: Path) -> int:
    """Return the step of the newest whole checkpoint, 0 without one."""
    return max(map(step_of, find(folder)), default=0)


def save(folder: Path, step: int, learner: nn.Module, optimizer: torch.optim.Optimizer, cfg: Save) -> Path:
    """Write the state after `step` steps among the checkpoints; called on every rank."""
    target = folder / f"step_{step:08d}"
    if (target / "meta.json").is_file():
        return target
    aside = target.with_name(f"writing_{target.name}")
    if is_main():
        for leftover in target.parent.glob("writing_*"):  # of a process that was killed while it wrote
            shutil.rmtree(leftover)
    barrier()
    try:
        save_state(_state(learner, optimizer), aside)
        if is_main():
            (aside / "meta.json").write_text(json.dumps({"format": FORMAT, "step": step}))
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)
        newest = find(folder)
        kept = (
            f"the checkpoint of step {step_of(newest[-1])} is intact" if newest else "there is no earlier one"
        )
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {target.parent} ({_root(error)}); {kept}. "
            "Free some space or give another --out, then repeat the command to resume"
        ) from error
    barrier()
    if is_main():
        shutil.rmtree(target, ignore_errors=True)  # what is there has no meta.json: it was never whole
        aside.rename(target)
        _thin_out(folder, cfg)
    barrier()
    return target


def check_finite(shipped: nn.Module, folder: Path) -> None:
    """Raise `NonFinite` where encoders that a run is about to write are not finite; called on every rank.

    A buffer may hold -inf, as masks of attention do.
    """
    parameters = {name for name, _ in shipped.named_parameters(remove_duplicate=False)}
    floating = {n: local(t) for n, t in shipped.state_dict().items() if t.is_floating_point()}
    fine = [
        (t.isfinite() if n in parameters else t.isfinite() | t.isneginf()).all() for n, t in floating.items()
    ]
    agreed = all_true(torch.stack(fine)).tolist() if fine else []
    bad = [name for name, good in zip(floating, agreed, strict=True) if not good]
    if bad:
        checkpoints = find(folder)
        good = f"checkpoint of step {step_of(checkpoints[-1])}" if checkpoints else "start of the run"
        raise NonFinite(
            f"{len(bad)} tensors of the encoder are not finite ({', '.join(bad[:5])}{', ...' * (len(bad) > 5)}): "
            f"nothing of them is written to {folder.parent}, the last that is good is the {good}; train again with "
            "a lower --optim.lr and another --out"
        )


def load(folder: Path, learner: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore learner and optimizer in place, on any number of ranks; return the step to go on from."""
    meta = json.loads((folder / "meta.json").read_text())
    if meta["format"] > FORMAT:
        raise ValueError(
            f"{folder} has checkpoint format {meta['format']}, this version reads up to {FORMAT}: upgrade"
        )
    if meta["format"] < FORMAT:
        raise ValueError(
            f"{folder} has checkpoint format {meta['format']}: since then the order of random draws changed, so the "
            "run would not go on with the views that it would have seen; --restart sets it aside and begins anew, and "
            "encode and eval read its encoder as before"
        )
    state = _state(learner, optimizer)
    drop_unsaved(state["optimizer"], folder, "optimizer")
    load_state(state, folder)
    learner.load_state_dict(state["learner"])
    restore_optimizer(learner, optimizer, state["optimizer"])
    return meta["step"]


def _state(learner: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"learner": learner.state_dict(), "optimizer": optimizer_state(learner, optimizer)}


def _thin_out(folder: Path, cfg: Save) -> None:
    for old in find(folder)[: -cfg.keep_last]:
        if not cfg.keep_every or step_of(old) % cfg.keep_every:
            shutil.rmtree(old)


def _root(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return str(error).splitlines()[0] if str(error) else type(error).__name__
