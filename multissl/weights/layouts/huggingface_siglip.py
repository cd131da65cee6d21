"""Hugging Face's names of SigLIP's and SigLIP 2's pictures: no class token, GELU by tanh, pooling by attention.

SigLIP 2 with sizes that vary (NaFlex) holds its patches as a linear over (row, column, channel), and resamples its
table bilinearly with antialias for each picture.
"""

from __future__ import annotations

import math

from multissl.weights.conventions import Context, Conventions, Resampling
from multissl.weights.layouts.base import Published, complete, names_of
from multissl.weights.layouts.huggingface_clip import BLOCKS, vision_config
from multissl.weights.layouts.huggingface_names import act_of, heads_of, plain_size, tokens_of
from multissl.weights.unwrapping import Network, State


class HuggingFaceSigLIP(Published):
    """SiglipVisionModel, Siglip2VisionModel, and the pictures of whole models."""

    name = "huggingface_siglip"
    title = "Hugging Face's SiglipVisionModel"
    model_types = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model")
    renames = (
        *BLOCKS,
        (r"^head\.probe$", "pool.latent"),
        (r"^head\.attention\.out_proj\.", "pool.proj."),
        (r"^head\.layernorm\.", "pool.norm."),
        (r"^head\.mlp\.", "pool.mlp."),
    )
    heads = (r"embeddings\.position_ids", r"text_model\.", "logit_scale", "logit_bias", r"classifier\b")

    def matches(self, network: Network) -> bool:
        """Return whether its names are there without a class embedding."""
        own = names_of(
            network, r"embeddings\.patch_embedding\.weight", r"encoder\.layers\.0\.layer_norm1\.weight"
        )
        return own and "embeddings.class_embedding" not in network.state

    def official(self, network: Network, context: Context) -> State:
        """Rename; cut the query's projection from those of keys and values, and make patches a convolution."""
        state = super().official(network, context)
        for kind in ("weight", "bias"):
            packed = state.pop(f"head.attention.in_proj_{kind}", None)
            if packed is not None:
                third = len(packed) // 3
                state[f"pool.q.{kind}"], state[f"pool.kv.{kind}"] = packed[:third], packed[third:]
        patches = state.get("patch_embed.proj.weight")
        if patches is not None and patches.dim() == 2:
            channels = context.config.get("num_channels", 3)
            side = math.isqrt(patches.shape[1] // channels)
            state["patch_embed.proj.weight"] = patches.unflatten(1, (side, side, channels)).permute(
                0, 3, 1, 2
            )
        return complete(state)

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how these classes compute."""
        context = vision_config(context)
        second = "2" in context.config.get("model_type", "") or "num_patches" in context.config
        resampling = plain_size("SiglipVisionModel")
        if second:
            resampling = Resampling(0.0, True, "Hugging Face's Siglip2VisionModel", "bilinear")
        return Conventions(
            norm_eps=float(context.config.get("layer_norm_eps", 1e-6)),
            act=act_of(context, "gelu_pytorch_tanh"),
            heads=heads_of(context.config) or (12 if context.config else None),
            resampling=resampling,
            grid=() if second else tokens_of(context),
            pooling="attention" if "pool.latent" in state else "mean",
        )
