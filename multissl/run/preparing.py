"""What happens before a run goes on: who may train in its folder, and whether it is the run that is there.

State: none; the lock is a file of the folder.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from multissl import trust
from multissl.build import modality_of
from multissl.code_files import read_copies
from multissl.config import difference, named_code, to_dict
from multissl.contract.modality import Modality
from multissl.engine import checkpoint
from multissl.engine.display import Display
from multissl.files import Damaged, make_folder
from multissl.migrate import FORMAT
from multissl.parallel.collectives import broadcast_object
from multissl.parallel.ranks import is_main
from multissl.recipe import Recipe, recipe_of
from multissl.run.folder import NotWritten, RunFolder
from multissl.run.lock import Lock, RunBusyError
from multissl.run.stages import changed_stages
from multissl.version import __version__

log = logging.getLogger("multissl")
FREE = (
    "steps", "stages", "log_every", "loggers", "parallel", "data", "save", "best", "evals", "eval_seconds", "chunk",
)  # fmt: skip
"""Options that may change when a run is resumed: they do not change what is learnt, or extend it; of stages those alone
that have not started."""


@contextlib.contextmanager
def entered(run: RunFolder, steps: int) -> Iterator[Lock | None]:
    """Hold the lock of a run's folder on the first rank, unless the run has finished and nothing will be written.

    What stops the first rank stops all of them.
    """
    lock, problem = None, None
    if is_main() and not has_finished(run, steps):
        lock = Lock(run.lock, Display(True).say)
        try:
            make_folder(run.path)
            lock.acquire()
        except OSError as error:
            problem = refusal(run, error)
        except RunBusyError as error:
            problem = error
    problem = broadcast_object(problem)
    if problem:
        raise problem
    try:
        yield lock
    finally:
        if lock:
            lock.release()


def refusal(run: RunFolder, error: OSError) -> Exception:
    """Return what to raise where the folder of a run cannot be written to: the place is wrong, or the disk fails."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return NotWritten(
            f"{run.path} could not be written to ({error.strerror}); free some space, then repeat the command, or give "
            "another --out"
        )
    copy = ", or a copy of this run, which goes on from there" if run.recipe.is_file() else ""
    return ValueError(f"--out {run.path}: cannot be written ({error.strerror}); give another --out{copy}")


def with_sizes(recipe: Recipe, run: RunFolder) -> tuple[Recipe, Modality | None]:
    """Return the recipe with the sizes that it leaves to the data, and the fitted modality where that was asked.

    A run that goes on has its sizes in its recipe: its data may have grown since.
    """
    if not recipe.modality.open_sizes():
        return recipe, None
    saved, problem = {}, None
    if is_main():
        try:
            saved = run.read_options().get("modality", {}) if goes_on(run) else {}
        except (OSError, ValueError) as error:
            problem = error
    saved, problem = broadcast_object((saved, problem))
    if problem:
        raise problem
    recipe = recipe.replace(modality=recipe.modality.with_sizes(saved))
    fixed = {stream: side for stream, encoder in recipe.encoders.items() if (side := encoder.token_side())}
    recipe = recipe.replace(modality=recipe.modality.with_tokens(fixed))
    if not recipe.modality.open_sizes():
        return recipe, None
    modality = modality_of(recipe)
    return recipe.replace(modality=modality.cfg), modality


def goes_on(run: RunFolder) -> bool:
    """Return whether a folder holds a run that has a checkpoint, or has finished."""
    return run.recipe.is_file() and bool(checkpoint.find(run.checkpoints) or recorded_finish(run))


def prepare(run: RunFolder, recipe: Recipe, file: Path | None = None) -> dict[str, Any]:
    """Write the recipe of a new run, or compare with the one there; return the options that change, by name.

    The recipe of a run that has a checkpoint stays as it was written first. What may change at a resume is written
    down with the session.
    """
    names = named_code(recipe)
    trust.use(names)
    options, problem, changed = options_of(recipe), None, {}
    if is_main():
        try:
            finish = recorded_finish(run)
            if goes_on(run):
                old = saved_options(run)
                compare(old, options, run.path)
                compare_stages(old, options, run, finish)
                changed = changes(run.read_recipe(), options)
                if finish:
                    check_finished(run, finish, old, options, recipe.total_steps)
            else:
                run.write_recipe(options)
            if not has_finished(run, recipe.total_steps):
                keep_code(run, names, file)
        except OSError as error:
            problem = refusal(run, error)
        except ValueError as error:
            problem = error
    problem, changed = broadcast_object((problem, changed))  # what stops the first rank stops all of them
    if problem:
        raise problem
    return changed


def changes(first: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options that may change at a resume and are not what the run was started with."""
    return {n: options[n] for n in FREE if n in options and options[n] != first.get(n)}


def options_of(recipe: Recipe) -> dict[str, Any]:
    """Return what the file of a recipe holds."""
    return {"format": FORMAT, "multissl": __version__, **to_dict(recipe)}


def keep_code(run: RunFolder, names: list[str], file: Path | None) -> None:
    """Copy the source files that a recipe comes from or names into the run, and note that the user trains with them."""
    sources = trust.sources_of(names, file)
    before = read_copies(run.code)
    if changed := [name for name in before if name in sources and before[name] != sources[name]]:
        log.warning("%s has changed since the run began, which goes on with the new code", changed[0])
    run.write_code(sources)
    trust.remember(names, read_copies(run.code))


def saved_options(run: RunFolder) -> dict[str, Any]:
    """Return the options of a saved recipe; what was no option yet when it was saved has its default."""
    options = run.read_options()
    try:
        return options | to_dict(recipe_of(options, str(run.recipe)))
    except (ValueError, ImportError):  # what can no longer be read as a recipe is compared as it stands
        return options


def compare(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Stop where a run would be resumed with another recipe."""
    free = {*FREE, "multissl"} - ({"chunk"} if new["chunk_norm"] == "micro" else set())
    changed = [d for d in difference(old, new) if d.split(".")[0].split(":")[0] not in free]
    if changed:
        raise ValueError(
            f"{folder} holds a run of another recipe:\n  " + "\n  ".join(changed) + "\n"
            "repeat its options to resume it, give another --out, or --restart to set it aside and begin anew"
        )


def compare_stages(
    old: Mapping[str, Any], new: Mapping[str, Any], run: RunFolder, finish: Mapping[str, Any]
) -> None:
    """Stop where stages of a run that have started would be others."""
    if not old.get("stages") and not new["stages"]:
        return
    reached = checkpoint.newest_step(run.checkpoints) or int(finish.get("step", 0))
    if lines := changed_stages(old, new, reached):
        raise ValueError(
            f"{run.path} has started stages that this command has otherwise:\n  " + "\n  ".join(lines) + "\n"
            "stages that have not started may be any, and the last that has may take more steps; else give another "
            "--out, or --restart to set the run aside and begin anew"
        )


def recorded_finish(run: RunFolder) -> dict[str, Any]:
    """Return what the summary says of the run's finish; {} where it says nothing, or is damaged beside checkpoints."""
    try:
        return run.finish()
    except Damaged as error:
        if not checkpoint.find(run.checkpoints):
            raise
        log.warning("%s; it is written again", error)
        return {}


def check_finished(
    run: RunFolder, finish: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any], steps: int
) -> None:
    """Stop where a command would change the record of a finished run, or go on without its checkpoints.

    `steps` are those of all stages of the command.
    """
    run.check_record()
    newest, step = checkpoint.newest_step(run.checkpoints), finish["step"]
    if not newest and (changed := run.changed(finish)):
        raise ValueError(
            f"{run.path} has finished, {changed} is not what it recorded then, and no checkpoint is left to write it "
            "again from: put it back from a copy, or --restart to set the run aside"
        )
    if not newest and steps > step:
        raise ValueError(
            f"{run.path} has finished its {step} steps and its checkpoints are gone: it cannot take {steps}; "
            "give another --out"
        )
    if changed := run.changed(finish):
        log.warning("%s is not what it was when the run finished: it is written again", run.path / changed)
        return
    if newest > step or steps > step:
        return
    parts = ("steps", "stages", "evals")
    changed = difference({n: old.get(n) for n in parts}, {n: new[n] for n in parts})
    if changed:
        raise ValueError(
            f"{run.path} has finished its {step} steps, and its record stays as it is; this command differs:\n  "
            + "\n  ".join(changed)
            + "\nrepeat its options to read its result again, give more --steps to go on, or another --out"
        )


def has_finished(run: RunFolder, steps: int) -> bool:
    """Return whether a run took its steps and ships, by its own record, what the last of them left.

    The checkpoints may have been removed since.
    """
    try:
        finish = run.finish()
        step = int(finish["step"])
    except (OSError, ValueError, KeyError, TypeError):  # not there yet, or damaged: then it is written again
        return False
    newest = checkpoint.newest_step(run.checkpoints)
    return steps <= step and newest in (0, step) and not run.changed(finish)
