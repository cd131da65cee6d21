"""Data2vec's pictures and BEiT, by Hugging Face and by their authors: relative positions, keys without bias.

Files may hold one table of steps for each block (fine-tuned) or one for all (pretrained); every block has its own here.
Fine-tuned models norm the mean of the patches and no token.
"""

from __future__ import annotations

import math

from multissl.weights.conventions import Context, Conventions
from multissl.weights.layouts.base import Published, names_of
from multissl.weights.layouts.huggingface_names import HEADS, RENAMES, act_of, eps_of, heads_of
from multissl.weights.layouts.timm_dinov3 import with_biases
from multissl.weights.unwrapping import Network, State

TABLE = "relative_position_bias_table"


def with_tables(state: State) -> State:
    """Return official names in which every block has a table of steps, where all shared one."""
    shared = state.pop("relative", None)
    if shared is not None:
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        state |= {f"blocks.{i}.attn.relative": shared.clone() for i in range(depth)}
    return state


def relative_conventions(state: State, eps: float | None, heads: int | None) -> Conventions:
    """Return how BEiT's family computes."""
    table = state.get("blocks.0.attn.relative")
    side = () if table is None else (math.isqrt(len(table) - 3) // 2 + 1,) * 2
    return Conventions(
        norm_eps=eps,
        heads=heads if table is None else table.shape[1],
        kind="learned" if table is None else "relative",
        grid=side,
        pooling="mean",
        final_norm="tokens" if "norm.weight" in state else "none",
        key_bias=False,
    )


class HuggingFaceData2Vec(Published):
    """Data2VecVisionModel and BeitModel."""

    name = "huggingface_data2vec"
    title = "Hugging Face's Data2VecVisionModel"
    model_types = ("data2vec-vision", "beit")
    renames = (
        (rf"^encoder\.relative_position_bias\.{TABLE}$", "relative"),
        (rf"\.attention\.attention\.relative_position_bias\.{TABLE}$", ".attn.relative"),
        (r"^pooler\.layernorm\.", "fc_norm."),
        *RENAMES,
    )
    heads = (*HEADS, r".*relative_position_index$")

    def matches(self, network: Network) -> bool:
        """Return whether blocks have Hugging Face's norms and LayerScale by BEiT's name."""
        return names_of(
            network, r"encoder\.layer\.0\.layernorm_before\.weight", r"encoder\.layer\.0\.lambda_1"
        )

    def official(self, network: Network, context: Context) -> State:
        """Rename, and give every block its table."""
        return with_tables(super().official(network, context))

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how these classes compute."""
        act_of(context)
        return relative_conventions(state, eps_of(context, 1e-12), heads_of(context.config))


class Data2Vec(Published):
    """Data2vec's pictures and BEiT by their authors, and BEiT by timm."""

    name = "data2vec_vision"
    title = "data2vec's and BEiT's pictures"
    renames = (
        (rf"^rel_pos_bias\.{TABLE}$", "relative"),
        (rf"\.attn\.{TABLE}$", ".attn.relative"),
        (r"\.gamma_([12])$", r".ls\1.gamma"),
    )
    heads = (r"head\b", r"lm_head\b", r".*relative_position_index$")

    def matches(self, network: Network) -> bool:
        """Return whether there is a table of steps beside LayerScale by BEiT's name."""
        relative = any(name.endswith(TABLE) for name in network.state)
        return relative and names_of(network, r"blocks\.0\.gamma_1")

    def official(self, network: Network, context: Context) -> State:
        """Rename, put biases together, and give every block its table."""
        return with_tables(super().official(network._replace(state=with_biases(network.state)), context))

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how their code computes."""
        return relative_conventions(state, 1e-6, context.config.get("num_heads"))
