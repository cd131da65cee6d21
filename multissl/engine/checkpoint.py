"""Checkpoints of one's own runs: written aside, renamed when whole, the last k and every n-th kept.

A folder `step_00001000` among a run's checkpoints holds the state of learner and optimizer (`parallel.state`: tensors
as safetensors, the rest as JSON; loads on any number of ranks) and `meta.json`: format, step, size and digest of every
file, how far record and trace of the run went, and a digest of all this. What is loaded has been compared with it; a
damaged checkpoint is set aside, and the newest whole one takes its place. Nothing is unpickled. There is no loader
state and no generator state: the step number is both.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from multissl import shapes
from multissl.config import Config
from multissl.files import Damaged, opened, remove_folder, rename, replace_text, sealed
from multissl.parallel.collectives import all_true, broadcast_object
from multissl.parallel.ranks import is_main
from multissl.parallel.sharding import local
from multissl.parallel.state import (
    described,
    load_state,
    optimizer_state,
    read_index,
    restore_optimizer,
    save_state,
    tensors,
)

FORMAT = 3
"""1: before random draws were named by tag; such a run cannot go on with the views it would have seen. 2: pickled."""
META = "meta.json"
NAME = re.compile(r"step_\d{8,}")
UNFINISHED = ("writing_", "removing_")
"""What the names of folders begin with that are not yet whole, or not any more."""


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
    """Return the checkpoints in the folder of a run's checkpoints that were written to their end, oldest first."""
    return sorted(
        (p for p in folder.glob("step_*") if NAME.fullmatch(p.name) and (p / META).is_file()), key=step_of
    )


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint, 0 without one."""
    return max(map(step_of, find(folder)), default=0)


def save(
    folder: Path,
    step: int,
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    cfg: Save,
    modality: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    trace: Mapping[str, Any] | None = None,
    stage: str = "",
    good: Collection[int] = (),
) -> Path:
    """Write the state after `step` steps among the checkpoints; called on every rank.

    `modality` is what the modality was fitted to, `record` and `trace` how far these files of the run went, `stage` the
    part of the run that it belongs to. The checkpoints of the steps in `good` are kept.
    """
    target = folder / f"step_{step:08d}"
    if (target / META).is_file():
        return target
    aside = target.with_name(f"writing_{target.name}")
    try:
        on_main(lambda: _remove_leftovers(folder))
        files = save_state(_flat(learner, optimizer) | {"modality": dict(modality or {})}, aside)
        meta = meta_of(step, files, stage, record, trace)
        on_main(lambda: _finish(aside, target, meta, cfg, good))
    except OSError as error:
        raise _not_written(folder, step, error) from error
    return target


def meta_of(
    step: int,
    files: Mapping[str, Any],
    stage: str = "",
    record: Mapping[str, Any] | None = None,
    trace: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what a checkpoint says of itself; `files` holds size and digest of each."""
    return sealed(
        {"format": FORMAT, "step": step, "stage": stage, "files": files, "record": record, "trace": trace}
    )


def on_main(action: Callable[[], object]) -> None:
    """Do something on the first rank; an OSError or RuntimeError of it is raised on all of them."""
    problem = None
    if is_main():
        try:
            action()
        except (OSError, RuntimeError) as error:
            problem = error
    problem = broadcast_object(problem)
    if problem:
        raise problem


def _finish(aside: Path, target: Path, meta: Mapping[str, Any], cfg: Save, good: Collection[int]) -> None:
    """Make a checkpoint of a folder whose files are written, and remove those that are not to be kept."""
    replace_text(aside / META, json.dumps(meta, indent=1))
    if target.exists():  # it has no meta.json: it was never whole
        remove_folder(target)
    rename(aside, target)
    remove_old(target.parent, cfg, good)


def remove_old(folder: Path, cfg: Save, good: Collection[int] = ()) -> None:
    """Remove the checkpoints that are not to be kept; those of the steps in `good` are."""
    for old in find(folder)[: -cfg.keep_last]:
        step = step_of(old)
        if step not in good and (not cfg.keep_every or step % cfg.keep_every):
            remove_folder(old)


def _not_written(folder: Path, step: int, problem: OSError) -> CheckpointError:
    """Remove what is not whole, and return what to say."""
    if is_main():
        with contextlib.suppress(OSError):  # else the next save tries again
            _remove_leftovers(folder)
    newest = find(folder)
    kept = f"the checkpoint of step {step_of(newest[-1])} is intact" if newest else "there is no earlier one"
    return CheckpointError(
        f"the checkpoint of step {step} could not be written to {folder} ({problem.strerror or problem}); {kept}. "
        "Free some space or give another --out, then repeat the command to resume"
    )


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes left that were killed while they wrote or removed a checkpoint."""
    for beginning in UNFINISHED:
        for leftover in folder.glob(f"{beginning}*"):
            remove_folder(leftover)


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


def read_meta(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself.

    Raises a `Damaged` where that is not what was written, and a ValueError where this version or this place is wrong.
    """
    path = folder / META
    meta = opened(path.read_bytes(), str(path), unsealed=True)
    known = meta.get("format")
    if not isinstance(known, int) or isinstance(known, bool):
        raise Damaged(f"{path} is damaged: it names no format")
    if known > FORMAT:
        raise ValueError(
            f"{folder} has checkpoint format {known}, this version reads up to {FORMAT}: upgrade"
        )
    if known < FORMAT:
        why = (
            "since then the order of random draws changed, so the run would not go on with the views that it would "
            "have seen"
            if known == 1
            else "it is pickled; if it is your own, --trust reads it once and writes it anew (in Python trust=True)"
        )
        raise ValueError(
            f"{folder} has checkpoint format {known}: {why}; --restart sets the run aside and begins anew, and encode "
            "and eval read its encoder as before"
        )
    opened(path.read_bytes(), str(path))  # of this format none lacks a digest
    shapes.check(meta, shapes.CHECKPOINT, str(path))
    if meta["step"] != step_of(folder):
        raise ValueError(
            f"{folder} holds the checkpoint of step {meta['step']}: give the folder its name back, or remove it"
        )
    return meta


def check(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself, if all its files are what was written; else raise a `Damaged`."""
    meta = read_meta(folder)
    for name, values in meta["files"].items():
        file = folder / name
        if not file.is_file():
            raise Damaged(f"{file} is missing")
        if file.stat().st_size != values["size"]:
            raise Damaged(f"{file} is damaged: it has {file.stat().st_size:,} bytes of {values['size']:,}")
        if described(file) != values:
            raise Damaged(f"{file} is damaged: its content has not the digest that was written with it")
    return meta


def newest_whole(folder: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint whose files are what was written, and what it says of itself; None without any.

    Those that are damaged are said, and set aside once another one takes their place. Called on every rank. Raises a
    ValueError where all of them are damaged.
    """
    result: tuple[Path, dict[str, Any]] | None = None
    problem: Exception | None = None
    if is_main():
        try:
            _remove_leftovers(folder)
            result = _newest_whole(folder, say)
        except (ValueError, OSError) as error:
            problem = error
    result, problem = broadcast_object((result, problem))  # what stops the first rank stops all of them
    if problem:
        raise problem
    return result


def put_aside(folder: Path, reason: Damaged, say: Callable[[str], None], then: str) -> None:
    """Give a damaged checkpoint a name that no checkpoint has, and say why, and what happens `then`."""
    aside = _free_name(folder.with_name(f"damaged_{folder.name}"))
    rename(folder, aside)
    say(f"{reason}; {then}, the damaged one is now {aside.name}")


def _newest_whole(folder: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    damaged: list[tuple[Path, Damaged]] = []
    for each in reversed(find(folder)):
        try:
            meta = check(each)
        except Damaged as error:
            damaged.append((each, error))
            continue
        for bad, reason in damaged:
            put_aside(bad, reason, say, f"going on from the checkpoint of step {step_of(each)}")
        return each, meta
    if damaged:
        raise ValueError(
            "no checkpoint is whole:\n  " + "\n  ".join(str(reason) for _, reason in damaged) + "\n"
            "put the files back from a copy, or --restart to set the run aside and begin anew"
        )
    return None


def _free_name(path: Path) -> Path:
    """Return a name that is not taken: the one given, or with a number behind it."""
    if not path.exists():
        return path
    return next(p for i in range(2, 10_000) if not (p := path.with_name(f"{path.name}_{i}")).exists())


def load(folder: Path, learner: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore learner and optimizer in place, on any number of ranks; return the step to go on from.

    Its files are those that `newest_whole` or `check` found whole.
    """
    meta = read_meta(folder)
    state = load_state(_known(_flat(learner, optimizer), folder), folder)
    restored = {n.removeprefix(LEARNER): v for n, v in state.items() if n.startswith(LEARNER)}
    learner.load_state_dict(restored)
    restore_optimizer(learner, optimizer, {"state": _by_parameter(state), "param_groups": state[GROUPS]})
    return meta["step"]


def load_moments(
    folder: Path, learner: nn.Module, optimizer: torch.optim.Optimizer, without: Collection[str] = ()
) -> None:
    """Restore what an optimizer knows of parameters, but for those named in `without` and those it knew nothing of.

    Rates and factors stay those of the optimizer, whose parameters may be in other groups than before.
    """
    state = _known(_flat(learner, optimizer), folder)
    groups = state[GROUPS]
    ours = {n: v for n, v in state.items() if n.startswith(STATES) and _parameter(n) not in without}
    moments = _by_parameter(load_state(ours, folder))
    restore_optimizer(learner, optimizer, {"state": moments, "param_groups": groups})


def _known(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a state without what the optimizer of a checkpoint had not: parameters that never had a gradient."""
    saved = read_index(folder)
    names = {*saved["tensors"], *saved["values"]}
    known = {_parameter(n) for n in names if n.startswith(STATES)}
    return {
        n: v for n, v in state.items() if not n.startswith(STATES) or n in names or _parameter(n) in known
    }


def _parameter(name: str) -> str:
    """Return the parameter that a name of the optimizer's state belongs to."""
    return name.removeprefix(STATES).rpartition("/")[0]


def _by_parameter(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the optimizer's state by parameter and kind."""
    values: dict[str, dict[str, Any]] = {}
    for name, value in state.items():
        if name.startswith(STATES):
            values.setdefault(_parameter(name), {})[name.rpartition("/")[2]] = value
    return values


def load_learner(folder: Path, learner: nn.Module) -> None:
    """Restore a learner alone, in place; its files are those that `check` found whole."""
    state = load_state({f"{LEARNER}{n}": v for n, v in learner.state_dict().items()}, folder)
    learner.load_state_dict({n.removeprefix(LEARNER): v for n, v in state.items()})


def read_learner(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint's learner by name, whole, on the CPU."""
    return {n.removeprefix(LEARNER): t for n, t in tensors(folder, LEARNER).items()}


def read_modality(folder: Path) -> dict[str, Any]:
    """Return what the modality was fitted to when a checkpoint was written."""
    return read_index(folder)["values"]["modality"]


LEARNER, STATES, GROUPS = "learner/", "optimizer/state/", "optimizer/groups"
"""What names in a checkpoint begin with: the learner's, those of a parameter's values in the optimizer, the rest."""


def _flat(learner: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of learner and optimizer by name."""
    optim = optimizer_state(learner, optimizer)
    state = {f"{LEARNER}{name}": value for name, value in learner.state_dict().items()}
    # sorted, as the optimizer lists parameters in the order in which they got their state
    for parameter, values in sorted(optim["state"].items()):
        state |= {f"{STATES}{parameter}/{key}": value for key, value in sorted(values.items())}
    return state | {GROUPS: optim["param_groups"]}
