"""Making the components of a recipe, checked against each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from multissl.check import (
    check,
    check_batch_norm,
    check_evaluators,
    check_start,
    check_trainable,
    maskings_of,
)
from multissl.contract.encoder import Encoders, build_encoders
from multissl.contract.evaluator import Evaluator
from multissl.contract.modality import Modality
from multissl.engine.flops import Blueprint
from multissl.engine.learner import Learner
from multissl.engine.optim.base import Optimizer
from multissl.layers.lora import adapt
from multissl.parallel.sharding import parallelize
from multissl.recipe import Recipe
from multissl.weights.containers import Source
from multissl.weights.loading import derive_configs, load_weights
from multissl.weights.own_runs import as_in_run, run_at
from multissl.weights.teachers import fill_teachers, with_architectures
from multissl.weights.training_files import fill_parts


@dataclass(kw_only=True, slots=True)
class Parts:
    """The components of a recipe, built."""

    modality: Modality
    learner: Learner
    optimizer: Optimizer
    evaluators: dict[str, Evaluator]
    blueprint: Blueprint


def build(
    recipe: Recipe,
    device: torch.device,
    starts: Mapping[str, Source] = {},
    modality: Modality | None = None,
    fill: Callable[[Learner], object] | None = None,
) -> Parts:
    """Build and check the components; the learner lies on `device`, parallelized.

    `starts` holds weights that are those of runs' checkpoints, by the places that name them; `modality` is the recipe's
    where it has been fitted already; `fill` gives the learner weights of its own before it is parallelized.
    """
    torch.manual_seed(recipe.seed)  # initial weights are the same on every rank
    modality = modality or modality_of(recipe)
    encoders = encoders_of(recipe, modality)
    for encoder in encoders.values():
        encoder.load_pretrained()
    source = load_weights(encoders, recipe.init, starts.get(recipe.init)) if recipe.init else None
    learner = learner_of(recipe, modality, encoders)
    if source:
        fill_parts(learner.objective, learner.encoders, source, adapted=bool(recipe.lora.rank))
    fill_teachers(learner.objective, starts)
    if fill:
        fill(learner)
    blueprint = Blueprint(learner)
    parallelize(learner, recipe.parallel, device)
    optimizer = recipe.optim.build(
        learner, [*learner.objective.param_rules(), *recipe.rules(encoders)], recipe.batch_size
    )
    evaluators = {name: cfg.build() for name, cfg in recipe.evals.items()}
    return Parts(
        modality=modality, learner=learner, optimizer=optimizer, evaluators=evaluators, blueprint=blueprint
    )


def fitted(recipe: Recipe, starts: Mapping[str, Source] = {}) -> Recipe:
    """Return a recipe whose encoder, and whose teachers, are what weights ask for; before a run writes its recipe.

    Weights of a run ask for what its recipe says; beyond that they are compared as they load, as are those of a run's
    checkpoint, in `starts`.
    """
    check_start(recipe)
    check_evaluators(recipe)
    recipe = recipe.replace(objective=with_architectures(recipe.objective, starts, recipe.encoders))
    if recipe.init:
        recipe = recipe.replace(encoders=as_in_run(recipe.encoders, recipe.init))
    if not recipe.init or recipe.init in starts:
        return recipe
    return recipe.replace(encoders=derive_configs(recipe.encoders, recipe.init))


def modality_of(recipe: Recipe) -> Modality:
    """Return a recipe's modality, fitted to its data, or as the run was fitted whose weights it starts from."""
    modality = recipe.modality.build()
    if recipe.fit == "data":
        return modality.fit()
    run = run_at(recipe.init)
    if run is None or not run.modality.is_file():
        raise ValueError(
            f"fit=init and --init {recipe.init}: that is no finished run of ours, and tells nothing of what a modality "
            "was fitted to; give --fit data"
        )
    modality.restore(run.read_modality())
    return modality


def encoders_of(recipe: Recipe, modality: Modality) -> Encoders:
    """Return a recipe's encoders for the streams of its modality, with random weights."""
    specs = modality.streams()
    missing = [s for s in specs if s not in recipe.encoders]
    if missing:
        raise ValueError(f"encoders has no {missing[0]!r}: the modality feeds {', '.join(specs)}")
    return build_encoders(recipe.encoders, specs)


def learner_of(recipe: Recipe, modality: Modality, encoders: Encoders) -> Learner:
    """Return encoders and objective as one module, checked against modality and recipe."""
    for stream in recipe.locked:
        encoders[stream].lock()
    if recipe.lora.rank:
        for stream in (s for s in encoders if s not in recipe.locked):
            adapt(encoders[stream], recipe.lora, stream)
    objective = recipe.objective.build(encoders, modality.streams())
    check(recipe, modality, objective.plans())
    objective.check_batch_size(recipe.batch_size)
    check_batch_norm(modality, objective.plans(), encoders)
    for stream, plan in objective.plans().items():
        encoders[stream].prepare_for(maskings_of(recipe, plan))
    if recipe.locked:
        check_trainable(recipe, encoders, objective)
    return Learner(encoders, objective, recipe.chunk, recipe.chunk_norm)
