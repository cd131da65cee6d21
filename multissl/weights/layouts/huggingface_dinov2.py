"""Hugging Face's names of DINOv2, with and without registers; they differ in memory and on disk."""

from __future__ import annotations

from typing import Literal

import torch

from multissl.encoders.transformer import TransformerEncoder
from multissl.weights.conventions import Context, Conventions, Resampling
from multissl.weights.layouts.base import PARTS, Published, names_of
from multissl.weights.layouts.dinov2 import to_dinov2
from multissl.weights.layouts.huggingface_names import HEADS, RENAMES, act_of, heads_of, tokens_of
from multissl.weights.unwrapping import Network, State

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


class HuggingFaceDINOv2(Published):
    """Names of Dinov2Model and Dinov2WithRegistersModel."""

    name = "huggingface_dinov2"
    title = "Hugging Face's DINOv2"
    model_types = ("dinov2", "dinov2_with_registers")
    renames = (
        *RENAMES,
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"\.mlp\.gate_proj\.", ".mlp.w1."),
        (r"\.mlp\.up_proj\.", ".mlp.w2."),
        (r"\.mlp\.weights_in\.", ".mlp.w12."),
        (r"\.mlp\.(down_proj|weights_out)\.", ".mlp.w3."),
    )
    heads = HEADS

    def matches(self, network: Network) -> bool:
        """Return whether blocks have LayerScale by its name."""
        return names_of(
            network, r"encoder\.layer\.0\.layer_scale1\.lambda1", r"embeddings\.position_embeddings"
        )

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how these classes compute: to the plain size, with antialias where there are registers."""
        registers = "register_tokens" in state
        kind = "Dinov2WithRegistersModel" if registers else "Dinov2Model"
        return Conventions(
            norm_eps=float(context.config.get("layer_norm_eps", 1e-6)),
            act="gelu" if "blocks.0.mlp.w12.weight" in state else act_of(context),
            heads=heads_of(context.config),
            resampling=Resampling(0.0, registers, f"Hugging Face's {kind}"),
            grid=tokens_of(context),
        )


def to_huggingface(encoder: TransformerEncoder, names: Literal["memory", "disk"] = "disk") -> State:
    """Return the weights for Dinov2Model, or for Dinov2WithRegistersModel where the encoder has registers.

    Those models resample positions to the plain size (offset 0), with antialias where there are registers.
    """
    state = to_dinov2(encoder)
    for i in range(encoder.depth):  # their blocks always scale: by 1 where ours do not
        for branch in ("ls1", "ls2"):
            state.setdefault(f"blocks.{i}.{branch}.gamma", torch.ones(encoder.dim))
    for whole, parts in PARTS.items():
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
