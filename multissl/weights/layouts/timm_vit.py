"""timm's vision transformers: plain names, positions resampled to the size with antialias.

Registers are `reg_token`, SwiGLU is `mlp.fc1` (gate and value) and `mlp.fc2`, which only shapes tell from an MLP.
"""

from __future__ import annotations

import re

from multissl.weights.conventions import Context, Conventions, Resampling
from multissl.weights.layouts.plain_vit import PlainViT
from multissl.weights.unwrapping import Network, State, tensor_of

SMOOTH = Resampling(0.0, True, "timm")


class TimmViT(PlainViT):
    """ViT, DeiT and AugReg models of timm."""

    name = "timm_vit"
    title = "timm's ViT"

    def matches(self, network: Network) -> bool:
        """Return False: its names are those of many."""
        return False

    def official(self, network: Network, context: Context) -> State:
        """Rename; gated feed-forward nets are known by their shapes."""
        return gated(super().official(network, context))

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how timm computes: the class token, or the mean where there is none or `fc_norm` follows it."""
        mean = "fc_norm.weight" in state or "cls_token" not in state
        return Conventions(
            resampling=SMOOTH, pooling="mean" if mean else "cls", heads=context.config.get("num_heads")
        )


def gated(state: State) -> State:
    """Return official names in which `fc1` with twice as many rows as `fc2` has columns is SwiGLU's `w12`."""
    for name in [n for n in state if n.endswith(".mlp.fc1.weight")]:
        second = tensor_of(state, name.replace("fc1", "fc2"))
        if len(state[name]) == 2 * second.shape[1]:
            block = name.removesuffix("mlp.fc1.weight")
            state = {
                re.sub(r"mlp\.fc2\.", "mlp.w3.", re.sub(r"mlp\.fc1\.", "mlp.w12.", n))
                if n.startswith(block)
                else n: t
                for n, t in state.items()
            }
    return state
