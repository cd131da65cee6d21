"""Frozen teachers of an objective: their architecture and weights, from the places that their options name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

from multissl.config import Config, from_dict
from multissl.contract.encoder import Encoder, Encoders
from multissl.encoders.transformer import TransformerEncoder
from multissl.files import Damaged
from multissl.layers.frozen import UNTRAINED, FrozenTeacher
from multissl.run.folder import run_of
from multissl.weights.containers import Source
from multissl.weights.loading import derive_configs, load_weights


def with_architectures(cfg: Any, name: str = "") -> Any:
    """Return an objective's config in which every teacher without an architecture has that of its weights.

    Opens what the options name, so that what is missing is said before anything slow begins. `name` is that of a
    teacher, as errors have it.
    """
    if isinstance(cfg, FrozenTeacher.Config):
        if cfg.weights == UNTRAINED:
            return cfg
        encoder = architecture(cfg, f"objective.teachers.{name}")
        return cfg if encoder == cfg.encoder else cfg.replace(encoder=encoder)
    if isinstance(cfg, dict):
        return {key: with_architectures(value, str(key)) for key, value in cfg.items()}
    if not isinstance(cfg, Config) or not is_dataclass(cfg):
        return cfg
    values = {f.name: getattr(cfg, f.name) for f in fields(cfg)}
    changed = {n: new for n, v in values.items() if (new := with_architectures(v)) is not v and new != v}
    return cfg.replace(**changed) if changed else cfg


def architecture(cfg: FrozenTeacher.Config, option: str) -> Encoder.Config | None:
    """Return the encoder that a run's folder names, or that published weights ask for; None where nothing tells.

    Of one that is given, what published weights tell fills options at their defaults; what contradicts is refused.
    """
    where = f"{option}.weights={cfg.weights}"
    try:
        run = run_of(cfg.weights)
        if run and cfg.encoder is not None:
            return cfg.encoder
        if run:
            encoders = run.read_options().get("encoders", {})
            own = encoders.get(cfg.stream) or (next(iter(encoders.values())) if len(encoders) == 1 else None)
            if own is None:
                raise ValueError(f"the run has encoders of {', '.join(encoders)}: set {option}.stream")
            return from_dict(Encoder.Config, own, where)
        plain = cfg.encoder or TransformerEncoder.Config()
        derived = derive_configs({"teacher": plain}, cfg.weights)["teacher"]
    except (ValueError, Damaged) as error:
        said = without_option(error, cfg.weights).replace("encoders.teacher.", f"{option}.encoder.")
        raise ValueError(f"{where}: {said}") from None
    return cfg.encoder if derived == plain else derived


def places_of(cfg: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the places of weights that the teachers in an objective's config name, each with its option before it."""
    if isinstance(cfg, FrozenTeacher.Config):
        yield f"objective.teachers.{name}.weights=", cfg.weights
    elif isinstance(cfg, dict):
        for key, value in cfg.items():
            yield from places_of(value, str(key))
    elif isinstance(cfg, Config) and is_dataclass(cfg):
        for each in fields(cfg):
            yield from places_of(getattr(cfg, each.name))


def fill_teachers(objective: nn.Module, starts: Mapping[str, Source] = {}) -> None:
    """Fill the frozen teachers of an objective, wherever in it they are, and note which weights they have.

    `starts` holds weights that are those of runs' checkpoints, by the places that name them.
    """
    for teacher in teachers_of(objective):
        place, option = teacher.cfg.weights, f"objective.teachers.{teacher.name}"
        if place == UNTRAINED:
            continue
        try:
            load_weights(Encoders({teacher.stream: teacher.encoder}), place, starts.get(place))
        except ValueError as error:
            said = without_option(error, place).replace(f"encoders.{teacher.stream}.", f"{option}.encoder.")
            raise ValueError(f"{option}.weights={place}: {said}") from None
        teacher.seal()


def teachers_of(objective: nn.Module) -> Iterator[FrozenTeacher]:
    """Yield the frozen teachers of an objective."""
    return (module for module in objective.modules() if isinstance(module, FrozenTeacher))


def without_option(error: Exception, place: str) -> str:
    """Return what an error says, without the option that an encoder's weights are given by."""
    return str(error).removeprefix(f"--init {place}: ")
