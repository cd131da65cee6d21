"""A run's encoders with their modality: what a training left, or what a recipe starts from."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multissl.build import build, encoders_of, fitted, learner_of, modality_of
from multissl.config import config_name
from multissl.contract.abilities import ContinuesTraining
from multissl.contract.data import Sample
from multissl.contract.encoder import Encoders
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Features
from multissl.contract.modality import Modality
from multissl.engine import checkpoint
from multissl.engine.learner import Learner
from multissl.files import Damaged
from multissl.inference import clean_views, single_stream, stream_of
from multissl.layers.lora import merge
from multissl.parallel.sharding import Parallel
from multissl.recipe import Recipe, RunStage, recipe_of, stage_at
from multissl.registry import suggest
from multissl.run.earlier import readable
from multissl.run.folder import RunFolder, located, run_of
from multissl.run.module import FeatureModule, ModulePool
from multissl.trust import Trust
from multissl.weights.containers import Source, Training
from multissl.weights.files import read_weights
from multissl.weights.loading import tower_streams
from multissl.weights.teachers import Place, fill_teachers, places_of, teachers_of
from multissl.weights.unwrapping import State

log = logging.getLogger("multissl")


class Model:
    """A trained run: `encode` turns samples into features."""

    def __init__(
        self, recipe: Recipe, modality: Modality, encoders: Encoders, device: torch.device, step: int = 0
    ) -> None:
        self.recipe, self.modality, self.encoders, self.device = recipe, modality, encoders, device
        self.step = step
        """The number of steps after which the encoders are as they are."""

    def frozen(self) -> FrozenEncoders:
        """Return the encoders as evaluators want them."""
        return FrozenEncoders.of(self.encoders)

    def encode(self, samples: Any, batch_size: int = 256, stream: str = "") -> Tensor:
        """Return the pooled features of samples as the modality reads them: paths, arrays, tensors, rows. [S, D]

        One path or text is one sample, a table of pandas one for each row. `stream` says what they are where the
        modality feeds several; empty: the first. Raises a ValueError that names the first sample that cannot be read.
        """
        return torch.cat([f.pooled.float().cpu() for f in self._features(samples, batch_size, stream)])

    def embed(self, samples: Any, batch_size: int = 256, stream: str = "") -> Tensor:
        """Return unit vectors in the space that streams share: a product of two streams' is their cosines. [S, P]

        Raises a ValueError as `encode` does, and where the run has no such space.
        """
        parts = []
        for features in self._features(samples, batch_size, stream):
            if features.embedding is None:
                name = config_name(type(self.recipe.objective))
                raise ValueError(f"{name} shares no space between streams: use encode, or train clip")
            parts.append(torch.nn.functional.normalize(features.embedding.float(), dim=1).cpu())
        return torch.cat(parts)

    def module(self, stream: str = "", pool: ModulePool = "own", trainable: bool = False) -> FeatureModule:
        """Return a copy of a stream's encoder as a module that needs no more of the run: tensors to features [B, D].

        Pictures [B, C, H, W] and clips [B, C, T, H, W], uint8 or 0 to 1; waves [B, S]; ids [B, L]; rows of numbers
        [B, columns]; stacks of frames [B, C, H, W]. Normalization, spectrograms and standardization are inside;
        decoding and resizing are not. `pool` may be mean, tokens ([B, N, D]) or embedding (unit vectors [B, P]).
        Frozen and in evaluation mode unless `trainable`. Raises a ValueError where the modality has no such form.
        """
        stream = stream_of(self.modality, stream)
        preparation = self.modality.preparation(stream)
        return FeatureModule(self.encoders[stream], preparation, stream, pool, trainable).to(self.device)

    def _features(self, samples: Any, batch_size: int, stream: str) -> Iterator[Features]:
        streams = self.modality.streams()
        stream = stream or next(iter(streams))
        if stream not in streams:
            raise ValueError(f"stream={stream!r} is none of this run's{suggest(stream, streams)}")
        samples = _listed(samples)
        for start in range(0, len(samples), batch_size):
            places = range(start, min(start + batch_size, len(samples)))
            some = [Sample(single_stream(self.modality, stream, samples[i]), i) for i in places]
            views = clean_views(self.modality, some, stream, self.device)
            with torch.inference_mode():
                yield self.encoders.encode([views])[0]


def _listed(samples: Any) -> Sequence[Any] | Tensor:
    """Return samples one by one: a single path or text is one, a table of pandas has one in each row."""
    if isinstance(samples, str | Path):
        return [samples]
    pandas = sys.modules.get("pandas")  # whoever has such a table has imported it
    if pandas and isinstance(samples, pandas.DataFrame):
        return samples.to_dict("records")
    return samples


def load(
    run: Path | str,
    device: torch.device | str = "cpu",
    data: str = "",
    trust: bool = False,
    change: Callable[[Recipe], Recipe] = lambda recipe: recipe,
) -> Model:
    """Return a run, ready to encode; its modality reads other `data` where some is given.

    `change` is applied to its recipe, and may be of what it reads alone: the encoders stay as they were trained.

    `RUN` is what the run ships, or its newest whole checkpoint where it has not finished; `RUN@STEP` is a checkpoint,
    `RUN@best` the best one of a run that compares them.
    Reads JSON and safetensors only. Code that its recipe names, such as the class of an objective of one's own, runs if
    the user has trained with it, and else only where `trust` says so. So are checkpoints read that an older version
    pickled; they are written anew.
    """
    folder, step = located(run)
    finished = int(folder.finish().get("step", 0))
    if step == finished:
        step = None
    shipped = step is None and (finished or all(p.is_file() for p in folder.shipped))
    if shipped:
        folder.check_shipped()
    stages = stages_of_run(folder, data, trust)
    if shipped:
        recipe = change((stage_at(stages, finished) if finished else stages[-1]).recipe)
        modality = recipe.modality.build()
        _restore(modality, folder.read_modality(), folder.modality)
        encoders = _shipped(recipe, modality, folder)
        # of before finishes were recorded, a run took the steps of its recipe
        reached = finished or recipe.steps
        if step is None:
            _tell_best(folder, finished, recipe)
    else:
        recipe, modality, learner, reached = _at_checkpoint(
            lambda number: change(stage_at(stages, number).recipe), folder, step, trust
        )
        encoders = _merged(learner)
    encoders.to(device).eval().requires_grad_(False)
    return Model(recipe, modality, encoders, torch.device(device), reached)


def stages_of_run(folder: RunFolder, data: str, trust: bool) -> list[RunStage]:
    """Return the stages of a run, which reads other data where some is given."""
    if not folder.recipe.is_file():
        raise ValueError(f"{folder.path} holds no {folder.recipe.name}: give the folder of a run")
    recipe = recipe_of(folder.read_options(), str(folder.recipe), Trust(everything=trust, copies=folder.code))
    if data:
        recipe.modality = recipe.modality.reading(data, "--data ")
    return recipe.run_stages()


def _shipped(recipe: Recipe, modality: Modality, folder: RunFolder) -> Encoders:
    """Return the encoders that a run ships."""
    encoders = encoders_of(recipe, modality)
    state = read_weights(folder.encoder)
    if tower_streams(state, encoders):  # the heads of towers are the objective's; else it need not be built
        objective = recipe.objective.build(encoders, modality.streams())
        encoders = objective.exported(encoders)
    try:
        encoders.load_state_dict(state)
    except RuntimeError as error:  # of several lines, one for each tensor
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder.encoder} does not fit the recipe beside it ({reason[:500]})") from None
    return encoders


def _at_checkpoint(
    recipe_at: Callable[[int], Recipe], folder: RunFolder, step: int | None, trust: bool
) -> tuple[Recipe, Modality, Learner, int]:
    """Return the recipe of a run at one of its checkpoints, modality and learner as they were then, and the step.

    `recipe_at` gives the recipe by step. Without a step that of the newest whole checkpoint is taken. The run may be
    going on, so a checkpoint may be removed while it is read: then a newer one is there. `trust`: pickled ones are
    read, too.
    """

    def fitted_to(number: int) -> dict[str, Any]:
        return folder.read_modality() or modality_of(recipe_at(number)).state()

    with readable(folder, fitted_to, trust) as kept:
        if not kept or (step is not None and step not in kept):
            there = f"; it keeps those of {', '.join(f'{s:,}' for s in sorted(kept))}" if kept else ""
            which = "none yet" if step is None else f"none of step {step}"
            raise ValueError(f"{folder.path} holds no finished encoder and of its checkpoints {which}{there}")
        problem: Exception | None = None
        for number in sorted(kept, reverse=True) if step is None else [step]:
            recipe = recipe_at(number)
            try:
                modality, learner = _read_checkpoint(recipe, kept[number])
            except (OSError, Damaged) as error:
                problem = error
                if step is None:
                    log.warning("%s; trying an earlier checkpoint", error)
                continue
            state = "" if folder.finish() else " has not finished"
            log.warning("%s%s: this is its checkpoint of step %s", folder.path, state, number)
            return recipe, modality, learner, number
    if step is None and {checkpoint.step_of(p) for p in checkpoint.find(folder.checkpoints)} != {*kept}:
        return _at_checkpoint(recipe_at, folder, step, trust)
    raise ValueError(f"{folder.path} has no whole checkpoint: {problem}")


def _read_checkpoint(recipe: Recipe, place: Path) -> tuple[Modality, Learner]:
    """Return the modality of a checkpoint, and its learner; frozen teachers are empty where the run ships none."""
    modality = recipe.modality.build()
    checkpoint.check(place)
    _restore(modality, checkpoint.read_modality(place), place)
    learner = learner_of(recipe.replace(chunk=0), modality, encoders_of(recipe, modality))
    _fill_what_ships(learner, recipe)
    checkpoint.load_learner(place, learner)
    return modality, learner


def _fill_what_ships(learner: Learner, recipe: Recipe) -> None:
    """Fill frozen teachers where one is shipped, as no checkpoint holds their weights; else nothing needs these."""
    teachers, shipped = [*teachers_of(learner.objective)], {*learner.shipped().modules()}
    if any(teacher.encoder in shipped for teacher in teachers):
        fill_teachers(learner.objective, starts_of(recipe.replace(init="")))
        return
    for teacher in teachers:
        teacher.leave_empty()


def _merged(learner: Learner) -> Encoders:
    """Return the encoders that a learner ships, without what was added to them for training."""
    shipped = learner.shipped()
    merge(shipped)
    return shipped


def _tell_best(folder: RunFolder, finished: int, recipe: Recipe) -> None:
    """Say where the last step, which a run ships, was not the best."""
    best = folder.read_best() if recipe.best.figure else None
    kept = checkpoint.find(folder.checkpoints)
    finished = finished or (checkpoint.step_of(kept[-1]) if kept else 0)  # a run that is about to finish
    if best and best["step"] != finished:
        log.warning(
            "these are the weights of %s at its last step, %s; by %s those of step %s were best (%.4g): %s@best",
            folder.path, finished, best["figure"], best["step"], best["value"], folder.path,
        )  # fmt: skip


def _restore(modality: Modality, state: dict[str, Any], place: Path) -> None:
    """Give the modality what it was fitted to."""
    try:
        modality.restore(state)
    # a file that is damaged, or not of this modality, makes it raise almost anything
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        raise ValueError(f"{place} does not fit the modality of the recipe beside it ({reason})") from None


def starts_of(recipe: Recipe) -> dict[str, Source]:
    """Return the weights of checkpoints that `init` or teachers name, by place.

    Of `RUN@STEP` or a run that goes on, and of any run whose heads are wanted: what a run ships has none.
    """
    starts: dict[str, Source] = {}
    named = [Place("--init ", recipe.init, heads=False), *places_of(recipe.objective)]
    for option, place, heads in sorted(named, key=lambda each: not each.heads):
        folder = run_of(place)
        if folder is None or place in starts:
            continue
        if not heads and located(place)[1] is None and folder.encoder.is_file():
            continue
        try:
            found = (
                _trained(place) if heads else Source(dict(load(place).encoders.state_dict()), folder.encoder)
            )
        except ValueError as error:
            raise ValueError(f"{option}{place}: {error}") from None
        starts[place] = found
    return starts


def _trained(place: str) -> Source:
    """Return the encoders of a run with the heads behind them, of one of its checkpoints, the newest by default."""
    folder, step = located(place)
    if step is None and not checkpoint.find(folder.checkpoints):
        raise ValueError(
            f"{folder.path} keeps no checkpoint, and what a run ships has no heads: name a run that has one"
        )
    stages = stages_of_run(folder, "", trust=False)
    recipe, modality, learner, _ = _at_checkpoint(
        lambda n: stage_at(stages, n).recipe, folder, step, trust=False
    )
    objective, heads = learner.objective, dict[str, State]()
    if isinstance(objective, ContinuesTraining):
        side = "student." if learner.shipped() is learner.encoders else "teacher."
        parts = {n: part for n, part in objective.parts().items() if isinstance(part, nn.Module)}
        heads = {n.removeprefix(side): p.state_dict() for n, p in parts.items() if n.startswith(side)}
    training = Training(heads, modality.streams(), config_name(type(recipe.objective)))
    return Source(dict(_merged(learner).state_dict()), folder.encoder, training=training)


def untrained(recipe: Recipe, device: torch.device | str = "cpu") -> Model:
    """Return the encoders as the recipe starts with them: pretrained, given with --init, or random."""
    # As `load` has them: whole, in fp32 and uncompiled, since every size of batch would be compiled anew.
    starts = starts_of(recipe)
    recipe = fitted(recipe, starts)
    parts = build(recipe.replace(parallel=Parallel(precision="fp32")), torch.device(device), starts)
    encoders = parts.learner.encoders.eval().requires_grad_(False)
    recipe = recipe.replace(modality=parts.modality.cfg)  # with the sizes that the data chose
    return Model(recipe, parts.modality, encoders, torch.device(device))
