"""Encoders filled from a file: which layout it is in, which stream it is for, what is missing or left over.

A position table of another grid is resampled only where the code that the file comes from would do it as the encoder
does; a key too many or too few is refused by name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multissl import registry
from multissl.contract.encoder import Encoder, Encoders
from multissl.encoders.masked import MaskedWrapped
from multissl.encoders.transformer import TransformerEncoder
from multissl.encoders.wrapped import ReadsPublishedNames
from multissl.layers.positions import Position
from multissl.parallel.ranks import is_main
from multissl.registry import suggest
from multissl.run.folder import RunFolder
from multissl.weights.containers import Source
from multissl.weights.conventions import Resampling
from multissl.weights.fitting import check, derive, options_of
from multissl.weights.hubs import open_place
from multissl.weights.layouts.base import Layout, Published, rename, shorten, to_own
from multissl.weights.layouts.dinov2 import official_names
from multissl.weights.layouts.huggingface_dinov2 import HuggingFaceDINOv2
from multissl.weights.layouts.ours import Ours
from multissl.weights.layouts.plain_vit import PlainViT
from multissl.weights.model_config import context_of
from multissl.weights.released import licence_line, released_as, released_heads
from multissl.weights.resampling import PROJECTION, check_stems, convention_of, fit_patches, fit_positions
from multissl.weights.unwrapping import Network, State, plain, strip, unwrap

log = logging.getLogger("multissl")

TABLE, PATCHES = "tokenizer.pos_embed", PROJECTION
"""What is resampled, in our names."""
OFFICIAL_PATCHES = "patch_embed.proj.weight"


def tell(text: str, *values: object) -> None:
    """Say once, on the first rank, what users have to know of the weights that they start from."""
    if is_main():
        log.warning(text, *values)


def load_weights(encoders: Encoders, place: str | Path, source: Source | None = None) -> Source:
    """Fill encoders from a run's folder or the file it left, or a single one from a file in any known layout.

    A run's file may lack streams, whose encoders stay as they are, which is said; of its towers the heads are left out,
    and so are those of other streams. `source` is what the place holds, where it has been opened; it is returned.
    """
    try:
        source = source or open_place(place)
        state = dict(source.contents)
        if all(isinstance(t, Tensor) for t in state.values()):
            state = without_heads(plain(state), encoders)
            by_stream = {s: inside(state, f"{encoders.key(s)}.") for s in encoders}
            if state and sum(map(len, by_stream.values())) == len(state):
                fill_streams(encoders, by_stream, source)
                return source
        if len(encoders) != 1:
            raise ValueError(
                f"they tell no streams apart, the recipe has {', '.join(encoders)}: give a run's own file"
            )
        stream = next(iter(encoders))
        load_state(
            encoders[stream],
            state,
            None,
            stream,
            layout=source.layout,
            config=source.config,
            path=source.path,
        )
        return source
    except ValueError as error:
        raise ValueError(f"--init {place}: {error}") from None


def derive_configs(
    configs: Mapping[str, Encoder.Config], place: str | Path, source: Source | None = None
) -> dict[str, Encoder.Config]:
    """Return encoder configs in which a single transformer is what weights of a published layout ask for.

    Options at their defaults are taken from the weights; others that contradict are refused by name. `source` is what
    the place holds, where it has been opened.
    """
    stream, cfg = next(iter(configs.items()))
    if len(configs) != 1 or not isinstance(cfg, TransformerEncoder.Config):
        return dict(configs)
    try:
        source = source or open_place(place)
        network = unwrap(source.contents)
        layout = published_layout(network, source.layout, source.config, source.path)
        if layout is None:
            return dict(configs)
        context = context_of(source.config)
        official = layout.read(network, context)
        conventions = layout.conventions(official, context)
        if isinstance(layout, PlainViT):
            layout.check_told(official)
        if conventions.heads is None:
            conventions = replace(conventions, heads=released_heads(layout.name, official))
        return {stream: derive(cfg, options_of(official, conventions), stream, layout.title, layout.free)}
    except ValueError as error:
        raise ValueError(f"--init {place}: {error}") from None


def fill_streams(encoders: Encoders, by_stream: Mapping[str, State], source: Source) -> None:
    """Fill encoders from the parts of a run's file; one that has none stays as it is, which is said."""
    for stream, part in by_stream.items():
        if part:
            recorded = source.path and recorded_convention(source.path, stream)
            load_state(encoders[stream], part, recorded, stream)
        else:
            log.warning("%s has no weights for %s, whose encoder keeps its own", source.path, stream)


def inside(state: Mapping[str, Tensor], prefix: str) -> State:
    """Return what lies behind a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def tower_streams(names: Iterable[str], encoders: Encoders) -> set[str]:
    """Return the streams of a run's file whose encoder has a head into a shared space behind it: a tower.

    An encoder may itself be made of an `encoder` and a `head`: a file in its own names holds no tower.
    """
    by_key: dict[str, set[str]] = {}
    for name in names:
        key, _, rest = name.partition(".")
        by_key.setdefault(key, set()).add(rest)
    towers: set[str] = set()
    for key, rests in by_key.items():
        stream = encoders.stream(key)
        own = encoders[stream].state_dict().keys() if stream in encoders else ()
        if {rest.partition(".")[0] for rest in rests} == {"encoder", "head"} and rests != set(own):
            towers.add(stream)
    return towers


def without_heads(state: State, encoders: Encoders) -> State:
    """Return a state with the encoders of its towers alone, and of these the wanted ones; no tower, no change."""
    towers, kept = tower_streams(state, encoders), dict[str, Tensor]()
    for name, tensor in state.items():
        key, _, rest = name.partition(".")
        stream = encoders.stream(key)
        if stream not in towers:
            kept[name] = tensor
        elif stream in encoders and rest.startswith("encoder."):
            kept[f"{key}.{rest.removeprefix('encoder.')}"] = tensor
    return kept


def layout_of(state: Mapping[str, Any], encoder: nn.Module) -> Layout:
    """Return the layout of tensors: the encoder's own, an installed package's, or one of ours.

    A package whose layout cannot be imported is named in a warning, and the others are asked all the same.
    """
    if set(state) <= encoder.state_dict().keys():
        return Ours()
    ours = registry.GROUPS["layouts"]
    installed = [name for name in registry.names("layouts") if name not in ours]
    for name in (*installed, *ours):
        cls: type[Layout] | None = registry.resolve_or_warn(name, "layouts")
        if cls is None:
            continue
        layout = cls()
        if layout.recognizes(state, encoder):
            return layout
    return Ours()


def published_layout(
    network: Network, name: str = "", config: Mapping[str, Any] | None = None, path: Path | None = None
) -> Published | None:
    """Return the layout of a transformer: the one that is named, the config's, or the one that contents tell.

    Where these do not say whose they are, a file of the name and width of a released model is taken for that.
    """
    known = [layout for each in registry.GROUPS["layouts"] if (layout := published(each)) is not None]
    if name:
        layout = published(name)
        if layout is None:
            raise ValueError(
                f"{name} is no layout of a transformer{suggest(name, [each.name for each in known])}"
            )
        return layout
    matching = [layout for layout in known if layout.matches(network)]
    kind = (config or {}).get("model_type")
    found = next((layout for layout in matching if kind in layout.model_types), next(iter(matching), None))
    model = released_as(path)
    if found is None or found.name != "plain_vit" or model is None:
        return found
    if len(network.state[OFFICIAL_PATCHES]) != model.dim:
        return found
    tell("these weights are taken for those of %s, by the name of the file", model.layout)
    return published(model.layout)


def check_known(state: Mapping[str, Any], ours: State, encoder: TransformerEncoder) -> None:
    """Raise a ValueError, with the nearest layout, where no name of a state is one of a transformer's."""
    own = {shorten(name) for name in encoder.state_dict()}
    if ours.keys() & encoder.state_dict().keys():
        return
    network = unwrap(state)
    known = [layout for each in registry.GROUPS["layouts"] if (layout := published(each)) is not None]
    counts = {layout.name: len(own & rename(network.state, layout.renames).keys()) for layout in known}
    nearest = max(counts, key=lambda name: counts[name])
    near = f"; nearest is {nearest}, with {counts[nearest]} of them" if counts[nearest] else ""
    names = ", ".join(list(network.state)[:3])
    raise ValueError(
        f"the {len(network.state)} names of these weights, such as {names}, are in no layout that is known here{near}: "
        f"known are {', '.join(layout.name for layout in known)}"
    )


def published(name: str) -> Published | None:
    """Return the layout of a name where it is one of transformers."""
    layout = registry.resolve(name, "layouts")()
    return layout if isinstance(layout, Published) else None


def load_state(
    encoder: nn.Module,
    state: Mapping[str, Any],
    recorded: Resampling | None = None,
    stream: str = "STREAM",
    *,
    layout: str = "",
    config: Mapping[str, Any] | None = None,
    path: Path | None = None,
    quiet: bool = False,
) -> None:
    """Fill an encoder from a state in any known layout; refuse what does not fit, by name.

    The state may be the dictionary of a training file. `recorded` is how the run that made a state in our own names
    resampled positions; without it, as the encoder does. `layout` names the layout where contents do not tell it,
    `config` holds what lies beside the tensors in `config.json`, `path` is the file that they come from. `quiet`: what
    the file is was said already.
    """
    if isinstance(encoder, TransformerEncoder) and not set(state) <= encoder.state_dict().keys():
        network = unwrap(state) if state else Network({}, "", ())
        found = published_layout(network, layout, config, path) if network.state else None
        if found is not None:
            fill_transformer(encoder, network, found, config or {}, stream, quiet)
            if not quiet:
                tell("%s", licence_line(stream, found.name, path, config or {}))
            return
    if not isinstance(encoder, TransformerEncoder) and any(isinstance(v, Mapping) for v in state.values()):
        state = unwrap(state).state
    if isinstance(encoder, ReadsPublishedNames) and not any(name.startswith("net.") for name in state):
        state = {f"net.{n}": t for n, t in encoder.read_published(state, config or {}).items()}
        tell("%s", licence_line(stream, "library", path, config or {}))
    chosen = layout_of(state, encoder)
    if isinstance(encoder, TransformerEncoder) and isinstance(chosen, Ours) and state:
        check_known(state, chosen.to_ours(state, encoder), encoder)
    log.info("weights of %s are read as %s", stream, chosen.name)
    ours = chosen.to_ours(state, encoder)
    theirs = recorded if isinstance(chosen, Ours) else chosen.convention(state)
    if isinstance(encoder, TransformerEncoder) and theirs is None and isinstance(chosen, Ours):
        theirs = convention_of(encoder)
    fill(encoder, ours, theirs, stream)


def fill_transformer(
    encoder: TransformerEncoder, network: Network, layout: Published, config: Mapping[str, Any], stream: str,
    quiet: bool = False,
) -> None:  # fmt: skip
    """Fill a transformer from a network in a published layout; its conventions and sizes are compared first."""
    context = context_of(config, encoder.tokenizer.grid)
    official = layout.read(network, context)
    conventions = layout.conventions(official, context)
    if conventions.heads is None:
        conventions = replace(conventions, heads=released_heads(layout.name, official))
    if isinstance(layout, PlainViT) and official.get(OFFICIAL_PATCHES, torch.empty(0)).dim() == 5:
        layout.check_told(official)
    check(encoder, options_of(official, conventions), stream, layout)
    if not quiet:
        say(stream, layout, network)
    official = {n.replace("fc_norm.", "norm."): t for n, t in official.items()}
    if encoder.pool is None:
        official = {n: t for n, t in official.items() if not n.startswith("pool.")}
    if encoder.cfg.position.kind == "sincos" and "pos_embed" in official:
        official = without_fixed_table(official, encoder)
    own = {shorten(name): tensor for name, tensor in encoder.state_dict().items()}
    absent = {n: own[n] for n in MAY_LACK if n in own and n not in official}
    if "mask_token" in absent:
        tell("the weights of %s have no mask token: the encoder keeps its own", stream)
    ours = to_own(official | absent, encoder)
    fill(encoder, ours, conventions.resampling, stream, conventions.grid)


MAY_LACK = ("mask_token", "rope_periods")
"""What an encoder keeps of its own where a file has none."""


def say(stream: str, layout: Published, network: Network) -> None:
    """Say what weights are read as, which network of the file was taken, and what was left."""
    origin = f", of {network.source}" if network.source else ""
    tell("weights of %s are read as %s (%s)%s", stream, layout.name, layout.title, origin)
    if left := layout.left_out(network):
        parts = ", ".join(dict.fromkeys(".".join(n.split(".")[:2]) for n in left))
        tell("left out are %d tensors that are no part of the encoder: %s", len(left), parts[:300])


def without_fixed_table(official: State, encoder: TransformerEncoder) -> State:
    """Return a state without a position table that is the encoder's own fixed one; refuse another."""
    table, own = official["pos_embed"], encoder.tokenizer.pos_embed
    assert own is not None
    rows = encoder.tokenizer.class_rows
    if table.shape != own.shape or (table[:, rows:] - own[:, rows:].cpu()).abs().max() > 1e-3:
        raise ValueError(
            "the position table of these weights is not the fixed one of position.kind=sincos on this grid: "
            "give position.kind=learned"
        )
    return {n: t for n, t in official.items() if n != "pos_embed"}


def fill(
    encoder: nn.Module, ours: State, theirs: Resampling | None, stream: str, native: tuple[int, ...] = ()
) -> None:
    """Fill an encoder from tensors under its own names; tables and patches are resampled, the rest has to fit."""
    own, refusal = {name: tensor.shape for name, tensor in encoder.state_dict().items()}, ""
    check_values(encoder, ours)
    if isinstance(encoder, MaskedWrapped):  # libraries' networks have no mask token: it keeps its own
        ours = {n: t for n, t in encoder.state_dict().items() if n in MAY_LACK} | ours
    if isinstance(encoder, TransformerEncoder) and {TABLE, PATCHES} <= own.keys() & ours.keys():
        axes = ours[PATCHES].dim() - 2
        ours[TABLE], refusal = fit_positions(encoder, ours[TABLE], axes, theirs, stream, native)
    stem = check_stems(own, {name: tensor.shape for name, tensor in ours.items()}, stream)
    if not stem and PATCHES in own and PATCHES in ours and ours[PATCHES].dim() >= 3:
        ours[PATCHES], said = fit_patches(ours[PATCHES], own[PATCHES])
        if said:
            tell("weights of %s: %s", stream, "; ".join(said))
    problems = [f"missing {shorten(n)}" for n in own if n not in ours]
    problems += [f"unknown {shorten(n)}" for n in ours if n not in own]
    problems += [
        f"{shorten(n)} is {tuple(t.shape)} where the encoder has {tuple(own[n])}"
        for n, t in ours.items()
        if n in own and t.shape != own[n]
    ]
    if problems:
        more = f", and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise ValueError(f"these weights do not fit the encoder: {', '.join(problems[:12])}{more}")
    if refusal:
        raise ValueError(refusal)
    encoder.load_state_dict(ours)


def check_values(encoder: nn.Module, ours: State) -> None:
    """Raise a ValueError where tensors hold no numbers, or numbers of a kind that an encoder's do not have."""
    own, trained = encoder.state_dict(), dict(encoder.named_parameters())
    for name in ours.keys() & own.keys():
        tensor = ours[name]
        if own[name].is_floating_point() and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"{shorten(name)} is of {kind} where the encoder has real numbers: where weights were packed, unpack "
                "them by the library that did, and save them as float32"
            )
        if name in trained and not torch.isfinite(tensor).all():
            raise ValueError(
                f"{shorten(name)} holds values that are not finite: the training that wrote it diverged, or the file "
                "is damaged; take an earlier checkpoint"
            )


def recorded_convention(path: Path, stream: str) -> Resampling | None:
    """Return how the run whose recipe lies beside a file resampled positions; None without one."""
    position = RunFolder(path.parent).read_recipe().get("encoders", {}).get(stream, {}).get("position")
    if not position:
        return None
    usual = Position()
    offset, antialias = position.get("offset", usual.offset), position.get("antialias", usual.antialias)
    return Resampling(offset, antialias, "the run that made it")


def official(state: Mapping[str, Tensor]) -> State:
    """Return DINOv2's official names of a transformer's weights in them, in ours, in Hugging Face's, or of training."""
    bare = strip(state).state
    theirs = any(name.startswith(("embeddings.", "encoder.layer.", "layernorm.")) for name in bare)
    return official_names(rename(bare, HuggingFaceDINOv2.renames) if theirs else bare)
