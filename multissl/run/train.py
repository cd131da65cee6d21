"""Running a recipe in a folder: a new run, one that goes on, or one that has finished and tells its result again."""

from __future__ import annotations

import contextlib
import logging
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from multissl import trust
from multissl.build import Parts, build
from multissl.code_files import read_copies
from multissl.config import config_name, difference, named_code, to_dict
from multissl.contract.verdict import Outcome, Verdict, whole_verdict
from multissl.engine import checkpoint
from multissl.engine.judging import alarm_of, measurements, verdicts
from multissl.engine.trainer import Trainer
from multissl.files import Damaged
from multissl.migrate import FORMAT
from multissl.parallel.collectives import broadcast_object
from multissl.parallel.compiling import trouble, wants
from multissl.parallel.ranks import barrier, is_main, process_group, world
from multissl.parallel.sharding import full
from multissl.recipe import Recipe, read_recipe
from multissl.run.copies import describe_copies
from multissl.run.extension import describe_extension
from multissl.run.folder import RunFolder
from multissl.run.identity import DataChangedError, check_data, identity_of
from multissl.run.model import load
from multissl.run.report import draw, write_report
from multissl.version import __version__

log = logging.getLogger("multissl")
FREE = ("steps", "log_every", "loggers", "parallel", "data", "save", "evals", "chunk")
"""Options that may change when a run is resumed: they do not change what is learnt, or extend it."""


@dataclass(kw_only=True, slots=True)
class Result:
    """How a run ended."""

    folder: Path
    learned: bool
    """Whether something was learned, be it less than a classical feature tells."""
    outcome: Outcome
    verdict: str
    metrics: dict[str, float]
    """The last evaluation."""


# long: what a run does from its start to its end, in order
def train(
    recipe: Recipe,
    folder: Path | str,
    default: Recipe | None = None,
    *,
    file: Path | None = None,
    accept_data: bool = False,
) -> Result:
    """Run a recipe in a folder, from its newest checkpoint if there is one; a finished run tells its result again.

    A run has finished when its summary says so, which is the last thing that is written. One that ended between its
    last checkpoint and that moment writes what it ships from the checkpoint, without training.
    `default` is the recipe whose differences the report shows, `file` the Python file that it comes from, if any: it
    is copied into the run, as are files of code that the recipe names. Having trained with that code, the user can
    read the run from anywhere. `accept_data`: go on though the data is not what the run was trained on so far.
    """
    run = RunFolder(folder)
    with process_group() as device:
        before = run.read_recipe().get("steps", recipe.steps)
        lines = prepare(run, recipe, file)
        began = time.time()
        parts = build(recipe, device)
        trainer = Trainer(
            recipe,
            parts.modality,
            parts.learner,
            parts.optimizer,
            parts.evaluators,
            run,
            device,
            parts.blueprint,
        )
        with contextlib.closing(trainer):
            finished = broadcast_object(is_main() and has_finished(run, recipe.steps))
            if finished:
                trainer.display.say(f"{run.path} has finished its {run.finish()['step']} steps already")
            else:
                trainer.display.say(describe(recipe, parts, device))
                other_data = data_changed(run, parts, accept_data)
                if extended := describe_extension(recipe, parts, run, before):
                    trainer.display.say(extended)
                lines = trainer.fit(first_notes(run, recipe, parts, device), floors_again=other_data)
                write_model(run, parts)
            said = verdicts(parts.evaluators, measurements(lines))
            seconds = None if finished else time.time() - began
            result = summarize(run, recipe, default, said, lines, seconds, device)
            barrier()  # from here on the first rank is alone
            if finished:
                trainer.display.say(result.verdict)
            elif is_main():
                run.write_recipe(options_of(recipe))
                finish(run, trainer, result)
    return result


def prepare(run: RunFolder, recipe: Recipe, file: Path | None = None) -> list[dict[str, Any]]:
    """Make the run's folder and write its recipe, or compare with the one there; return the record so far."""
    names = named_code(recipe)
    trust.use(names)
    options, problem = options_of(recipe), ""
    if is_main():
        try:
            finish = recorded_finish(run)
            if run.recipe.is_file() and (finish or checkpoint.find(run.checkpoints)):
                compare(saved_options(run), options, run.path)
            if finish:
                check_finished(run, finish, saved_options(run), options)
            if not finish:  # of a finished run it stays as it is recorded until the run has finished again
                run.write_recipe(options)
                keep_code(run, names, file)
        except OSError as error:
            problem = f"--out {run.path}: cannot be written ({error.strerror}); give another --out"
        except ValueError as error:
            problem = str(error)
    problem = broadcast_object(problem)  # what stops the first rank stops all of them
    if problem:
        raise ValueError(problem)
    return run.read_metrics()


def options_of(recipe: Recipe) -> dict[str, Any]:
    """Return what the file of a recipe holds."""
    return {"format": FORMAT, "multissl": __version__, **to_dict(recipe)}


def data_changed(run: RunFolder, parts: Parts, accept: bool) -> bool:
    """Return whether the run goes on with other data; raise a `DataChangedError` where that was not accepted."""
    problem, changed = "", False
    if is_main():
        identity = identity_of(parts.modality, with_validation=bool(parts.evaluators))
        step = checkpoint.newest_step(run.checkpoints)
        try:
            changed = check_data(run, identity, step=step, accept=accept, plural=parts.modality.plural)
        except DataChangedError as error:
            problem = str(error)
    problem, changed = broadcast_object((problem, changed))
    if problem:
        raise DataChangedError(problem)
    return changed


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
    options = run.read_recipe()
    try:
        return options | to_dict(read_recipe(run.recipe))
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


def describe(recipe: Recipe, parts: Parts, device: torch.device) -> str:
    """Return the two lines that are said at the start."""
    trainable = sum(p.numel() for p in parts.learner.parameters() if p.requires_grad)
    count = len(parts.modality.dataset("train"))
    encoders = ", ".join(f"{s}={config_name(type(c))}" for s, c in recipe.encoders.items())
    ranks = world()
    epochs = recipe.steps * recipe.batch_size / count
    idle = torch.cuda.device_count() - 1 if device.type == "cuda" and ranks == 1 else 0
    tip = (
        f"\n{idle} more GPUs are idle: torchrun --nproc-per-node {idle + 1} -m multissl train ..."
        if idle
        else ""
    )
    return (
        f"{config_name(type(recipe.objective))} on {config_name(type(recipe.modality))}: {count:,} samples, "
        f"encoders {encoders}, {trainable / 1e6:.2f} M trainable parameters, {ranks} x {device.type}\n"
        f"{recipe.steps:,} steps of {recipe.batch_size} samples ({epochs:.1f} epochs), "
        f"learning rate {parts.optimizer.lr:.3g} ({recipe.optim.lr:g}, scaling {recipe.optim.lr_scaling}){tip}"
    )


def first_notes(run: RunFolder, recipe: Recipe, parts: Parts, device: torch.device) -> list[str]:
    """Return what a reader of the record has to know, once in a run, at its first start.

    What batch norm sees where it sees chunks; that nothing could be compiled; and how many validation samples are
    copies of training samples, where something is measured.
    """
    if not is_main() or checkpoint.find(run.checkpoints):
        return []
    notes = []
    if recipe.chunk and parts.learner.trains_batch_norm:
        notes.append(
            f"chunk_norm=micro: batch norm of encoders sees {recipe.chunk} samples at a time instead of "
            f"{recipe.batch_size // world()}; its statistics are noisier, and another --chunk is another result"
        )
    if wants(device) and (reason := trouble(device.type)):
        notes.append(
            f"nothing is compiled, as torch.compile does not work here ({reason}): steps are slower, their numbers the "
            "same; --parallel.compile False leaves it out"
        )
    if parts.evaluators and (copies := describe_copies(parts.modality)):
        notes.append(copies)
    return notes


def recorded_finish(run: RunFolder) -> dict[str, Any]:
    """Return what the summary says of the run's finish; {} where it says nothing, or is damaged beside checkpoints."""
    try:
        return run.finish()
    except Damaged:
        if checkpoint.find(run.checkpoints):
            return {}  # it is written again
        raise


def check_finished(
    run: RunFolder, finish: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
    """Stop where a command would change the record of a finished run, or go on without its checkpoints."""
    newest, step = checkpoint.newest_step(run.checkpoints), finish["step"]
    if not newest and (changed := run.changed(finish)):
        raise ValueError(
            f"{run.path} has finished, {changed} is not what it recorded then, and no checkpoint is left to write it "
            "again from: put it back from a copy, or --restart to set the run aside"
        )
    if not newest and new["steps"] > step:
        raise ValueError(
            f"{run.path} has finished its {step} steps and its checkpoints are gone: it cannot take {new['steps']}; "
            "give another --out"
        )
    if newest > step or new["steps"] > step or run.changed(finish):
        return
    parts = ("steps", "evals")
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


def shipped(run: RunFolder) -> dict[str, Any]:
    """Return the step of the newest checkpoint, and the digests of the files that a run ships."""
    return {"step": checkpoint.newest_step(run.checkpoints), "sha256": run.digests()}


def record_finish(run: RunFolder) -> None:
    """Add to the summary of which step the run ships what: the last thing that a run does."""
    run.write_summary(run.read_summary() | {"finished": shipped(run)})


def finish(run: RunFolder, trainer: Trainer, result: Result) -> None:
    """Write the page, give its figures to the loggers, and record the end."""
    drawn = draw(load(run.path))
    path = write_report(run.path, drawn)
    trainer.draw(checkpoint.newest_step(run.checkpoints), drawn.figures)
    trainer.display.say(f"report: {path}")
    record_finish(run)
    trainer.display.say(result.verdict)


def write_model(run: RunFolder, parts: Parts) -> None:
    """Write the files that a run ships."""
    exported = parts.learner.shipped()
    checkpoint.check_finite(exported, run.checkpoints)
    # copied, as towers may share a module and a file cannot hold one tensor under two names
    whole = {n: full(t).detach() for n, t in exported.state_dict().items()}
    weights = {n: t.to("cpu", copy=True).contiguous() for n, t in whole.items()}
    if is_main():
        run.write_model(weights, parts.modality.state())


def summarize(
    run: RunFolder, recipe: Recipe, default: Recipe | None, said: list[Verdict],
    lines: list[dict[str, Any]], seconds: float | None, device: torch.device,
) -> Result:  # fmt: skip
    """Return how the run ended, and write the summary: verdict, environment, difference from the default.

    Without `seconds` the run had finished before, and its summary stays as it is.
    """
    steps = checkpoint.newest_step(
        run.checkpoints
    )  # of a run that is to take fewer than it took: those it took
    alarm = alarm_of(lines)
    whole = whole_verdict(said, alarm)
    evals = measurements(lines)
    last = {k: v for k, v in evals[-1].items() if k not in ("kind", "step")} if evals else {}
    environment = {
        "multissl": __version__, "torch": torch.__version__, "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "ranks": world(), "threads": torch.get_num_threads(),
    }  # fmt: skip
    changes = difference(to_dict(default), to_dict(recipe)) if default else []
    summary = {
        "verdict": whole.text, "alarm": alarm, "learned": whole.learned, "outcome": whole.outcome,
        "all_verdicts": [v.text for v in said],
        "environment": environment, "difference": changes, "steps": steps, "seconds": round(seconds or 0, 1),
        "skipped": sum(x["kind"] == "note" and "unreadable" in x.get("text", "") for x in lines),
    }  # fmt: skip
    if is_main() and seconds is not None:
        run.write_summary(summary)
    return Result(
        folder=run.path, learned=whole.learned, outcome=whole.outcome, verdict=whole.text, metrics=last
    )


def steps_for(epochs: float, samples: int, batch_size: int) -> int:
    """Return the number of steps in which `epochs` passes over the data are made."""
    return max(1, math.ceil(epochs * samples / batch_size))
