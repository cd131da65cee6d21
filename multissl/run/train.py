"""Running a recipe in a folder: a new run, one that goes on, or one that has finished and tells its result again."""

from __future__ import annotations

import contextlib
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from multissl.build import Parts, fitted
from multissl.config import config_name, difference, to_dict
from multissl.contract.modality import Modality
from multissl.contract.verdict import Outcome, whole_verdict
from multissl.engine import checkpoint
from multissl.engine.display import Display
from multissl.engine.judging import alarm_of, measurements, verdicts
from multissl.engine.trainer import Trainer
from multissl.layers.lora import merged_state
from multissl.parallel.collectives import broadcast_object
from multissl.parallel.compiling import trouble, wants
from multissl.parallel.ranks import barrier, is_main, process_group, world
from multissl.parallel.sharding import full
from multissl.recipe import Recipe, RunStage
from multissl.run.copies import describe_copies
from multissl.run.earlier import rewritten
from multissl.run.extension import describe_extension
from multissl.run.folder import RunFolder
from multissl.run.identity import DataChangedError, check_data, identity_of, weights_digest
from multissl.run.model import load, starts_of
from multissl.run.preparing import entered, has_finished, prepare, with_sizes
from multissl.run.remarks import describe_mask_groups, describe_views
from multissl.run.report import draw, write_report
from multissl.run.sessions import recorded, session_of
from multissl.run.stages import TakeOver, check_stages, stages_left
from multissl.run.usage import readme
from multissl.version import __version__
from multissl.weights.containers import Source


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


def train(
    recipe: Recipe,
    folder: Path | str,
    default: Recipe | None = None,
    *,
    file: Path | None = None,
    accept_data: bool = False,
    trust: bool = False,
) -> Result:
    """Run a recipe in a folder, from its newest checkpoint if there is one; a finished run tells its result again.

    A run has finished when its summary says so, which is the last thing that is written. One that ended between its
    last checkpoint and that moment writes what it ships from the checkpoint, without training. Stages are trained one
    after another, each as a run that is resumed with the stage's recipe.
    `default` is the recipe whose differences the report shows, `file` the Python file that it comes from, if any: it
    is copied into the run, as are files of code that the recipe names. Having trained with that code, the user can
    read the run from anywhere. `accept_data`: go on though the data is not what the run was trained on so far.
    `trust`: read checkpoints that an older version pickled, once, and write them anew.
    """
    run, result = RunFolder(folder), None
    with process_group(recipe.parallel.timeout) as device, entered(run, recipe.total_steps) as lock:
        starts = starts_of(recipe)
        recipe = fitted(recipe, starts)
        recipe, modality = with_sizes(recipe, run)
        before, say = run.read_options(), Display(is_main()).say
        changed = prepare(run, recipe, file)
        if broadcast_object(
            lock is not None
        ):  # else the run has finished, and nothing of it is read or written
            modality = rewritten(run, recipe, modality, trust, say)
        command = Command(
            run=run, recipe=recipe, default=default, device=device, starts=starts, modality=modality, before=before,
            changed=changed, accept_data=accept_data, began=time.monotonic(), guard=lock.check if lock else bool,
        )  # fmt: skip
        left = stages_left(recipe, run, say)
        for stage in left:
            result = train_stage(command, stage, left)
    assert result
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What a call of `train` asks for, whatever stages it has."""

    run: RunFolder
    recipe: Recipe
    default: Recipe | None
    device: torch.device
    starts: Mapping[str, Source]
    """Weights that are those of runs' checkpoints, by the places that name them."""
    modality: Modality | None
    """That of the recipe, where it has been fitted already."""
    before: Mapping[str, Any]
    """The options of the session before."""
    changed: Mapping[str, Any]
    """Options that are not those of the recipe that the run has written."""
    accept_data: bool
    began: float
    guard: Callable[[], object]


# long: what a run does from its start to its end, in order
def train_stage(command: Command, stage: RunStage, left: Sequence[RunStage]) -> Result | None:
    """Train what is left of a stage; after the last one write what the run ships, and return how it ended."""
    run, recipe, device = command.run, command.recipe, command.device
    over = TakeOver(recipe, stage, run)
    parts = over.build(device, command.starts, command.modality)
    trainer = Trainer(
        stage.recipe, parts.modality, parts.learner, parts.optimizer, parts.evaluators, run, device,
        parts.blueprint, command.guard, stage.span, over.load,
    )  # fmt: skip
    with contextlib.closing(trainer):
        other_data = False
        if stage is left[0]:
            if broadcast_object(is_main() and has_finished(run, recipe.total_steps)):
                trainer.display.say(f"{run.path} has finished its {run.finish()['step']} steps already")
                result = result_of(run, parts, run.read_metrics())[0]
                trainer.display.say(result.verdict)
                return result
            check_stages(left, parts.modality)
            from_weights = bool(recipe.init) and over.before is None
            other_data = data_changed(run, parts, command.accept_data, starts_from_weights=from_weights)
        trainer.display.say(describe(stage, parts, device))
        if stage is left[0] and (extended := describe_extension(stage, parts, run, command.before)):
            trainer.display.say(extended)
        with recorded(session_of(run, trainer, command.changed)):
            notes = over.notes() or first_notes(run, stage.recipe, parts, device)
            lines = trainer.fit(notes, floors_again=other_data)
            if stage is not left[-1]:
                return None
            with trainer.measuring.shipping():
                write_model(run, parts)
            result, values = result_of(run, parts, lines)
            if is_main():
                values |= circumstances(recipe, command.default, time.monotonic() - command.began, device)
                run.write_summary(values)
            barrier()  # from here on the first rank is alone
            if is_main():
                show(run, trainer, result.verdict)
        if is_main():
            record_finish(run)  # the last thing that is written
        trainer.display.say(result.verdict)
    return result


def data_changed(run: RunFolder, parts: Parts, accept: bool, starts_from_weights: bool = False) -> bool:
    """Return whether the run goes on with other data, or from other weights; raise a `DataChangedError` if refused."""
    problem, changed = "", False
    start = weights_digest(parts.learner.encoders) if starts_from_weights else ""
    if is_main():
        identity = identity_of(parts.modality, with_validation=bool(parts.evaluators))
        step = checkpoint.newest_step(run.checkpoints)
        try:
            changed = check_data(
                run, identity, step=step, accept=accept, plural=parts.modality.plural, start=start
            )
        except DataChangedError as error:
            problem = str(error)
    problem, changed = broadcast_object((problem, changed))
    if problem:
        raise DataChangedError(problem)
    return changed


def describe(stage: RunStage, parts: Parts, device: torch.device) -> str:
    """Return the lines that are said at the start of a stage, or of a run without any."""
    recipe = stage.recipe
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
    where = f"stage {stage.name}, from step {stage.offset:,}: " if stage.span.borders else ""
    return (
        f"{where}{config_name(type(recipe.objective))} on {config_name(type(recipe.modality))}: {count:,} samples, "
        f"encoders {encoders}, {trainable / 1e6:.2f} M trainable parameters, {ranks} x {device.type}\n"
        f"{recipe.steps:,} steps of {recipe.batch_size} samples ({epochs:.1f} epochs), "
        f"learning rate {parts.optimizer.lr:.3g} ({recipe.optim.lr:g}, scaling {recipe.optim.lr_scaling}){tip}"
    )


def first_notes(run: RunFolder, recipe: Recipe, parts: Parts, device: torch.device) -> list[str]:
    """Return what a reader of the record has to know, once in a run, at its first start.

    Masks that are drawn in smaller groups than asked for; views that show little of a sample; what batch norm sees
    where it sees chunks; that nothing could be compiled; and how many validation samples are copies of training
    samples, where something is measured.
    """
    if not is_main() or checkpoint.find(run.checkpoints):
        return []
    notes = describe_mask_groups(recipe, parts.learner.objective.plans(), world())
    if line := describe_views(parts.modality):
        notes.append(line)
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


def shipped(run: RunFolder) -> dict[str, Any]:
    """Return the step of the newest checkpoint, how far the record went, and digests of the files that a run ships."""
    newest = checkpoint.find(run.checkpoints)[-1]
    return {
        "step": checkpoint.step_of(newest),
        "record": checkpoint.read_meta(newest)["record"],
        "sha256": run.digests(),
    }


def record_finish(run: RunFolder) -> None:
    """Add to the summary of which step the run ships what: the last thing that a run does."""
    run.write_summary(run.read_summary() | {"finished": shipped(run)})


def show(run: RunFolder, trainer: Trainer, verdict: str) -> None:
    """Write the page and the README, and give the page's figures to the loggers."""
    model = load(run.path)
    drawn = draw(model)
    path = write_report(run.path, drawn)
    trainer.draw(checkpoint.newest_step(run.checkpoints), drawn.figures)
    if text := readme(run, model, verdict):
        run.write_readme(text)
    trainer.display.say(f"report: {path}")


def write_model(run: RunFolder, parts: Parts) -> None:
    """Write the files that a run ships."""
    exported = parts.learner.shipped()
    checkpoint.check_finite(exported, run.checkpoints)
    # copied, as towers may share a module and a file cannot hold one tensor under two names
    whole = merged_state(exported, {n: full(t).detach() for n, t in exported.state_dict().items()})
    weights = {n: t.to("cpu", copy=True).contiguous() for n, t in whole.items()}
    if is_main():
        run.write_model(weights, parts.modality.state())


def result_of(run: RunFolder, parts: Parts, lines: list[dict[str, Any]]) -> tuple[Result, dict[str, Any]]:
    """Return how the run ended, and what its summary says of that: verdict, alarm, steps, samples left out."""
    said, alarm = verdicts(parts.evaluators, measurements(lines)), alarm_of(lines)
    whole = whole_verdict(said, alarm)
    evals = measurements(lines)
    result = Result(
        folder=run.path, learned=whole.learned, outcome=whole.outcome, verdict=whole.text,
        metrics={k: v for k, v in evals[-1].items() if k not in ("kind", "step")} if evals else {},
    )  # fmt: skip
    return result, {
        "verdict": whole.text, "alarm": alarm, "learned": whole.learned, "outcome": whole.outcome,
        "all_verdicts": [v.text for v in said],
        # of a run that is to take fewer than it took: those it took
        "steps": checkpoint.newest_step(run.checkpoints),
        "skipped": sum(x["kind"] == "note" and "unreadable" in x.get("text", "") for x in lines),
    }  # fmt: skip


def circumstances(
    recipe: Recipe, default: Recipe | None, seconds: float, device: torch.device
) -> dict[str, Any]:
    """Return what a summary says of how the run was made: environment, seconds, difference from the default recipe."""
    environment = {
        "multissl": __version__, "torch": torch.__version__, "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "ranks": world(), "threads": torch.get_num_threads(),
    }  # fmt: skip
    changes = difference(to_dict(default), to_dict(recipe)) if default else []
    return {"environment": environment, "difference": changes, "seconds": round(seconds, 1)}


def steps_for(epochs: float, samples: int, batch_size: int) -> int:
    """Return the number of steps in which `epochs` passes over the data are made."""
    return max(1, math.ceil(epochs * samples / batch_size))
