"""timm's DINOv3, built on its Eva: rotary positions that are in no file, mostly no biases for queries and values."""

from __future__ import annotations

import torch

from multissl.weights.conventions import Context, Conventions
from multissl.weights.layouts.base import Published, begins, names_of
from multissl.weights.unwrapping import Network, State, tensor_of


class TimmDINOv3(Published):
    """DINOv3 by timm."""

    name = "timm_dinov3"
    title = "timm's DINOv3"
    renames = (
        (r"^reg_token$", "register_tokens"),
        (r"\.gamma_([12])$", r".ls\1.gamma"),
        (r"\.mlp\.fc1_g\.", ".mlp.w1."),
        (r"\.mlp\.fc1_x\.", ".mlp.w2."),
    )
    heads = (r"head\b", r"rope\.")

    def matches(self, network: Network) -> bool:
        """Return whether LayerScale has Eva's names, and there is no table."""
        own = names_of(network, r"blocks\.0\.gamma_1", r"blocks\.0\.attn\.qkv\.weight", "cls_token")
        relative = any("relative_position" in name for name in network.state)
        return own and not relative and not begins(network.state, "pos_embed", "rel_pos_bias", "fc_norm")

    def official(self, network: Network, context: Context) -> State:
        """Rename; what a gate multiplies ends in `fc2`, and biases of queries and values are apart."""
        state = dict(network.state)
        for name in [n for n in state if ".mlp.fc1_g." in n and n.endswith("weight")]:
            for kind in ("weight", "bias"):
                second = name.replace("fc1_g.weight", f"fc2.{kind}")
                if second in state:
                    state[second.replace("fc2", "w3")] = state.pop(second)
        return super().official(network._replace(state=with_biases(state)), context)

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how timm computes; the models of dinov3 pool the mean there."""
        return Conventions(
            norm_eps=1e-5, kind="rope", key_bias=False, pooling="mean", heads=context.config.get("num_heads")
        )


def with_biases(state: State) -> State:
    """Return a state in which `attn.q_bias` and `attn.v_bias` are the bias of the whole, with zeros for keys."""
    state = dict(state)
    for name in [n for n in state if n.endswith("attn.q_bias")]:
        q, v = state[name], tensor_of(state, name.replace("q_bias", "v_bias"))
        for part in ("q_bias", "k_bias", "v_bias"):
            state.pop(name.replace("q_bias", part), None)
        state[name.replace("q_bias", "qkv.bias")] = torch.cat([q, torch.zeros_like(q), v])
    return state
