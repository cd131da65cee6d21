"""Frozen teachers of an objective: their architecture, heads and weights, from the places that their options name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from torch import nn

from multissl.config import Config, from_dict
from multissl.contract.encoder import Encoder, Encoders
from multissl.encoders.transformer import TransformerEncoder
from multissl.files import Damaged
from multissl.layers.frozen import UNTRAINED, FrozenNetwork, FrozenTeacher, PrototypeTeacher
from multissl.run.folder import run_of
from multissl.weights.containers import Source
from multissl.weights.hubs import open_place
from multissl.weights.loading import derive_configs, load_weights
from multissl.weights.teacher_heads import check_patches, fill_heads, known_heads


def with_architectures(
    cfg: Any, starts: Mapping[str, Source] = {}, streams: Collection[str] = (), option: str = "objective"
) -> Any:
    """Return an objective's config in which every teacher has the architecture, and the heads, of its weights.

    Opens what the options name, so that what is missing is said before anything slow begins. `starts` holds weights of
    runs' checkpoints by place, `streams` are those of the student, `option` is where the config stands.
    """
    if isinstance(cfg, FrozenNetwork.Config):
        if cfg.weights == UNTRAINED:
            return cfg
        found = as_weights_ask(cfg, option, starts.get(cfg.weights), streams)
        return cfg if found == cfg else found
    if isinstance(cfg, dict):
        return {
            key: with_architectures(value, starts, streams, f"{option}.{key}") for key, value in cfg.items()
        }
    if not isinstance(cfg, Config) or not is_dataclass(cfg):
        return cfg
    changed = dict[str, Any]()
    for name in (f.name for f in fields(cfg)):
        value = getattr(cfg, name)
        new = with_architectures(value, starts, streams, f"{option}.{name}")
        if new is not value and new != value:
            changed[name] = new
    return cfg.replace(**changed) if changed else cfg


def as_weights_ask(
    cfg: FrozenNetwork.Config, option: str, source: Source | None, streams: Collection[str]
) -> FrozenNetwork.Config:
    """Return a teacher's config with the encoder, and the heads, that its weights have."""
    if isinstance(cfg, FrozenTeacher.Config):
        return cfg.replace(encoder=architecture(cfg, option, cfg.stream))
    if not isinstance(cfg, PrototypeTeacher.Config):
        return cfg.replace(encoder=architecture(cfg, option))
    try:
        source = source or open_place(cfg.weights)
        stream = shared_stream(source, streams)
        heads = known_heads(source)
    except (ValueError, Damaged) as error:
        raise ValueError(f"{option}.weights={cfg.weights}: {error}") from None
    known = heads | cfg.heads()
    encoder = architecture(cfg, option, stream, source)
    return cfg.replace(encoder=encoder, head=known.get("dino_head"), ibot_head=known.get("ibot_head"))


def shared_stream(source: Source, streams: Collection[str]) -> str:
    """Return the stream that a run and the student read, "" for a file, which names none; refuse a run of others."""
    if source.training is None or not streams:
        return ""
    theirs = source.training.streams
    if both := [stream for stream in theirs if stream in streams]:
        return both[0]
    raise ValueError(
        f"its run reads {', '.join(theirs)} and the student {', '.join(streams)}: take a teacher of the student's "
        "modality, or, on pairs of both, --objective distill, whose teachers may read another stream"
    )


def architecture(
    cfg: FrozenNetwork.Config, option: str, stream: str = "", source: Source | None = None
) -> Encoder.Config | None:
    """Return the encoder that a run's folder names, or that published weights ask for; None where nothing tells.

    Of one that is given, what published weights tell fills options at their defaults; what contradicts is refused.
    `source` is what the place holds, where it has been opened.
    """
    where = f"{option}.weights={cfg.weights}"
    try:
        run = run_of(cfg.weights)
        if run and cfg.encoder is not None:
            return cfg.encoder
        if run:
            encoders = run.read_options().get("encoders", {})
            own = encoders.get(stream) or (next(iter(encoders.values())) if len(encoders) == 1 else None)
            if own is None:
                raise ValueError(f"the run has encoders of {', '.join(encoders)}: set {option}.stream")
            return from_dict(Encoder.Config, own, where)
        plain = cfg.encoder or TransformerEncoder.Config()
        derived = derive_configs({"teacher": plain}, cfg.weights, source)["teacher"]
    except (ValueError, Damaged) as error:
        said = without_option(error, cfg.weights).replace("encoders.teacher.", f"{option}.encoder.")
        raise ValueError(f"{where}: {said}") from None
    return cfg.encoder if derived == plain else derived


class Place(NamedTuple):
    """A place of weights that an option names."""

    option: str
    """With what stands before the place as it is typed."""
    place: str
    heads: bool
    """Whether heads are wanted beside the encoder."""


def places_of(cfg: Any, option: str = "objective") -> Iterator[Place]:
    """Yield the places of weights that the teachers in an objective's config name."""
    if isinstance(cfg, FrozenNetwork.Config):
        yield Place(f"{option}.weights=", cfg.weights, isinstance(cfg, PrototypeTeacher.Config))
    elif isinstance(cfg, dict):
        for key, value in cfg.items():
            yield from places_of(value, f"{option}.{key}")
    elif isinstance(cfg, Config) and is_dataclass(cfg):
        for each in fields(cfg):
            yield from places_of(getattr(cfg, each.name), f"{option}.{each.name}")


def fill_teachers(objective: nn.Module, starts: Mapping[str, Source] = {}) -> None:
    """Fill the frozen teachers of an objective, wherever in it they are, and note which weights they have.

    `starts` holds weights that are those of runs' checkpoints, by the places that name them.
    """
    for teacher in teachers_of(objective):
        place, option = teacher.cfg.weights, teacher.option
        if place == UNTRAINED:
            continue
        try:
            source = starts.get(place) or open_place(place)
            if isinstance(teacher, PrototypeTeacher):
                check_patches(teacher, source)
                fill_heads(teacher, source)
            load_weights(Encoders({teacher.stream: teacher.encoder}), place, source)
        except ValueError as error:
            said = without_option(error, place).replace(f"encoders.{teacher.stream}.", f"{option}.encoder.")
            raise ValueError(f"{option}.weights={place}: {said}") from None
        teacher.seal()


def teachers_of(objective: nn.Module) -> Iterator[FrozenNetwork]:
    """Yield the frozen teachers of an objective."""
    return (module for module in objective.modules() if isinstance(module, FrozenNetwork))


def without_option(error: Exception, place: str) -> str:
    """Return what an error says, without the option that an encoder's weights are given by."""
    return str(error).removeprefix(f"--init {place}: ")
