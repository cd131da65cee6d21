"""Checkpoints of the format before, in a run that goes on or is read: where the user trusts them they are written anew.

State: none.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from multissl.build import modality_of
from multissl.contract.modality import Modality
from multissl.engine import checkpoint, pickled
from multissl.files import Damaged, alone
from multissl.parallel.collectives import broadcast_object
from multissl.parallel.ranks import is_main
from multissl.recipe import Recipe
from multissl.run.folder import RunFolder
from multissl.run.preparing import refusal

log = logging.getLogger("multissl")


def rewritten(
    run: RunFolder, recipe: Recipe, modality: Modality | None, trust: bool, say: Callable[[str], None]
) -> Modality | None:
    """Write the pickled checkpoints of a run that goes on in the present format, if `trust` says so; else refuse them.

    Returns its modality if that had to be fitted for it, or was. Called on every rank while the first holds the lock.
    """
    old = broadcast_object(pickled.pending(run.checkpoints) if is_main() else [])
    wanting = [path for path in old if pickled.is_pickled(path)]
    if wanting and not trust:
        checkpoint.read_meta(wanting[-1])  # which refuses it, before anything slow
    if wanting:
        modality = modality or modality_of(recipe)
    problem: Exception | None = None
    if old and is_main():
        try:
            _rewrite_all(run, old, modality.state() if modality else {}, say)
        except OSError as error:
            problem = refusal(run, error)
        except ValueError as error:
            problem = error
    problem = broadcast_object(problem)
    if problem:
        raise problem
    return modality


def _rewrite_all(
    run: RunFolder, old: Sequence[Path], fitted_to: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Rewrite checkpoints; one that is damaged is set aside where there is another."""
    for each in old:
        step = checkpoint.step_of(each)
        try:
            pickled.rewrite(each, each, fitted_to)
        except Damaged as error:
            if len(checkpoint.find(run.checkpoints)) == 1:
                raise
            checkpoint.put_aside(each, error, say, "another checkpoint takes its place")
        else:
            say(
                f"the checkpoint of step {step} was pickled and is written anew: it wants no --trust any more"
            )


@contextlib.contextmanager
def readable(
    run: RunFolder, fitted_to: Callable[[int], Mapping[str, Any]], trust: bool
) -> Iterator[dict[int, Path]]:
    """Yield the checkpoints of a run by step, in the present format if `trust` says so.

    Pickled ones are written anew; where the run cannot be written to, that is said, and they are read from a temporary
    folder. `fitted_to` gives by step what the modality was fitted to.
    """
    found = {checkpoint.step_of(p): p for p in checkpoint.find(run.checkpoints)}
    old = {checkpoint.step_of(p): p for p in pickled.pending(run.checkpoints)} if trust else {}
    with contextlib.ExitStack() as stack:
        for step, path in old.items():
            state = fitted_to(step)
            try:
                with alone(run.checkpoints):  # of several that read it at once, one writes
                    if path in pickled.pending(run.checkpoints):
                        pickled.rewrite(path, path, state)
                        log.warning("%s was pickled and is written anew: it wants no --trust any more", path)
            except OSError as error:
                temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                found[step] = temporary / path.name
                log.warning(
                    "%s is pickled and cannot be written anew (%s): it is read as it is, and wants --trust again",
                    path, error.strerror or error,
                )  # fmt: skip
                pickled.rewrite(path, found[step], state)
        yield found
