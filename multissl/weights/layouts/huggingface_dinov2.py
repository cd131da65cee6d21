"""Hugging Face's names of DINOv2, with and without registers; they differ in memory and on disk."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from multissl.encoders.transformer import TransformerEncoder
from multissl.weights.files import State
from multissl.weights.layouts.base import Layout, unwrapped
from multissl.weights.layouts.dinov2 import FUSED, DINOv2, to_dinov2, without_training
from multissl.weights.resampling import Convention

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
TO_OFFICIAL = [(theirs, ours) for ours, *both in NAMES for theirs in both]
PARTS = re.compile(r"(embeddings|encoder\.layer|layernorm)\.")
"""How all names begin."""


class HuggingFaceDINOv2(Layout):
    """Names of Dinov2Model and Dinov2WithRegistersModel."""

    name = "huggingface_dinov2"

    def recognizes(self, names: Collection[str], encoder: nn.Module) -> bool:
        """Return whether a name begins as theirs do."""
        return isinstance(encoder, TransformerEncoder) and any(PARTS.match(unwrapped(n)) for n in names)

    def to_ours(self, state: Mapping[str, Tensor], encoder: nn.Module) -> State:
        """Rename to the official names, and those to ours."""
        return DINOv2().to_ours(renamed(state), encoder)

    def convention(self, state: Mapping[str, Tensor]) -> Convention | None:
        """Return theirs: to the plain size, with antialias where there are registers."""
        registers = any(name.endswith("register_tokens") for name in state)
        kind = "Dinov2WithRegistersModel" if registers else "Dinov2Model"
        return Convention(0.0, registers, f"Hugging Face's {kind}")


def renamed(state: Mapping[str, Tensor]) -> State:
    """Return a state with official names, linears still in parts; names that are not theirs stay."""
    return {
        replace(name, TO_OFFICIAL) if PARTS.match(name) else name: tensor
        for name, tensor in without_training(state).items()
    }


def to_huggingface(encoder: TransformerEncoder, names: Literal["memory", "disk"] = "disk") -> State:
    """Return the weights for Dinov2Model, or for Dinov2WithRegistersModel where the encoder has registers.

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
    return {replace(n, [(ours, both[place]) for ours, *both in NAMES]): t for n, t in state.items()}


def replace(name: str, pairs: list[tuple[str, str]]) -> str:
    """Return a name with its beginning replaced, and what stands inside it where the pattern begins with a dot."""
    for old, new in pairs:
        if old.startswith("."):
            name = name.replace(old, new)
        elif name.startswith(old):
            name = new + name.removeprefix(old)
    return name
