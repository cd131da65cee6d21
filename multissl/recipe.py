"""A recipe: everything a run is, as one config. `check` says what does not fit, `build` makes the components."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from multissl.config import config_name, from_dict
from multissl.contract.encoder import Encoder, Encoders, build_encoders
from multissl.contract.evaluator import Evaluator
from multissl.contract.learning import ParamRule
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.contract.plans import Masking, Plans, ViewPlan
from multissl.engine.learner import Learner
from multissl.engine.optim.adamw import AdamW
from multissl.engine.optim.base import Optimizer
from multissl.engine.trainer import Loop
from multissl.migrate import FORMAT, migrate
from multissl.parallel.ranks import world
from multissl.parallel.sharding import parallelize
from multissl.registry import suggest


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
    """Safetensors file or finished run whose encoder weights to start from."""
    locked: tuple[str, ...] = ()
    """Streams whose encoder stays as it starts, in evaluation mode and without gradient (LiT); its weights come from
    `init` or from the encoder's own `pretrained`."""
    lr_by_stream: dict[str, float] = field(default_factory=dict)
    """Factors on the learning rates of streams' encoders, such as image=0.1 for a pretrained one; 1 where none is."""

    def __post_init__(self) -> None:
        super(Recipe, self).__post_init__()
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

    def rules(self, encoders: Encoders) -> list[ParamRule]:
        """Return `lr_by_stream` as the optimizer reads it."""
        return [ParamRule(of=encoders[s], lr=factor) for s, factor in self.lr_by_stream.items()]


@dataclass(kw_only=True, slots=True)
class Parts:
    """The components of a recipe, built."""

    modality: Modality
    learner: Learner
    optimizer: Optimizer
    evaluators: dict[str, Evaluator]


def check(recipe: Recipe, modality: Modality, plans: Plans) -> None:
    """Compare what the objective asks for with what modality and encoders can do; says which pair fails and why."""
    objective, named = config_name(type(recipe.objective)), config_name(type(recipe.modality))
    specs = modality.streams()
    if recipe.batch_size % world():
        raise ValueError(f"batch_size={recipe.batch_size} does not divide over {world()} ranks")
    for stream, plan in plans.items():
        asked = {
            "local": plan.num_local > 0, "mask": plan.mask_ratio is not None, "target": plan.target,
            "corrupt": plan.corrupt, "masks": plan.num_masks > 1, "coords": plan.coords,
            "drop": "drop" in maskings_of(recipe, plan),
        }  # fmt: skip
        provided = modality.provides(stream)
        for need in (n for n, wanted in asked.items() if wanted and n not in provided):
            raise ValueError(
                f"{objective} asks {named} for {need} views, which it does not offer: {_way_out(need)}"
            )
        encoder = recipe.encoders[stream]
        maskings = encoder.maskings_for(specs[stream])
        for masking in sorted(maskings_of(recipe, plan) - maskings):
            raise ValueError(
                f"{objective} wants hidden tokens treated as {masking!r}, encoders.{stream}="
                f"{config_name(type(encoder))} cannot: use transformer, or an objective without masks"
            )


def maskings_of(recipe: Recipe, plan: ViewPlan) -> frozenset[Masking]:
    """What the objective will ask of an encoder under this plan: masks matter only where some are drawn."""
    asked = recipe.objective.maskings()
    return asked if plan.mask_ratio and not plan.corrupt else asked - {"replace", "drop"}


def check_trainable(recipe: Recipe, encoders: Encoders, objective: Objective) -> None:
    """Refuse locks that leave nothing to train of what the run ships: encoders and heads of towers."""
    shipped = objective.exported(encoders)
    if not any(p.requires_grad for m in (encoders, shipped) for p in m.parameters()):
        raise ValueError(
            f"locked={','.join(recipe.locked)} leaves nothing to train of what {config_name(type(recipe.objective))} "
            "ships: unlock a stream, or use clip, whose heads learn a shared space of locked encoders"
        )


def _way_out(need: str) -> str:
    return {
        "local": "set its number of local views to 0",
        "mask": "switch its masked part off or take another objective",
        "drop": "its rows hide unequal numbers of tokens; fill them (texts: pack=True), or replace tokens instead",
    }.get(need, "take another objective or modality")


def build(recipe: Recipe, device: torch.device) -> Parts:
    """Build and check the components; the learner lies on `device`, parallelized."""
    torch.manual_seed(recipe.seed)  # initial weights are the same on every rank
    modality = recipe.modality.build()
    specs = modality.streams()
    missing = [s for s in specs if s not in recipe.encoders]
    if missing:
        raise ValueError(f"encoders has no {missing[0]!r}: the modality feeds {', '.join(specs)}")
    encoders = build_encoders(recipe.encoders, specs)
    for encoder in encoders.values():
        encoder.load_pretrained()
    if recipe.init:
        from multissl.weights.loading import load_weights

        load_weights(encoders, recipe.init)
    for stream in recipe.locked:
        encoders[stream].lock()
    objective = recipe.objective.build(encoders, specs)
    check(recipe, modality, objective.plans())
    for stream, plan in objective.plans().items():
        encoders[stream].prepare_for(maskings_of(recipe, plan))
    if recipe.locked:
        check_trainable(recipe, encoders, objective)
    learner = Learner(encoders, objective, recipe.chunk)
    parallelize(learner, recipe.parallel, device)
    optimizer = recipe.optim.build(
        learner, [*objective.param_rules(), *recipe.rules(encoders)], recipe.batch_size
    )
    evaluators = {name: cfg.build() for name, cfg in recipe.evals.items()}
    return Parts(modality=modality, learner=learner, optimizer=optimizer, evaluators=evaluators)


def read_recipe(path: Path) -> Recipe:
    """A recipe from `recipe.json` or YAML."""
    text = path.read_text()
    if path.suffix in (".yaml", ".yml"):
        import yaml

        data = yaml.safe_load(text)
    else:
        data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: want a mapping of options")
    # a file that somebody wrote says no format: it is checked as one of today
    written = data.pop("format", FORMAT)
    if not isinstance(written, int) or written > FORMAT:
        raise ValueError(
            f"{path} has recipe format {written!r} ({data.get('multissl')}), this version reads up to {FORMAT}: upgrade"
        )
    data.pop("multissl", None)
    old = written < FORMAT
    return from_dict(Recipe, migrate(data) if old else data, old=old)
