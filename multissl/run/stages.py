"""The stages of a run: which are left, whether each can follow the one before it, and how it takes that over.

A stage ends with a checkpoint, and the next one begins by reading it, in the same process or in a later one: so a run
that is killed at a border goes on as one that is not. What a stage reads there are the weights of all modules, with
positions and patches resampled, the optimizer's moments where it keeps them, and what the modality was fitted to.
State: none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from multissl.build import Parts, build, encoders_of, learner_of
from multissl.config import difference
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.contract.plans import StreamSpec
from multissl.engine import checkpoint
from multissl.engine.learner import Learner
from multissl.recipe import Recipe, RunStage, stage_at
from multissl.run.folder import RunFolder
from multissl.stages import FIRST
from multissl.weights.carrying import Carrying, carrying
from multissl.weights.containers import Source


def stages_left(recipe: Recipe, run: RunFolder, say: Callable[[str], None]) -> list[RunStage]:
    """Return the stages that a run has to train, beginning with that of its newest checkpoint, if it has ended or not.

    Called on every rank.
    """
    stages = recipe.run_stages()
    if len(stages) == 1:
        return stages
    newest = checkpoint.newest_whole(run.checkpoints, say)
    step = checkpoint.step_of(newest[0]) if newest else int(run.finish().get("step", 0))
    return stages[stages.index(stage_at(stages, step)) :]


def check_stages(stages: Sequence[RunStage], modality: Modality) -> None:
    """Raise a ValueError where a stage cannot take over what the one before it learned; nothing is computed.

    `modality` is that of the first of these stages, fitted to its data.
    """
    if len(stages) < 2:
        return
    fitted_to, specs = modality.state(), modality.streams()
    before = _outline(stages[0], fitted_to)[1]
    for stage in stages[1:]:
        try:
            streams, learner = _outline(stage, fitted_to)
            _check_streams(specs, streams)
            carrying(before, learner)
            learner.objective.check_stage(specs, streams)
        except ValueError as error:
            raise ValueError(_refusal(stage, error)) from None
        before, specs = learner, streams


def _refusal(stage: RunStage, error: ValueError) -> str:
    text = str(error).removeprefix(f"stage {stage.name}: ")
    changes = ", ".join(f"{n}={v}" for n, v in stage.changes.items()) or "no changes"
    return (
        f"stage {stage.name} ({changes}) cannot go on with what the stage before it learned: {text}; sizes, rates, "
        "weights of terms and chances may change; what a stage trains stays as it is, or is trained anew with --init"
    )


def _check_streams(before: Mapping[str, StreamSpec], after: Mapping[str, StreamSpec]) -> None:
    """Refuse streams of other kinds; sizes are free."""

    def kinds(specs: Mapping[str, StreamSpec]) -> dict[str, Any]:
        return {
            s: {
                "kind": x.kind,
                "channels": x.shape[0] if x.kind == "grid" else x.shape[-1],
                "vocabulary": x.vocab,
            }
            for s, x in specs.items()
        }

    if changed := difference(kinds(before), kinds(after)):
        raise ValueError(f"its streams are others ({'; '.join(changed)})")


def _outline(stage: RunStage, fitted_to: Mapping[str, Any]) -> tuple[Mapping[str, StreamSpec], Learner]:
    """Return the streams of a stage, and its learner with shapes and no numbers."""
    modality = stage.recipe.modality.build()
    modality.restore(fitted_to)
    with torch.device("meta"):
        learner = learner_of(stage.recipe.replace(chunk=0), modality, encoders_of(stage.recipe, modality))
    return modality.streams(), learner


class TakeOver:
    """How a stage is built in a run: on what the stage before it left, on a checkpoint of its own, or anew."""

    def __init__(self, recipe: Recipe, stage: RunStage, run: RunFolder) -> None:
        stages = recipe.run_stages()
        place = [s.name for s in stages].index(stage.name)
        self.stage, self.before = stage, stages[place - 1] if place else None
        self.run = run
        kept = checkpoint.find(run.checkpoints)
        self.newest = kept[-1] if kept else None
        self.plan = Carrying()

    def build(
        self, device: torch.device, starts: Mapping[str, Source], modality: Modality | None = None
    ) -> Parts:
        """Return the parts of the stage.

        `starts` holds weights that are those of other runs' checkpoints; `modality` that of the first stage, where it
        has been fitted already.
        """
        recipe = self.stage.recipe
        if self.before is None:
            return build(recipe, device, starts, modality)
        fitted = recipe.modality.build()
        fitted.restore(checkpoint.read_modality(self.newest) if self.newest else self.run.read_modality())
        fill = self._fill if self.crosses else None
        return build(recipe.replace(init="", fit="data"), device, starts, fitted, fill)

    @property
    def crosses(self) -> bool:
        """Return whether the stage begins with the checkpoint of the one before it."""
        if self.before is None or self.newest is None:
            return False
        return checkpoint.step_of(self.newest) == self.stage.offset

    def _fill(self, learner: Learner) -> None:
        """Give a learner what that of the stage before had at its end."""
        assert self.before
        assert self.newest
        old = _outline(self.before, checkpoint.read_modality(self.newest))[1]
        self.plan = carrying(old, learner)
        state = self.plan.carried(checkpoint.read_learner(self.newest), learner.state_dict())
        learner.load_state_dict(state)
        for name, module in learner.named_modules():
            if isinstance(module, Objective):
                own = [n.removeprefix(f"{name}.") for n in self.plan.fresh if n.startswith(f"{name}.")]
                module.begin_stage(own)

    def load(self, folder: Path, learner: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Restore a checkpoint of the stage; of the stage before it, the moments that go on. Returns its step."""
        if not self.crosses:
            return checkpoint.load(folder, learner, optimizer)
        if self.stage.optimizer == "keep":
            checkpoint.load_moments(folder, learner, optimizer, {*self.plan.resampled, *self.plan.fresh})
        return checkpoint.step_of(folder)

    def notes(self) -> list[str]:
        """Return what became of the state at the border, for the record; nothing of a run's first stage.

        They are written once, where the stage begins.
        """
        if self.before is None:
            return []
        stage, plan = self.stage, self.plan
        parts = [f"stage {stage.name} goes on from stage {self.before.name}"]
        parts += dict.fromkeys(f"{text} in {_copies(plan, text)}" for text in plan.said.values())
        if stage.optimizer == "reset":
            parts.append("the optimizer begins anew")
        elif plan.resampled:
            parts.append("the optimizer's moments of what is resampled begin anew")
        parts += [f"{_groups(plan.fresh)} come in"] * bool(plan.fresh)
        parts += [f"{_groups(plan.dropped)} go"] * bool(plan.dropped)
        return ["; ".join(parts)]


def _copies(plan: Carrying, text: str) -> str:
    count = sum(each == text for each in plan.said.values())
    return "1 encoder" if count == 1 else f"{count} encoders, copies included"


def _groups(names: Sequence[str]) -> str:
    """Return how many tensors there are of each module of the objective."""
    groups = [".".join(name.split(".")[:2]) for name in names]
    return ", ".join(f"{groups.count(g)} tensors of {g}" for g in dict.fromkeys(groups))


def changed_stages(old: Mapping[str, Any], new: Mapping[str, Any], reached: int) -> list[str]:
    """Return how the stages that a run has started are others by new options than by old ones, a line for each.

    The last of them may take more steps, and those after it may be any.
    """
    before, after, start = _listed(old), _listed(new), 0
    lines: list[str] = []
    for place, was in enumerate(before):
        if place and start >= reached:
            break
        now = after[place] if place < len(after) else {"steps": 0}
        kept = [{n: v for n, v in stage.items() if n != "steps"} for stage in (was, now)]
        lines += difference(kept[0], kept[1], f"stages.{was['name']}")
        ended = start + was["steps"] < reached
        if (
            (now["steps"] != was["steps"])
            if ended
            else (start + now["steps"] < min(reached, start + was["steps"]))
        ):
            lines.append(f"stages.{was['name']}.steps: {was['steps']} -> {now['steps']}, at step {reached}")
        start += was["steps"]
    return lines


def _listed(options: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [{"name": FIRST, "steps": options["steps"]}, *options.get("stages", ())]
