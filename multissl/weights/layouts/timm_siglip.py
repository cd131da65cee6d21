"""timm's SigLIP: plain names without a class token, pooled by attention.

timm's plain models compute exact GELU where Hugging Face and the original code take the form by tanh; the names of some
models say `gelu`, others differ by their configuration.
"""

from __future__ import annotations

from multissl.weights.conventions import Context, Conventions
from multissl.weights.layouts.plain_vit import PlainViT
from multissl.weights.layouts.timm_vit import SMOOTH
from multissl.weights.unwrapping import Network, State


class TimmSigLIP(PlainViT):
    """SigLIP's pictures by timm."""

    name = "timm_siglip"
    title = "timm's SigLIP"
    renames = (*PlainViT.renames, (r"^attn_pool\.", "pool."))

    def matches(self, network: Network) -> bool:
        """Return whether there is a query for pooling."""
        return {"attn_pool.latent", "blocks.0.attn.qkv.weight"} <= network.state.keys()

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how timm computes, by the model's name."""
        name = context.config.get("architecture")
        tanh = name is not None and any(part in name for part in ("giantopt", "naflex"))
        act = None if name is None else "tanh_gelu" if tanh else "gelu"
        return Conventions(
            act=act, resampling=SMOOTH, pooling="attention", heads=context.config.get("num_heads")
        )
