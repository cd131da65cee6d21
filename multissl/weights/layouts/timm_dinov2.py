"""timm's DINOv2: plain names with LayerScale; with registers the row of the class token was added to it."""

from __future__ import annotations

from multissl.weights.layouts.timm_vit import TimmViT
from multissl.weights.unwrapping import Network


class TimmDINOv2(TimmViT):
    """DINOv2 by timm; without registers nothing in a file tells it from Meta's but the lack of a mask token."""

    name = "timm_dinov2"
    title = "timm's DINOv2"

    def matches(self, network: Network) -> bool:
        """Return whether there are registers by timm's name, under a table."""
        own = {"reg_token", "pos_embed", "blocks.0.ls1.gamma"} <= network.state.keys()
        return own and super(TimmViT, self).matches(network)
