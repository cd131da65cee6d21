"""Encoders filled from a file: which layout it is in, which stream it is for, what is missing or left over.

A position table of another grid is resampled only where the code that the file comes from would do it as the encoder
does; a key too many or too few is refused by name.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from multissl import registry
from multissl.contract.encoder import Encoders
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.positions import Position
from multissl.run.folder import RunFolder
from multissl.weights.files import State, read_weights, weights_file
from multissl.weights.layouts.base import Layout, shorten
from multissl.weights.layouts.dinov2 import official_names
from multissl.weights.layouts.huggingface_dinov2 import renamed
from multissl.weights.layouts.ours import Ours
from multissl.weights.resampling import Convention, convention_of, fit_positions, inflate

log = logging.getLogger("multissl")

TABLE, PATCHES = "tokenizer.pos_embed", "tokenizer.patch_embed.proj.weight"
"""What is resampled, in our names."""


def load_weights(encoders: Encoders, path: str | Path) -> None:
    """Fill encoders from a run's folder or the file it left, or a single one from a file in any known layout.

    A run's file may lack streams, whose encoders stay as they are, which is said; of its towers the heads are left out,
    and so are those of other streams.
    """
    path = weights_file(path)

    def fill(stream: str, part: State) -> None:
        try:
            load_state(encoders[stream], part, recorded_convention(path, stream), stream)
        except ValueError as error:
            raise ValueError(f"--init {path}: {error}") from None

    state = without_heads(read_weights(path), encoders)
    by_stream = {s: inside(state, f"{encoders.key(s)}.") for s in encoders}
    if sum(map(len, by_stream.values())) == len(state):
        for stream, part in by_stream.items():
            if part:
                fill(stream, part)
            else:
                log.warning("%s has no weights for %s, whose encoder keeps its own", path, stream)
    elif len(encoders) == 1:
        fill(next(iter(encoders)), state)
    else:
        raise ValueError(
            f"{path} tells no streams apart, the recipe has {', '.join(encoders)}: give a run's own file"
        )


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


def layout_of(names: Collection[str], encoder: nn.Module) -> Layout:
    """Return the layout of tensors of these names: the encoder's own, an installed package's, or one of ours.

    A package whose layout cannot be imported is named in a warning, and the others are asked all the same.
    """
    if set(names) <= encoder.state_dict().keys():
        return Ours()
    ours = registry.GROUPS["layouts"]
    installed = [name for name in registry.names("layouts") if name not in ours]
    for name in (*installed, *ours):
        cls: type[Layout] | None = registry.resolve_or_warn(name, "layouts")
        if cls is None:
            continue
        layout = cls()
        if layout.recognizes(names, encoder):
            return layout
    return Ours()


def load_state(
    encoder: nn.Module,
    state: Mapping[str, Tensor],
    recorded: Convention | None = None,
    stream: str = "STREAM",
) -> None:
    """Fill an encoder from a state in any known layout; refuse what does not fit, by name.

    `recorded` is how the run that made a state in our own names resampled positions; without it, as the encoder does.
    """
    own = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    layout = layout_of(state.keys(), encoder)
    log.info("weights of %s are read as %s", stream, layout.name)
    ours, refusal = layout.to_ours(state, encoder), ""
    if isinstance(encoder, TransformerEncoder) and {TABLE, PATCHES} <= own.keys() & ours.keys():
        theirs = recorded or convention_of(encoder) if isinstance(layout, Ours) else layout.convention(state)
        axes = ours[PATCHES].dim() - 2
        ours[TABLE], refusal = fit_positions(encoder, ours[TABLE], axes, theirs, stream)
    if PATCHES in own and PATCHES in ours and len(own[PATCHES]) == ours[PATCHES].dim() + 1 == 5:
        ours[PATCHES] = inflate(ours[PATCHES], own[PATCHES][2])
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


def recorded_convention(path: Path, stream: str) -> Convention | None:
    """Return how the run whose recipe lies beside a file resampled positions; None without one."""
    position = RunFolder(path.parent).read_recipe().get("encoders", {}).get(stream, {}).get("position")
    if not position:
        return None
    usual = Position()
    offset, antialias = position.get("offset", usual.offset), position.get("antialias", usual.antialias)
    return Convention(offset, antialias, "the run that made it")


def official(state: Mapping[str, Tensor]) -> State:
    """Return DINOv2's official names of a transformer's weights in them, in ours, in Hugging Face's, or of training."""
    return official_names(renamed(state))
