"""What more steps do to the schedules of a run that is resumed: said before it goes on.

A cosine is laid out anew over all steps, so rate, decay and momentum jump at the step of the resume and the run is not
the one that had been so long from the start. A constant rate with a cool-down is the same in both until the cool-down.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multissl.build import Parts
from multissl.engine import checkpoint
from multissl.layers.teacher import Teacher
from multissl.recipe import Recipe, RunStage
from multissl.run.folder import RunFolder
from multissl.stages import FIRST


def describe_extension(stage: RunStage, parts: Parts, run: RunFolder, options: Mapping[str, Any]) -> str:
    """Return what becomes of rate, decay and momentum where a stage has other steps than by earlier options.

    "" for nothing. All steps are those of the stage, over which its schedules are laid out.
    """
    recipe, before = stage.recipe, steps_before(stage, options)
    kept = sorted(checkpoint.step_of(p) - stage.offset for p in checkpoint.find(run.checkpoints))
    step = max(kept, default=0)
    if step <= 0 or before == recipe.steps:
        return ""
    moves = list(_moves(recipe, parts, before, step))
    text = f"{before:,} -> {recipe.steps:,} steps, resumed at step {step:,}: "
    cooldown = recipe.optim.cooldown
    if recipe.optim.lr_shape == "constant" and not moves:
        return text + (
            f"rates are those of a run of {recipe.steps:,} steps from the start, which cools down in its last "
            f"{cooldown:,}"
        )
    text += "; ".join(moves) or "no schedule depends on how many there are"
    if recipe.optim.lr_shape == "constant" and step > before - cooldown:
        good = [s for s in kept if s <= before - cooldown]
        way = (
            f"remove those after step {good[-1]:,} to go on from there"
            if good
            else "none of before is kept: --save.keep_every N keeps some"
        )
        return f"{text}. Step {step:,} lies in the cool-down of before; a checkpoint before it extends exactly, {way}"
    if recipe.optim.lr_shape == "cosine" and moves:
        text += ". This is not the run that had been so long from the start; "
        text += "--optim.lr_shape constant --optim.cooldown N is"
    return text


def steps_before(stage: RunStage, options: Mapping[str, Any]) -> int:
    """Return how many steps a stage had by earlier options; those of now where they did not have it."""
    by_name = {each["name"]: each["steps"] for each in options.get("stages", ())}
    return {FIRST: options.get("steps", stage.recipe.steps), **by_name}.get(stage.name, stage.recipe.steps)


def _moves(recipe: Recipe, parts: Parts, before: int, step: int) -> list[str]:
    """Return what the next step's values are by the old number of steps and by the new one, where they differ."""
    optimizer, stretch = parts.optimizer, recipe.optim.stretch
    schedules = [
        ("learning rate", optimizer.lr_schedule, stretch),
        ("weight decay", optimizer.decay_schedule, stretch),
    ]
    teachers = [m for m in parts.learner.modules() if isinstance(m, Teacher) and m.cfg.rule == "ema"]
    schedules += [("teacher momentum", m.momentum, m.cfg.stretch) for m in teachers[:1]]
    moves = []
    for name, schedule, factor in schedules:
        old, new = (schedule.at(step, round(total * factor)) for total in (before, recipe.steps))
        moves += [f"{name} {old:.4g} -> {new:.4g}"] if old != new else []
        if old == new and schedule.final != schedule.base and schedule.shape in ("cosine", "linear"):
            moves.append(f"{name} is laid out anew")
    return moves
