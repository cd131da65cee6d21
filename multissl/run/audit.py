"""Is a run what it says? Some of its steps are taken again, from the checkpoint before them, and compared.

Every step left its samples, its rate and its loss in the trace, and a checkpoint its weights. They are taken again from
every checkpoint that is kept, in pieces that end at the next one, so the first step that differs is found, and one
difference hides no other. Where torch, threads and processor are those of the run, everything is equal to the bit;
elsewhere losses and weights are compared within `LIMIT`, which is said. On several ranks the losses are those of the
first one's rows.
State: none; what is trained again lies in a temporary folder.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from multissl.contract.modality import Modality
from multissl.engine import checkpoint
from multissl.engine.best import Best
from multissl.engine.checkpoint import Save
from multissl.engine.display import Display
from multissl.engine.trace import Entry, read_trace
from multissl.engine.trainer import Trainer
from multissl.files import copy_folder, make_folder, read_marked, replace_bytes
from multissl.parallel.collectives import broadcast_object
from multissl.parallel.ranks import barrier, is_main, process_group, world
from multissl.parallel.state import tensors
from multissl.recipe import recipe_of
from multissl.run.folder import RunFolder, located
from multissl.run.identity import DataChangedError, identity_of
from multissl.run.model import starts_of
from multissl.run.sessions import environment
from multissl.run.stages import TakeOver
from multissl.trust import Trust

LIMIT = 1e-4
"""Largest difference of a loss, as a share of it, and of a tensor, as a share of its largest entry, elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What taking steps again showed."""

    start: int
    """The step from which they were taken again: the checkpoint before the first that was asked for."""
    stop: int
    exact: bool
    """Whether everything was compared to the bit."""
    why: str = ""
    """Why not."""
    differences: Sequence[str] = ()
    """What differs, by step; none where all is as the run says."""
    checkpoints: Sequence[int] = ()
    """The steps whose checkpoints were compared."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Steps of one session, from a checkpoint on."""

    start: int
    stop: int
    session: Mapping[str, Any]


def audit(run: Path | str, start: int, stop: int, trust: bool = False) -> Audit:
    """Take the steps from `start` up to `stop`, less the last, again; they are counted from 0.

    Raises a ValueError where the run has no trace of them, its data is not there any more, or has changed.
    """
    folder = _folder(run)
    entries = read_trace(folder.trace)
    begin, kept = _checked(folder, entries, start, stop)
    pieces = list(_pieces(folder, begin, kept, stop))
    differences: list[str] = []
    compared: list[int] = []
    say = Display(is_main()).say
    say(f"steps {start} to {stop}, taken again from step {begin}, {start - begin} before the first")
    with process_group() as device, tempfile.TemporaryDirectory() as temporary:
        why = _elsewhere(pieces, device)
        shared = Path(broadcast_object(temporary))
        before = kept.get(begin)
        for number, piece in enumerate(pieces):
            place = RunFolder(shared / str(number))
            again = _repeated(folder, piece, before, place, device, trust)
            if is_main():
                differences += _compare(piece, entries, read_trace(place.trace), bool(why))
                if piece.stop in kept:
                    compared.append(piece.stop)
                    differences += _compare_weights(piece.stop, kept[piece.stop], again, bool(why))
            before = kept.get(piece.stop, again)
            barrier()
    return Audit(
        start=begin, stop=stop, exact=not why, why=why, differences=differences, checkpoints=compared
    )


def window(run: Path | str) -> tuple[int, int]:
    """Return all steps that can be taken again and end in a checkpoint: from the oldest one that is kept to the newest.

    Where one alone is kept, they begin with the run.
    """
    folder = _folder(run)
    kept = [*map(checkpoint.step_of, checkpoint.find(folder.checkpoints))]
    if not kept:
        raise ValueError(f"{folder.path} keeps no checkpoint: give --steps 0:B with steps that it has traced")
    return (kept[0] if len(kept) > 1 else 0), kept[-1]


def _folder(run: Path | str) -> RunFolder:
    """Return the folder of a run; raise a ValueError where there is none."""
    folder, step = located(run)
    if step is not None:
        raise ValueError(
            f"audit {run}: want the folder alone; --steps A:{step} ends with the step before {step}"
        )
    if not folder.recipe.is_file():
        raise ValueError(f"{folder.path} holds no {folder.recipe.name}: give the folder of a run")
    return folder


def _checked(
    folder: RunFolder, entries: Mapping[int, Entry], start: int, stop: int
) -> tuple[int, dict[int, Path]]:
    """Return where to begin, and the checkpoints from there on by step, all of them whole and with an equal trace."""
    if not entries:
        raise ValueError(
            f"{folder.path} has no trace of its steps: it was trained by an older version, or never"
        )
    if not 0 <= start < stop or any(step not in entries for step in range(start, stop)):
        raise ValueError(
            f"--steps {start}:{stop}: {folder.path} has steps {min(entries)} to {max(entries) + 1}; want two of these"
        )
    kept = {checkpoint.step_of(p): p for p in checkpoint.find(folder.checkpoints)}
    begin = max((step for step in kept if step <= start), default=0)
    kept = {step: path for step, path in kept.items() if begin <= step <= stop}
    if any(step not in entries for step in range(begin, start)):
        raise ValueError(
            f"--steps {start}:{stop}: {folder.path} keeps no checkpoint between its first traced step "
            f"({min(entries)}) and {start}; give later steps"
        )
    for step, path in sorted(kept.items()):
        mark = checkpoint.check(path).get("trace")
        if mark is None:
            raise ValueError(f"{path} was written by a version that traced no steps: give steps after {step}")
        read_marked(folder.trace, mark)
    return begin, kept


def _pieces(folder: RunFolder, begin: int, kept: Mapping[int, Path], stop: int) -> Iterator[Piece]:
    """Yield the steps in pieces that end at checkpoints and where another session went on."""
    sessions = [s for s in folder.read_sessions() if "steps" in s]
    if not sessions:
        raise ValueError(
            f"{folder.path} does not say which sessions trained it: {folder.sessions.name} is gone"
        )
    ends = {*kept, *(s["steps"][0] for s in sessions), stop}
    here = begin
    for end in sorted(e for e in ends if begin < e <= stop):
        # a session that was killed trained on after its last checkpoint; who resumed from there took these steps again
        yield Piece(here, end, [s for s in sessions if s["steps"][0] <= here][-1])
        here = end


def _elsewhere(pieces: Sequence[Piece], device: torch.device) -> str:
    """Return what is other here than where the steps were taken, that numbers depend on; "" for nothing."""
    here = {**environment(device), "ranks": world()}
    names = ("ranks", "devices", "threads", "instructions")
    other = [n for n in names if any(p.session.get(n) != here[n] for p in pieces)]
    packages = {n for p in pieces for n in p.session.get("versions", {})} - {"python"}
    other += [
        n
        for n in sorted(packages)
        if any(p.session.get("versions", {}).get(n) != here["versions"].get(n) for p in pieces)
    ]
    return ", ".join(other)


def _repeated(
    folder: RunFolder, piece: Piece, before: Path | None, place: RunFolder, device: torch.device, trust: bool
) -> Path:
    """Take the steps of a piece again, from a checkpoint or the start of the run; return the checkpoint at its end."""
    options = folder.read_recipe() | piece.session.get("changed", {})
    recipe = recipe_of(options, str(folder.recipe), Trust(everything=trust, copies=folder.code))
    stages = recipe.run_stages()
    stage = next(s for s in stages if piece.start < s.stop)
    # what is measured and logged beside does not change a step, unless its figures decide the learning rate
    deciding = {name: cfg for name, cfg in stage.recipe.evals.items() if cfg.build().decides}
    bare = stage.recipe.replace(
        evals=deciding, best=Best(), loggers={}, save=Save(every=max(recipe.total_steps, piece.stop))
    )
    stage = replace(stage, recipe=bare)
    if is_main():
        make_folder(place.path)
        if before:
            copy_folder(before, place.checkpoints / before.name)
            mark = checkpoint.read_meta(before)["record"]
            record = RunFolder(before.parents[1]).metrics  # of the run, or of the piece before
            if mark and record.is_file():
                replace_bytes(place.metrics, read_marked(record, mark))
    barrier()
    over = TakeOver(recipe, stage, place)
    parts = over.build(device, starts_of(recipe))
    if is_main():
        _check_data(folder, parts.modality, piece.start)
    trainer = Trainer(
        stage.recipe, parts.modality, parts.learner, parts.optimizer, parts.evaluators, place, device,
        span=stage.span, load=over.load,
    )  # fmt: skip
    with contextlib.closing(trainer):
        trainer.fit(until=piece.stop)
    return checkpoint.find(place.checkpoints)[-1]


def _check_data(folder: RunFolder, modality: Modality, step: int) -> None:
    """Raise a `DataChangedError` where the data is not what the run was trained on after `step` steps."""
    entries = [entry for entry in folder.read_data() if entry["from_step"] <= step + 1]
    known = entries[-1]["splits"] if entries else {}
    identity = identity_of(modality, with_validation=False)
    if lines := identity.differences(known, modality.plural):
        raise DataChangedError(
            f"the data is not what {folder.path} was trained on after step {step}:\n  "
            + "\n  ".join(lines)
            + "\nput it back to take the steps again"
        )


def _compare(
    piece: Piece, recorded: Mapping[int, Entry], again: Mapping[int, Entry], elsewhere: bool
) -> Iterator[str]:
    """Yield what is other at the first step that differs."""
    for step in range(piece.start, piece.stop):
        old, new = recorded[step], again[step]
        said = []
        if old.samples != new.samples:
            said.append("other samples than data and seed give")
        if old.lr != new.lr:
            said.append(f"learning rate {old.lr:.6g}, the recipe gives {new.lr:.6g}")
        if not _equal(old.loss, new.loss, elsewhere):
            said.append(f"loss {old.loss:.9g}, again {new.loss:.9g}")
        if said:
            yield f"step {step}: {'; '.join(said)}"
            return


def _equal(old: float, new: float, elsewhere: bool) -> bool:
    if math.isnan(old) or math.isnan(new):
        return math.isnan(old) and math.isnan(new)
    return math.isclose(old, new, rel_tol=LIMIT if elsewhere else 0.0)


def _compare_weights(step: int, kept: Path, again: Path, elsewhere: bool) -> list[str]:
    """Return how a checkpoint differs from the same one made again."""
    old, new = tensors(kept), tensors(again)
    if names := old.keys() ^ new.keys():
        return [f"checkpoint {step}: {min(names)} is in one of the two alone"]
    other = [n for n in old if not _equal_tensors(old[n], new[n], elsewhere)]
    if not other:
        return []
    return [f"checkpoint {step}: {len(other)} of {len(old)} tensors differ, the first being {other[0]}"]


def _equal_tensors(old: torch.Tensor, new: torch.Tensor, elsewhere: bool) -> bool:
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    if not elsewhere or not old.is_floating_point():
        return torch.equal(old.reshape(-1).view(torch.uint8), new.reshape(-1).view(torch.uint8))
    limit = LIMIT * max(old.abs().max().item(), 1e-12) if old.numel() else 0.0
    return torch.allclose(old, new, rtol=0.0, atol=limit, equal_nan=True)


def described(result: Audit) -> str:
    """Return what an audit showed, in lines."""
    how = (
        "to the bit"
        if result.exact
        else f"within {LIMIT:g}, as this is not where it was trained ({result.why})"
    )
    compared = ", ".join(map(str, result.checkpoints)) or "none lies among them"
    if result.differences:
        return "\n".join([*result.differences, f"compared {how}; checkpoints compared: {compared}"])
    return (
        f"steps {result.start} to {result.stop} are as the run says, {how}; checkpoints compared: {compared}"
    )
