"""VideoMAE's files, by Hugging Face and by its authors (Tong et al. 2022, arXiv 2203.12602).

Tubelets, no class token, biases of queries and values alone. The fixed table is in no file: sines and cosines of the
tokens' number among all, in turn. Fine-tuned and most pretrained models have no norm of tokens at the end.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from multissl.weights.conventions import Context, Conventions
from multissl.weights.layouts.base import Published, names_of
from multissl.weights.layouts.huggingface_names import HEADS, RENAMES, act_of, eps_of, heads_of, tokens_of
from multissl.weights.layouts.timm_dinov3 import with_biases
from multissl.weights.unwrapping import Network, State, tensor_of

OTHERS = (
    r"mask_token$",
    r"encoder_to_decoder\.",
    r"decoder\.",
    r"head\.",
    r"(embeddings\.)?position_embeddings$",
)


class HuggingFaceVideoMAE(Published):
    """VideoMAEModel."""

    name = "huggingface_videomae"
    title = "Hugging Face's VideoMAEModel"
    of_pictures = False
    model_types = ("videomae",)
    renames = RENAMES
    heads = (*HEADS, *OTHERS)

    def matches(self, network: Network) -> bool:
        """Return whether blocks have Hugging Face's norms, under tubelets."""
        patches = network.state.get("embeddings.patch_embeddings.projection.weight")
        return (
            patches is not None
            and patches.dim() == 5
            and names_of(network, r"encoder\.layer\.0\.layernorm_before\.weight")
        )

    def official(self, network: Network, context: Context) -> State:
        """Rename, and make the table of the encoder's grid, or of the config's."""
        return with_table(super().official(network, context), context)

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how this class computes."""
        return Conventions(
            norm_eps=eps_of(context, 1e-12),
            act=act_of(context),
            heads=heads_of(context.config),
            grid=clip_of(context),
            pooling="mean",
            final_norm="tokens" if "norm.weight" in state else "none",
            key_bias=False,
        )


class VideoMAE(Published):
    """VideoMAE by its authors."""

    name = "videomae"
    title = "VideoMAE"
    of_pictures = False
    heads = OTHERS

    def matches(self, network: Network) -> bool:
        """Return whether biases of queries and values lie apart, under tubelets, without a table."""
        patches = network.state.get("patch_embed.proj.weight")
        own = names_of(network, r"blocks\.0\.attn\.q_bias", r"blocks\.0\.attn\.qkv\.weight")
        return own and patches is not None and patches.dim() == 5

    def official(self, network: Network, context: Context) -> State:
        """Put biases together, and make the table of the encoder's grid."""
        network = network._replace(state=with_biases(network.state))
        return with_table(super().official(network, context), context)

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how MCG-NJU/VideoMAE computes."""
        return Conventions(pooling="mean", key_bias=False, heads=context.config.get("num_heads"))


def clip_of(context: Context) -> tuple[int, ...]:
    """Return the grid of clips that a config describes, () where it does not."""
    frames, length = context.config.get("num_frames", 16), context.config.get("tubelet_size", 2)
    return (frames // length, *tokens_of(context)) if tokens_of(context) else ()


def with_table(state: State, context: Context) -> State:
    """Return official names with the fixed table in them, of the encoder's grid or the config's, where one is known."""
    grid = context.grid or clip_of(context)
    return (
        state | {"pos_embed": number_waves(math.prod(grid), len(tensor_of(state, "patch_embed.proj.weight")))}
        if grid
        else state
    )


def number_waves(count: int, dim: int) -> Tensor:
    """Return the fixed table [1, N, D]: sines and cosines in turn of a token's number, computed in float64."""
    rates = 10000.0 ** -(2 * (torch.arange(dim, dtype=torch.float64) // 2) / dim)
    angles = torch.arange(count, dtype=torch.float64)[:, None] * rates
    angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
    return angles.float()[None]
