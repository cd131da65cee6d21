"""timm's CLIP: plain names with a norm before the blocks and no bias of the patches.

Models called `*_quickgelu_*` compute x sigmoid(1.702 x), the others exact GELU, though files of both are the same.
"""

from __future__ import annotations

from multissl.weights.conventions import Context, Conventions
from multissl.weights.layouts.plain_vit import PlainViT
from multissl.weights.layouts.timm_vit import SMOOTH
from multissl.weights.unwrapping import Network, State


class TimmCLIP(PlainViT):
    """CLIP's pictures by timm."""

    name = "timm_clip"
    title = "timm's CLIP"

    def matches(self, network: Network) -> bool:
        """Return whether there is such a norm."""
        return {"norm_pre.weight", "blocks.0.attn.qkv.weight"} <= network.state.keys()

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how timm computes, by the model's name."""
        name = context.config.get("architecture")
        act = None if name is None else "quick_gelu" if "quickgelu" in name else "gelu"
        return Conventions(norm_eps=1e-5, act=act, resampling=SMOOTH, heads=context.config.get("num_heads"))
