"""The Audio Spectrogram Transformer (Gong et al. 2021, arXiv 2104.01778), by Hugging Face and by its authors.

Its tokens go frequency first and two of them are no patches: a class and a distillation token, with positions of their
own. Here tokens go time first, so kernels and table are turned, and the second token is a register that holds its
position. Features are the same, in another order of tokens.
"""

from __future__ import annotations

import torch

from multissl.weights.conventions import Context, Conventions
from multissl.weights.layouts.base import Published, names_of
from multissl.weights.layouts.huggingface_names import HEADS, RENAMES, act_of, eps_of, heads_of
from multissl.weights.unwrapping import Network, State, tensor_of


def plane_of(context: Context) -> tuple[int, ...]:
    """Return the tokens along time and frequency: the config's, else the encoder's; () where neither is there."""
    config = context.config
    if "max_length" not in config or "num_mel_bins" not in config:
        return context.grid
    patch = config.get("patch_size", 16)
    if not isinstance(patch, int):
        raise ValueError(f"patch_size={patch} of config.json: want one number, the side of a square patch")
    time = (config["max_length"] - patch) // config.get("time_stride", 10) + 1
    return time, (config["num_mel_bins"] - patch) // config.get("frequency_stride", 10) + 1


def time_first(state: State, second: str, context: Context) -> State:
    """Return official names in which tokens go time first and the second token is a register."""
    token, table, plane = tensor_of(state, second), tensor_of(state, "pos_embed"), plane_of(context)
    del state[second]
    if len(plane) != 2:  # before there is an encoder sizes are asked for alone
        return state | {"register_tokens": token, "pos_embed": torch.cat([table[:, :1], table[:, 2:]], 1)}
    time, mels = plane
    if time * mels != table.shape[1] - 2:
        raise ValueError(
            f"the position table of these weights has {table.shape[1] - 2} tokens, where the config or encoder has "
            f"{time} of time by {mels} of frequency: put config.json beside the file, or give views of that plane"
        )
    patches = table[:, 2:].unflatten(1, (mels, time)).transpose(1, 2).flatten(1, 2)
    return state | {
        "register_tokens": token + table[:, 1:2],
        "pos_embed": torch.cat([table[:, :1], patches], 1),
        "patch_embed.proj.weight": tensor_of(state, "patch_embed.proj.weight").mT,
    }


class HuggingFaceAST(Published):
    """ASTModel."""

    name = "huggingface_ast"
    title = "Hugging Face's ASTModel"
    model_types = ("audio-spectrogram-transformer",)
    renames = RENAMES
    heads = (*HEADS, r"classifier\.")

    def matches(self, network: Network) -> bool:
        """Return whether there is a distillation token over one channel."""
        patches = network.state.get("embeddings.patch_embeddings.projection.weight")
        own = names_of(
            network,
            r"embeddings\.distillation_token",
            r"(encoder\.layer|layers)\.0\.layernorm_before\.weight",
        )
        return own and patches is not None and patches.dim() == 4 and patches.shape[1] == 1

    def official(self, network: Network, context: Context) -> State:
        """Rename and turn."""
        return time_first(super().official(network, context), "embeddings.distillation_token", context)

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how this class computes; it never resamples."""
        return Conventions(
            norm_eps=eps_of(context, 1e-12),
            act=act_of(context),
            heads=heads_of(context.config),
            grid=plane_of(context),
            pooling="prefix",
        )


class AST(Published):
    """AST by its authors, built on timm."""

    name = "ast"
    title = "AST"
    heads = (r"mlp_head\.", r"head", r"v\.head")

    def matches(self, network: Network) -> bool:
        """Return whether there is a distillation token over one channel."""
        patches = network.state.get("patch_embed.proj.weight")
        own = names_of(network, "dist_token", r"blocks\.0\.attn\.qkv\.weight")
        return own and patches is not None and patches.dim() == 4 and patches.shape[1] == 1

    def official(self, network: Network, context: Context) -> State:
        """Turn."""
        return time_first(super().official(network, context), "dist_token", context)

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how YuanGongND/ast computes."""
        return Conventions(grid=plane_of(context), pooling="prefix", heads=context.config.get("num_heads"))
