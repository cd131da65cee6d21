"""What an encoder must be to hold a network: options that its tensors and its layout give, set or compared.

Sizes are read from the shapes of tensors under official names, the rest is the layout's word (`conventions`). Where an
encoder is to be made from weights, options that stand at their defaults are set, and others compared; where it is
there, all are compared. Pooling is free, and so is the grid of the table, which is resampled as the layout says.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.transformer import FFN, ffn_width
from multissl.weights.conventions import RESAMPLED, Conventions
from multissl.weights.layouts.base import Published
from multissl.weights.unwrapping import State, tensor_of

log = logging.getLogger("multissl")

FREE = ("pooling", "position.grid", "position.base")
"""What may differ from what the weights give: the base where periods are in the file."""
Options = dict[str, Any]
"""Values by the names of an encoder's options, `position.kind` for those of positions; None: nothing tells."""


def options_of(state: State, conventions: Conventions) -> Options:
    """Return the options that a network asks for, from its official names and its conventions."""
    if "patch_embed.proj.weight" not in state or "blocks.0.norm1.weight" not in state:
        return {}
    dim = len(state["patch_embed.proj.weight"])
    blocks = [int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name))]
    swiglu = "blocks.0.mlp.w12.weight" in state
    first = "blocks.0.mlp.w12.weight" if swiglu else "blocks.0.mlp.fc1.weight"
    hidden = len(tensor_of(state, first)) // (2 if swiglu else 1)
    options: Options = {
        "dim": dim,
        "depth": 1 + max(blocks),
        "heads": conventions.heads,
        "ffn": "swiglu" if swiglu else "mlp",
        "ffn_ratio": ratio_of(dim, "swiglu" if swiglu else "mlp", hidden),
        "act": "gelu" if swiglu else conventions.act,
        "class_token": "cls_token" in state,
        "registers": state["register_tokens"].shape[1] if "register_tokens" in state else 0,
        "layerscale": 1e-5 if "blocks.0.ls1.gamma" in state else 0.0,
        "norm_eps": conventions.norm_eps,
        "norm_pre": "norm_pre.weight" in state,
        "norm_order": conventions.norm_order,
        "final_norm": final_norm_of(state, conventions),
        "key_bias": conventions.key_bias,
        "pooling": conventions.pooling,
        "conv_stem": False,
        "position.kind": conventions.kind,
    }
    return options | places_of(state, conventions)


def final_norm_of(state: State, conventions: Conventions) -> str:
    """Return what the last norm is for, by which are there."""
    if "prefix_norm.weight" in state:
        return "split"
    if "fc_norm.weight" in state and "norm.weight" not in state:
        return "pooled"
    return conventions.final_norm


def places_of(state: State, conventions: Conventions) -> Options:
    """Return the options of positions beside their kind."""
    options: Options = {}
    if conventions.kind == "rope":
        options["position.base"] = conventions.base
    if conventions.resampling is not None:
        offset, antialias, _, interpolation = conventions.resampling
        options |= {
            "position.offset": offset,
            "position.antialias": antialias,
            "position.interpolation": interpolation,
        }
    if conventions.kind in ("learned", "relative"):
        options["position.grid"] = conventions.grid or grid_of(state)
    return options


def grid_of(state: State) -> tuple[int, ...]:
    """Return the square grid that a position table of pictures is of, () where it is none."""
    if "pos_embed" not in state or state["patch_embed.proj.weight"].dim() != 4:
        return ()
    count = state["pos_embed"].shape[1] - ("cls_token" in state)
    side = math.isqrt(count)
    return (side, side) if side * side == count else ()


def ratio_of(dim: int, ffn: FFN, hidden: int) -> float:
    """Return the `ffn_ratio` that gives a hidden width."""
    ratio = hidden / dim * (1.5 if ffn == "swiglu" else 1.0)
    for close in (ratio, math.nextafter(ratio, math.inf), ratio + 1e-9):
        if ffn_width(dim, ffn, close) == hidden:
            return close
    raise ValueError(f"a gated net of {hidden} channels: want a multiple of 8")


def value_of(cfg: TransformerEncoder.Config, name: str) -> Any:
    """Return the value of an option by its name."""
    part, dot, rest = name.partition(".")
    return getattr(cfg.position, rest) if dot else getattr(cfg, part)


def same(cfg: TransformerEncoder.Config, name: str, wanted: Any) -> bool:
    """Return whether an option is what a network asks for."""
    value = value_of(cfg, name)
    if name == "layerscale":  # how it starts does not matter
        return bool(value) == bool(wanted)
    if name == "ffn_ratio":
        return ffn_width(cfg.dim, cfg.ffn, value) == ffn_width(cfg.dim, cfg.ffn, wanted)
    if name == "position.kind" and value == "sincos":
        return wanted == "learned"  # a fixed table in a file is compared with ours
    return value == wanted


def differences(cfg: TransformerEncoder.Config, options: Options, free: tuple[str, ...] = FREE) -> list[str]:
    """Return the names of options that are not what a network asks for, but for those that are free."""
    return [n for n, v in options.items() if v is not None and n not in free and not same(cfg, n, v)]


def refusal(
    cfg: TransformerEncoder.Config, options: Options, names: list[str], stream: str, title: str
) -> str:
    """Return the line that says which options must be others."""
    said = ", ".join(
        f"--encoders.{stream}.{name} {typed(options[name])} (here {typed(value_of(cfg, name))})"
        for name in names
    )
    return (
        f"these weights are {title} and ask for {said}: give these, or --encoders.{stream} transformer, which takes "
        "all of them from the weights"
    )


def typed(value: Any) -> str:
    """Return a value as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def derive(
    cfg: TransformerEncoder.Config, options: Options, stream: str, title: str, free: tuple[str, ...] = ()
) -> TransformerEncoder.Config:
    """Return the config with every option that stands at its default as a network asks; others are compared.

    Those that are `free` may differ. Raises a ValueError that names those which contradict, and those which nothing
    tells.
    """
    usual = TransformerEncoder.Config()
    at_default = [n for n in options if value_of(cfg, n) == value_of(usual, n)]
    unknown = [n for n in at_default if options[n] is None]
    if "heads" in unknown and options["dim"] == 64 * cfg.heads:
        log.warning("the number of heads is in no file: %s takes %d, of 64 channels", stream, cfg.heads)
        unknown.remove("heads")
    if unknown:
        raise ValueError(unknown_line(unknown, stream, title, options["dim"]))
    kept = cfg.replace(**changes(cfg, {n: options[n] for n in at_default if options[n] is not None}))
    if wrong := differences(kept, options, FREE + free):
        raise ValueError(refusal(kept, options, wrong, stream, title))
    return kept


def changes(cfg: TransformerEncoder.Config, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as `Config.replace` takes them, those of positions together."""
    own = {n: v for n, v in options.items() if "." not in n}
    places = {n.removeprefix("position."): v for n, v in options.items() if "." in n}
    return own | ({"position": cfg.position.replace(**places)} if places else {})


def unknown_line(names: list[str], stream: str, title: str, dim: int) -> str:
    """Return the line that says what a file does not tell, and how to say it."""
    ways = {
        "heads": f"--encoders.{stream}.heads N (most networks have channels / 64, here {max(dim // 64, 1)})",
        "norm_eps": f"--encoders.{stream}.norm_eps 1e-12 where it is that",
        "act": f"--encoders.{stream}.act quick_gelu or tanh_gelu where it is that",
    }
    return (
        f"these weights are {title}, and nothing in the file tells {', '.join(names)}: name the folder that holds its "
        f"config.json, or give {', '.join(ways[n] for n in names)}"
    )


def check(encoder: TransformerEncoder, options: Options, stream: str, layout: Published) -> None:
    """Raise a ValueError where an encoder is not what a network asks for.

    A clip's table is made of a picture's once, when it is loaded, so that how it is resampled is asked only there.
    """
    free = FREE + layout.free
    if len(encoder.spec.patch) == 3 and layout.of_pictures:
        free += RESAMPLED
    if wrong := differences(encoder.cfg, options, free):
        raise ValueError(refusal(encoder.cfg, options, wrong, stream, layout.title))
