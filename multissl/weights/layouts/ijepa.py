"""I-JEPA's files (Assran et al. 2023, arXiv 2301.08243): plain names without a class token, a fixed table.

`target_encoder`, the average, is taken where both are there. Their resampling takes the first row for a class token's;
here it is done as for any table.
"""

from __future__ import annotations

from multissl.weights.conventions import Context, Conventions, Resampling
from multissl.weights.layouts.plain_vit import PlainViT, is_fixed
from multissl.weights.unwrapping import Network, State


class IJEPA(PlainViT):
    """I-JEPA."""

    name = "ijepa"
    title = "I-JEPA"

    def matches(self, network: Network) -> bool:
        """Return whether there is no class token, and the fixed table."""
        absent = "cls_token" not in network.state and super().matches(network)
        return absent and is_fixed(network.state.get("pos_embed"), True)

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how facebookresearch/ijepa computes."""
        return Conventions(
            resampling=Resampling(0.0, False, "I-JEPA"), pooling="mean", heads=context.config.get("num_heads")
        )
