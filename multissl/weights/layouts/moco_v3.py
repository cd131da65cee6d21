"""MoCo v3's files (Chen et al. 2021, arXiv 2104.02057): `module.base_encoder.` before plain names, fixed positions.

The network that gradients train is taken, as their linear evaluation does, not its average (`momentum_encoder`).
"""

from __future__ import annotations

from multissl.weights.conventions import Context, Conventions, Resampling
from multissl.weights.layouts.plain_vit import PlainViT, is_fixed
from multissl.weights.unwrapping import Network, State


class MoCoV3(PlainViT):
    """MoCo v3."""

    name = "moco_v3"
    title = "MoCo v3"

    def matches(self, network: Network) -> bool:
        """Return whether its prefix was there, or its fixed table, whose first half tells the row, is."""
        own = "base_encoder" in network.source or is_fixed(network.state.get("pos_embed"), False)
        return own and super().matches(network)

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how its timm computes; that never resampled, so what timm does today is taken."""
        return Conventions(resampling=Resampling(0.0, True, "timm, which MoCo v3 is built on,"))
