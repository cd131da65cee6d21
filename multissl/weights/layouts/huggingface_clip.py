"""Hugging Face's names of CLIP's pictures: a norm before the blocks, patches without bias, `pre_layrnorm` (sic).

Files of a whole CLIP hold a text tower and projections, which are left out. GELU is quick in OpenAI's models and exact
in LAION's: `hidden_act` of `config.json` says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multissl.weights.conventions import Context, Conventions
from multissl.weights.layouts.base import Published, Renames, names_of
from multissl.weights.layouts.huggingface_names import act_of, heads_of, plain_size, tokens_of
from multissl.weights.unwrapping import Network, State

BLOCKS: Renames = (
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^post_layernorm\.", "norm."),
)


class HuggingFaceCLIP(Published):
    """CLIPVisionModel, and the pictures of CLIPModel."""

    name = "huggingface_clip"
    title = "Hugging Face's CLIPVisionModel"
    model_types = ("clip", "clip_vision_model")
    renames = (
        *BLOCKS,
        (r"^embeddings\.class_embedding$", "cls_token"),
        (r"^pre_layrnorm\.", "norm_pre."),
    )
    heads = (
        r"embeddings\.position_ids",
        r"visual_projection\.",
        r"text_projection\.",
        r"text_model\.",
        "logit_scale",
    )

    def matches(self, network: Network) -> bool:
        """Return whether its class embedding is there."""
        return names_of(network, r"embeddings\.class_embedding", r"encoder\.layers\.0\.layer_norm1\.weight")

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how this class computes."""
        context = vision_config(context)
        return Conventions(
            norm_eps=float(context.config.get("layer_norm_eps", 1e-5)),
            act=act_of(context, "quick_gelu") if context.config else None,
            heads=heads_of(context.config) or (12 if context.config else None),
            resampling=plain_size("CLIPVisionModel"),
            grid=tokens_of(context),
        )


def vision_config(context: Context) -> Context:
    """Return the part of a two-tower config that is of pictures."""
    inner: Mapping[str, Any] | None = context.config.get("vision_config")
    return context if inner is None else context._replace(config=inner)
