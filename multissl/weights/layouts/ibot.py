"""iBOT's files (Zhou et al. 2022, arXiv 2111.07832): DINO's, with `masked_embed` in those of training."""

from __future__ import annotations

from multissl.weights.conventions import Context, Conventions, Resampling
from multissl.weights.layouts.plain_vit import PlainViT
from multissl.weights.unwrapping import Network, State


class IBOT(PlainViT):
    """iBOT."""

    name = "ibot"
    title = "iBOT"

    def matches(self, network: Network) -> bool:
        """Return whether its own name of the mask token is there."""
        return "masked_embed" in network.state and super().matches(network)

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how bytedance/ibot computes."""
        return Conventions(resampling=Resampling(0.1, False, self.title))
