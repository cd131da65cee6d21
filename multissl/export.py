"""Weights in and out: safetensors files, DINOv2's official names, and Hugging Face's DINOv2 models.

Pickles are never read. A position table of another grid is resampled only where the code that the file comes from
would do it as the encoder does; a key too many or too few is refused by name. Official names are ours without
`tokenizer.` and `trunk.`; Hugging Face has one set of names in memory and another on disk.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from multissl.contract.encoder import Encoders
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.positions import Position, resample
from multissl.layers.tokenizers import GridTokenizer, Patches
from multissl.parallel.ranks import is_main
from multissl.parallel.sharding import full

log = logging.getLogger("multissl")

State = dict[str, Tensor]


class Convention(NamedTuple):
    """How some code resamples the position table of its models."""

    offset: float
    antialias: bool
    whose: str
    """Where it is known from, for messages."""


NAMES = (
    # official (linears cut into their parts), Hugging Face in memory, Hugging Face on disk where it differs
    ("cls_token", "embeddings.cls_token"),
    ("mask_token", "embeddings.mask_token"),
    ("register_tokens", "embeddings.register_tokens"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("blocks.", "encoder.layer."),
    ("norm.", "layernorm."),
    (".attn.q.", ".attention.q_proj.", ".attention.attention.query."),
    (".attn.k.", ".attention.k_proj.", ".attention.attention.key."),
    (".attn.v.", ".attention.v_proj.", ".attention.attention.value."),
    (".attn.proj.", ".attention.o_proj.", ".attention.output.dense."),
    (".ls1.gamma", ".layer_scale1.lambda1"),
    (".ls2.gamma", ".layer_scale2.lambda1"),
    (".mlp.w1.", ".mlp.gate_proj."),
    (".mlp.w2.", ".mlp.up_proj."),
    (".mlp.w12.", ".mlp.weights_in."),
    (".mlp.w3.", ".mlp.down_proj.", ".mlp.weights_out."),
)
CLASSIFIERS = ("net.fc.", "net.head.", "net.classifier.")
FUSED = {".attn.qkv.": (".attn.q.", ".attn.k.", ".attn.v."), ".mlp.w12.": (".mlp.w1.", ".mlp.w2.")}


# ------------------------------------------------------------------------------------------------- files


def read_weights(path: str | Path) -> State:
    """The tensors of a safetensors file, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights at {path}: name an existing .safetensors file")
    with path.open("rb") as file:
        start = file.read(2)
    if path.suffix in (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle") or start in (b"PK", b"\x80\x02"):
        raise ValueError(
            f"{path} is a pickle, which can run any code when it is opened, and is not read: convert it with "
            "torch.load(path, weights_only=True) and safetensors.torch.save_file, and name the new file"
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from None


def save_weights(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors; an interrupted write leaves an older file as it was.

    Every rank calls it, as sharded tensors are put together; the first one writes.
    """
    from safetensors.torch import save_file

    whole = {name: full(t).detach().cpu().contiguous() for name, t in state.items()}
    if is_main():
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".part")
        save_file(whole, aside, {"format": "pt"})
        aside.replace(path)


# -------------------------------------------------------------------------------------------- names


def official(state: Mapping[str, Tensor]) -> State:
    """Official DINOv2 names for a state in ours, in either of Hugging Face's, or of a training file."""
    training_file = any("backbone." in name for name in state)  # its heads are no part of an encoder
    found: State = {}
    for name, tensor in state.items():
        if training_file and re.search(r"(^|\.)(dino|ibot)_head\.", name):
            continue
        name = re.sub(r"^(module\.|backbone\.|teacher\.|dinov2\.|dinov2_with_registers\.)+", "", name)
        # Blocks may lie in chunks, but are numbered through.
        name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", _short(name))
        if re.match(r"(embeddings|encoder\.layer|layernorm)\.", name):
            name = _rename(name, [(theirs, ours) for ours, *both in NAMES for theirs in both])
        found[name] = tensor
    for whole, parts in FUSED.items():
        for first in [name for name in found if parts[0] in name]:
            names = [first.replace(parts[0], part) for part in parts]
            if all(name in found for name in names):
                found[first.replace(parts[0], whole)] = torch.cat([found.pop(name) for name in names])
    return found


def _short(name: str) -> str:
    return re.sub(r"^(tokenizer|trunk)\.", "", name)


def _rename(name: str, pairs: list[tuple[str, str]]) -> str:
    """Replace what begins the name, and what stands inside it where the pattern begins with a dot."""
    for old, new in pairs:
        if old.startswith("."):
            name = name.replace(old, new)
        elif name.startswith(old):
            name = new + name.removeprefix(old)
    return name


def load_weights(encoders: Encoders, path: str | Path) -> None:
    """Fill encoders from a run's folder or the file it left, or a lone encoder from a file in any known naming.

    A run's file may lack streams, whose encoders stay as they are, which is said; of its towers the heads are left out,
    and so are those of other streams.
    """
    path = Path(path)
    path = path / "encoder.safetensors" if path.is_dir() else path

    def fill(stream: str, part: State) -> None:
        try:
            load_state(encoders[stream], part, recorded_convention(path, stream), stream)
        except ValueError as error:
            raise ValueError(f"--init {path}: {error}") from None

    state = _headless(read_weights(path), encoders)
    by_stream = {
        s: {n.removeprefix(f"{s}."): t for n, t in state.items() if n.startswith(f"{s}.")} for s in encoders
    }
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


def tower_streams(state: Mapping[str, Tensor]) -> set[str]:
    """The streams of a run's file whose encoder has a head into a shared space behind it: a tower."""
    parts: dict[str, set[str]] = {}
    for name in state:
        stream, part, *_ = [*name.split("."), ""]
        parts.setdefault(stream, set()).add(part)
    return {stream for stream, found in parts.items() if found == {"encoder", "head"}}


def _headless(state: State, wanted: Container[str]) -> State:
    """A state with the encoders of its towers alone, and of these the wanted ones; no tower, no change."""
    towers, found = tower_streams(state), {}
    for name, tensor in state.items():
        stream, _, inside = name.partition(".")
        if stream not in towers:
            found[name] = tensor
        elif stream in wanted and inside.startswith("encoder."):
            found[f"{stream}.{inside.removeprefix('encoder.')}"] = tensor
    return found


def load_state(
    encoder: nn.Module,
    state: Mapping[str, Tensor],
    recorded: Convention | None = None,
    stream: str = "STREAM",
) -> None:
    """Fill an encoder from a state in any known naming; refuse what does not fit, by name.

    `recorded` is how the run that made a state in our own names resampled positions; without it, as the encoder does.
    """
    shapes = {name: t.shape for name, t in encoder.state_dict().items()}
    if all(
        name.startswith("net.") for name in shapes
    ):  # around another library's network: its names, behind net.
        own = {name: (name, shape) for name, shape in shapes.items()}
        given = {f"net.{n.removeprefix('net.')}": t for n, t in state.items()}
        given = {n: t for n, t in given.items() if n in own or not n.startswith(CLASSIFIERS)}
    else:
        own = {_short(name): (name, shape) for name, shape in shapes.items()}
        given = official(state)
    refusal, patches = "", "patch_embed.proj.weight"
    if isinstance(encoder, TransformerEncoder) and {"pos_embed", patches} <= own.keys() & given.keys():
        ours = any(name.startswith("tokenizer.") for name in state)
        theirs = (recorded or _convention_of(encoder)) if ours else published_convention(state)
        axes = given[patches].dim() - 2
        given["pos_embed"], refusal = _fit_positions(encoder, given["pos_embed"], axes, theirs, stream)
    if patches in own and patches in given and len(own[patches][1]) == given[patches].dim() + 1 == 5:
        given[patches] = inflate(given[patches], own[patches][1][2])
    problems = [f"missing {n}" for n in own if n not in given]
    problems += [f"unknown {n}" for n in given if n not in own]
    problems += [
        f"{n} is {tuple(t.shape)} where the encoder has {tuple(own[n][1])}"
        for n, t in given.items()
        if n in own and t.shape != own[n][1]
    ]
    if problems:
        more = f", and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise ValueError(f"these weights do not fit the encoder: {', '.join(problems[:12])}{more}")
    if refusal:
        raise ValueError(refusal)
    encoder.load_state_dict({own[name][0]: tensor for name, tensor in given.items()})


# ---------------------------------------------------------------------------------------- positions


def published_convention(state: Mapping[str, Tensor]) -> Convention | None:
    """Return how the code that gave a state its names resamples positions; None where the names do not tell.

    A plain vision transformer has the same names in DINO, MAE, timm and others, which resample in four ways. So has
    timm's DINOv2, but for the mask token, which it lacks: one of zeros was put there to make it fit.
    """
    registers = any(name.endswith("register_tokens") for name in state)
    if any(name.endswith("embeddings.position_embeddings") for name in state):
        kind = "Dinov2WithRegistersModel" if registers else "Dinov2Model"
        return Convention(0.0, registers, f"Hugging Face's {kind}")
    if registers:
        return Convention(0.0, True, "DINOv2 with registers")
    names = official(state)
    mask = names.get("mask_token")
    if mask is not None and mask.any() and "blocks.0.ls1.gamma" in names:
        return Convention(0.1, False, "DINOv2")
    return None


def recorded_convention(path: Path, stream: str) -> Convention | None:
    """Return how the run whose `recipe.json` lies beside a file resampled positions; None without one."""
    recipe = path.with_name("recipe.json")
    if not recipe.is_file():
        return None
    position = json.loads(recipe.read_text()).get("encoders", {}).get(stream, {}).get("position")
    if not position:
        return None
    usual = Position()
    offset, antialias = position.get("offset", usual.offset), position.get("antialias", usual.antialias)
    return Convention(offset, antialias, "the run that made it")


def _convention_of(encoder: TransformerEncoder) -> Convention:
    how = encoder.tokenizer.position
    return Convention(how.offset, how.antialias, "this encoder")


def _fit_positions(
    encoder: TransformerEncoder, table: Tensor, axes: int, theirs: Convention | None, stream: str
) -> tuple[Tensor, str]:
    """Return a table of a grid of `axes` on the encoder's grid, and why it must not be used there, or nothing."""
    tokenizer = encoder.tokenizer
    if not isinstance(tokenizer, GridTokenizer) or tokenizer.pos_embed is None or len(tokenizer.grid) < 2:
        return table, ""
    *slots, height, width = tokenizer.grid
    old, new = (height, width), (height, width)
    if table.shape != tokenizer.pos_embed.shape:
        side = math.isqrt(table.shape[1] - 1)
        if axes != 2 or side * side != table.shape[1] - 1:
            return table, ""  # only the square table of pictures tells its grid
        old = (side, side)
    ours, refusal = _convention_of(encoder), ""
    seen = tuple(n // p for n, p in zip(encoder.spec.shape[1:], encoder.spec.patch, strict=True))[-2:]
    if theirs is None and old != new:
        refusal = _refusal(encoder, old, new, None, stream)
    elif theirs is not None and theirs[:2] != ours[:2] and (old != new or new != seen):
        refusal = _refusal(encoder, old, seen, theirs, stream)
    if table.shape != tokenizer.pos_embed.shape:
        table = resample(table, old, new, ours.offset, ours.antialias)
        if slots:  # the same in every slot of time
            table = torch.cat([table[:, :1], table[:, 1:].repeat(1, slots[0], 1)], 1)
    return table, refusal


def _refusal(
    encoder: TransformerEncoder,
    old: tuple[int, ...],
    new: tuple[int, ...],
    theirs: Convention | None,
    stream: str,
) -> str:
    """Return why a table of grid `old` is not resampled to `new`, and what to do instead."""
    ours, option = _convention_of(encoder), f"--encoders.{stream}.position"
    high, wide = (n * p for n, p in zip(old, encoder.spec.patch[-2:], strict=True))
    native = f"views of {high} x {wide}" + f" (--modality.size {high})" * (high == wide)
    start = (
        f"the position table of these weights is {old[0]} x {old[1]} and would be resampled to {new[0]} x {new[1]}. "
        f"This encoder does that with position.offset={ours.offset} and position.antialias={ours.antialias}, "
    )
    slots = encoder.tokenizer.grid[:-2]
    if theirs is None:
        kept = " ".join(map(str, (*slots, *old)))
        return (
            f"{start}and their names do not tell how their own code does it (DINO, MAE, timm and others share them): "
            f"take {native}, or keep the table as it is, {option}.grid {kept}, with {option}.offset and "
            f"{option}.antialias as in that code"
        )
    same = f"{option}.offset {theirs.offset} {option}.antialias {theirs.antialias}, or "
    return (
        f"{start}{theirs.whose} with {theirs.offset} and {theirs.antialias}: take "
        f"{'' if slots and theirs.antialias else same}{native}"  # antialias works on two axes
    )


def inflate(weight: Tensor, length: int) -> Tensor:
    """A kernel of picture patches [D, C, p, p] as one of tubelets [D, C, length, p, p].

    It is repeated along time and divided by the length: a clip that stands still gives the tokens of its picture.
    """
    return weight[:, :, None].repeat(1, 1, length, 1, 1) / length


def to_dinov2(encoder: TransformerEncoder) -> State:
    """The encoder's weights under the official DINOv2 names, whole, on the CPU."""
    _check_plain(encoder)
    return official({name: full(t).detach().cpu() for name, t in encoder.state_dict().items()})


def to_huggingface(encoder: TransformerEncoder, names: Literal["memory", "disk"] = "disk") -> State:
    """The weights for Dinov2Model, or for Dinov2WithRegistersModel where the encoder has registers.

    Those models resample positions to the plain size (offset 0), with antialias where there are registers.
    """
    state = to_dinov2(encoder)
    for i in range(encoder.depth):  # their blocks always scale: by 1 where ours do not
        for branch in ("ls1", "ls2"):
            state.setdefault(f"blocks.{i}.{branch}.gamma", torch.ones(encoder.dim))
    for whole, parts in FUSED.items():
        if whole == ".mlp.w12." and names == "disk":
            continue  # one linear on disk, as here
        for name in [n for n in state if whole in n]:
            pieces = state.pop(name).chunk(len(parts))
            state |= {name.replace(whole, p): t.clone() for p, t in zip(parts, pieces, strict=True)}
    place = -1 if names == "disk" else 0
    return {_rename(n, [(ours, both[place]) for ours, *both in NAMES]): t for n, t in state.items()}


def _check_plain(encoder: TransformerEncoder) -> None:
    tokenizer = encoder.tokenizer
    patches = isinstance(tokenizer, GridTokenizer) and isinstance(tokenizer.patch_embed, Patches)
    if not patches or len(encoder.spec.patch) != 2 or encoder.cfg.position.kind != "learned":
        raise ValueError(
            "only a transformer over 2-D patches with position.kind=learned and no conv_stem has DINOv2's "
            "form: keep this one under its own names, with save_weights"
        )
