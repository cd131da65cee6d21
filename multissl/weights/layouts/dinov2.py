"""DINOv2's official names, in released files and in those of its training code, and the way back to them.

They are ours without `tokenizer.` and `trunk.`. DINO, MAE, timm and others call a plain vision transformer the same,
so that only a mask token and LayerScale together, or register tokens, tell that a file is of DINOv2.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.tokenizers import GridTokenizer, Patches
from multissl.parallel.sharding import full
from multissl.weights.files import State
from multissl.weights.layouts.base import Layout, shorten, unwrapped
from multissl.weights.resampling import Convention

FUSED = {".attn.qkv.": (".attn.q.", ".attn.k.", ".attn.v."), ".mlp.w12.": (".mlp.w1.", ".mlp.w2.")}
"""Linears that some code keeps in parts."""


class DINOv2(Layout):
    """Official names, and what shares them."""

    name = "dinov2"

    def recognizes(self, names: Collection[str], encoder: nn.Module) -> bool:
        """Return whether there are patches or blocks without `tokenizer.` and `trunk.` before them."""
        found = any(unwrapped(name).startswith(("blocks.", "patch_embed.")) for name in names)
        return found and isinstance(encoder, TransformerEncoder)

    def to_ours(self, state: Mapping[str, Tensor], encoder: nn.Module) -> State:
        """Strip what training code adds, fuse linears, and put our two parts in front."""
        own = {shorten(name): name for name in encoder.state_dict()}
        return {own.get(name, name): tensor for name, tensor in official_names(state).items()}

    def convention(self, state: Mapping[str, Tensor]) -> Convention | None:
        """Return the release's. A mask token of zeros was put into timm's DINOv2, which lacks it, to make it fit."""
        if any(name.endswith("register_tokens") for name in state):
            return Convention(0.0, True, "DINOv2 with registers")
        names = official_names(state)
        mask = names.get("mask_token")
        if mask is not None and mask.any() and "blocks.0.ls1.gamma" in names:
            return Convention(0.1, False, "DINOv2")
        return None


def official_names(state: Mapping[str, Tensor]) -> State:
    """Return the official names of a state in them, in ours, or of a training file."""
    bare = {shorten(name): tensor for name, tensor in without_training(state).items()}
    # Blocks may lie in chunks, but are numbered through.
    return fused({re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): t for name, t in bare.items()})


def without_training(state: Mapping[str, Tensor]) -> State:
    """Return a state without the prefixes and, of a training file, the heads that are no part of an encoder."""
    training_file = any("backbone." in name for name in state)
    return {
        unwrapped(name): tensor
        for name, tensor in state.items()
        if not (training_file and re.search(r"(^|\.)(dino|ibot)_head\.", name))
    }


def fused(state: State) -> State:
    """Return a state in which linears in parts are whole."""
    state = dict(state)
    for whole, parts in FUSED.items():
        for first in [name for name in state if parts[0] in name]:
            names = [first.replace(parts[0], part) for part in parts]
            if all(name in state for name in names):
                state[first.replace(parts[0], whole)] = torch.cat([state.pop(name) for name in names])
    return state


def to_dinov2(encoder: TransformerEncoder) -> State:
    """Return the encoder's weights under the official DINOv2 names, whole, on the CPU."""
    tokenizer = encoder.tokenizer
    patches = isinstance(tokenizer, GridTokenizer) and isinstance(tokenizer.patch_embed, Patches)
    if not patches or len(encoder.spec.patch) != 2 or encoder.cfg.position.kind != "learned":
        raise ValueError(
            "only a transformer over 2-D patches with position.kind=learned and no conv_stem has DINOv2's "
            "form: keep this one under its own names, with save_weights"
        )
    return official_names({name: full(t).detach().cpu() for name, t in encoder.state_dict().items()})
