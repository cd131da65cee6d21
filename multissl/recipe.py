"""A recipe: everything a run is, as one config. `check` says what does not fit, `build` makes the components."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from multissl.config import config_name, from_dict
from multissl.contract.encoder import Encoder, Encoders
from multissl.contract.evaluator import Evaluator
from multissl.contract.learning import ParamRule
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.engine.loop import Loop, Span
from multissl.engine.optim.adamw import AdamW
from multissl.engine.optim.base import Optimizer
from multissl.files import SEAL
from multissl.layers.lora import LoRA
from multissl.migrate import FORMAT, migrate
from multissl.plain_data import parse_json, parse_yaml
from multissl.registry import suggest
from multissl.stages import FIRST, FIXED, Stage, changed
from multissl.trust import NOTHING, Trust, UntrustedError


@dataclass(kw_only=True, slots=True)
class Recipe(Loop):
    """What is trained, on what, by what: the options of the loop and of every component."""

    modality: Modality.Config
    """What turns data into views."""
    encoders: dict[str, Encoder.Config]
    """By stream; a modality of one stream has one."""
    objective: Objective.Config
    """What turns features into a loss."""
    optim: Optimizer.Config = field(default_factory=AdamW.Config)
    """The optimizer."""
    evals: dict[str, Evaluator.Config] = field(default_factory=dict)
    """Evaluators, by the names of their metrics."""
    init: str = ""
    """Weights that the encoder starts from: a file (.safetensors, .pth, .bin, .ckpt), a folder of a model or run,
    `RUN@STEP`, `RUN@best`, `hf:NAME` or `timm:NAME`; `dino:FILE` says whose a file is where it does not tell. The
    encoder's options that stand at their defaults are taken from the weights, or from the recipe of the run, all of
    them after `--encoders.STREAM transformer`."""
    fit: Literal["data", "init"] = "data"
    """Where the modality has from what its options leave open (vocabulary, statistics, schema): it is measured on the
    data; or, init, taken from the run that `init` names, whose weights mean that."""
    frozen: int = 0
    """Steps at the start in which encoders rest while heads learn; for encoders that start from weights."""
    lora: LoRA = field(default_factory=LoRA)
    """Small additions that learn in the place of the encoders, which rest; for encoders that start from weights."""
    locked: tuple[str, ...] = ()
    """Streams whose encoder stays as it starts, in evaluation mode and without gradient (LiT); its weights come from
    `init` or from the encoder's own `pretrained`."""
    lr_by_stream: dict[str, float] = field(default_factory=dict)
    """Factors on the learning rates of streams' encoders, such as image=0.1 for a pretrained one; 1 where none is."""
    stages: tuple[Stage, ...] = ()
    """What changes after these steps, stage after stage, each with a name, steps and changes of options: '[{"name":
    "high", "steps": 200, "changes": {"modality.size": 64}}]'."""

    def __post_init__(self) -> None:
        super(Recipe, self).__post_init__()
        if self.optim.warmup + self.optim.cooldown > self.steps and self.optim.cooldown:
            raise ValueError(
                f"optim.cooldown={self.optim.cooldown} and optim.warmup={self.optim.warmup} are more than "
                f"steps={self.steps}: want steps for both"
            )
        if self.frozen < 0:
            raise ValueError(f"frozen={self.frozen}: want 0 or a number of steps")
        for option, names in (("locked", self.locked), ("lr_by_stream", self.lr_by_stream)):
            for stream in (s for s in names if s not in self.encoders):
                raise ValueError(f"{option} names {stream!r}, no stream{suggest(stream, self.encoders)}")
        for stream, factor in self.lr_by_stream.items():
            if not factor > 0:
                raise ValueError(
                    f"lr_by_stream.{stream}={factor}: want more than 0, or lock the encoder: --locked {stream}"
                )
            if stream in self.locked:
                raise ValueError(f"lr_by_stream.{stream}={factor}: {stream} is locked and learns nothing")
        if self.stages:
            run_stages(self)

    def then(self, *stages: Stage) -> Recipe:
        """Return the recipe with further stages, of which each goes on with what the one before it learned."""
        return self.replace(stages=(*self.stages, *stages))

    def run_stages(self) -> list[RunStage]:
        """Return what is trained one after another: the recipe itself, then its stages."""
        return run_stages(self)

    @property
    def total_steps(self) -> int:
        """Return the steps of all stages together."""
        return self.steps + sum(stage.steps for stage in self.stages)

    def rules(self, encoders: Encoders) -> list[ParamRule]:
        """Return `lr_by_stream` and `frozen` as the optimizer reads them."""
        rules = [ParamRule(of=encoders[s], lr=factor) for s, factor in self.lr_by_stream.items()]
        frozen = [ParamRule(of=encoder, frozen_steps=self.frozen) for encoder in encoders.values()]
        return rules + (frozen if self.frozen else [])


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStage:
    """A stage as it is trained: its whole recipe, and where it lies in the run."""

    name: str
    recipe: Recipe
    """Without stages; its steps are those of this one."""
    span: Span
    optimizer: Literal["keep", "reset"] = "keep"
    changes: Mapping[str, Any] = field(default_factory=dict)
    """What distinguishes it from the stage before."""

    @property
    def offset(self) -> int:
        """Return the number of steps of the run before it."""
        return self.span.start

    @property
    def stop(self) -> int:
        """Return the number of steps of the run at its end."""
        return self.span.start + self.recipe.steps


def run_stages(recipe: Recipe) -> list[RunStage]:
    """Return the stages of a recipe in order, the first one being what it trains before any change.

    Raises a ValueError that names stage and option where a change does not fit.
    """
    recipes, names = [recipe.replace(stages=())], [FIRST]
    for stage in recipe.stages:
        if stage.name in names:
            raise ValueError(f"stages: two are called {stage.name!r}: give each a name of its own")
        names.append(stage.name)
        recipes.append(_next_recipe(recipes[-1], stage))
    if recipe.stages:
        for name, each in zip(names, recipes, strict=True):
            _check_length(name, each)
    ends = [*itertools.accumulate(each.steps for each in recipes)]
    borders, start, samples = tuple(ends[:-1]), 0, 0
    made: list[RunStage] = []
    for stage, each in zip((None, *recipe.stages), recipes, strict=True):
        name = stage.name if stage else FIRST
        span = Span(stage=name, start=start, samples=samples, total=ends[-1], borders=borders)
        how = {"optimizer": stage.optimizer, "changes": stage.changes} if stage else {}
        made.append(RunStage(name=name, recipe=each, span=span, **how))
        start, samples = start + each.steps, samples + each.steps * each.batch_size
    return made


def stage_at(stages: Sequence[RunStage], step: int) -> RunStage:
    """Return the stage that a checkpoint after `step` steps belongs to; at a border it is the one that ends there."""
    return next((stage for stage in stages if step <= stage.stop), stages[-1])


def _next_recipe(recipe: Recipe, stage: Stage) -> Recipe:
    """Return the recipe of a stage, made of that of the stage before."""
    try:
        for path in stage.changes:
            first, _, rest = path.partition(".")
            if first in FIXED:
                raise ValueError(f"{path} cannot change: {FIXED[first]}")
            if first == "modality" and rest.rpartition(".")[2] == "data":
                raise ValueError(f"{path} cannot change: a run has one set of data")
        made = changed(recipe, stage.changes).replace(steps=stage.steps)
        _check_kinds(recipe, made, stage)
    except ValueError as error:
        raise ValueError(f"stage {stage.name}: {error}") from None
    return made


def _check_length(name: str, recipe: Recipe) -> None:
    """Refuse what may end a stage before its steps are taken, as the next one begins where they are."""
    if recipe.best.patience:
        raise ValueError(
            f"stage {name}: best.patience={recipe.best.patience} may end it early, and the stages of a run have their "
            "steps: leave it out (--best.patience 0)"
        )
    for evaluator, cfg in recipe.evals.items():
        made = cfg.build()
        if made.decides or type(made).begin is not Evaluator.begin:
            raise ValueError(
                f"stage {name}: evals.{evaluator} ({config_name(type(cfg))}) compares with the encoders that a run "
                f"starts from, and may end it early; a stage has neither: leave it out (--evals.{evaluator} none)"
            )


def _check_kinds(before: Recipe, after: Recipe, stage: Stage) -> None:
    """Refuse a stage that trains something else than the one before it."""
    kinds = {"modality": (before.modality, after.modality), "objective": (before.objective, after.objective)}
    kinds |= {f"encoders.{s}": (before.encoders[s], after.encoders.get(s)) for s in before.encoders}
    for name, (old, new) in kinds.items():
        if type(old) is not type(new):
            is_now = "none" if new is None else config_name(type(new))
            raise ValueError(
                f"{name}={is_now} cannot take over what {config_name(type(old))} learned: a stage changes options of it"
            )
    if added := [stream for stream in after.encoders if stream not in before.encoders]:
        raise ValueError(f"encoders.{added[0]} cannot come in: a stage has the streams of the one before it")
    old, new = config_name(type(before.optim)), config_name(type(after.optim))
    if old != new and stage.optimizer == "keep":
        raise ValueError(f"optim={new} cannot go on with the moments of {old}: set optimizer='reset'")


def read_recipe(path: Path, trust: Trust = NOTHING) -> Recipe:
    """Return the recipe of a JSON or YAML file; code that it names is refused unless `trust` allows it."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text (byte {error.start})") from None
    parse = parse_yaml if path.suffix in (".yaml", ".yml") else parse_json
    data = parse(text, str(path))
    if not isinstance(data, dict):
        raise ValueError(f"{path}: want a mapping of options")
    return recipe_of(data, str(path), trust)


def recipe_of(options: Mapping[str, Any], name: str, trust: Trust = NOTHING) -> Recipe:
    """Return the recipe of options as files hold them; `name` is what messages call the file."""
    data = dict(options)
    # a file that somebody wrote says no format: it is checked as one of today
    written = data.pop("format", FORMAT)
    if not isinstance(written, int) or written > FORMAT:
        raise ValueError(
            f"{name} has recipe format {written!r} ({data.get('multissl')}), this version reads up to {FORMAT}: upgrade"
        )
    data.pop("multissl", None)
    data.pop(SEAL, None)  # whether it is whole is asked of the file of a run; a copy may be edited
    old = written < FORMAT
    try:
        return from_dict(Recipe, migrate(data) if old else data, old=old, trust=trust)
    except UntrustedError as error:
        raise UntrustedError(f"{name}: {error}") from None
    except (ValueError, TypeError) as error:  # the latter of an option that is needed and missing
        raise ValueError(f"{name}: {error}") from None
