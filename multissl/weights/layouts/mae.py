"""MAE's files (He et al. 2022, arXiv 2111.06377): plain names, a fixed position table, in some files the decoder."""

from __future__ import annotations

from multissl.weights.conventions import Context, Conventions, Resampling
from multissl.weights.layouts.plain_vit import PlainViT, is_fixed
from multissl.weights.unwrapping import Network, State


class MAE(PlainViT):
    """MAE."""

    name = "mae"
    title = "MAE"
    heads = (*PlainViT.heads, "mask_token$")  # as wide as the decoder

    def matches(self, network: Network) -> bool:
        """Return whether its decoder is there, or its fixed table, whose first half tells the column, with a class."""
        fixed = "cls_token" in network.state and is_fixed(network.state.get("pos_embed"), True)
        return (fixed or "decoder_pos_embed" in network.state) and super().matches(network)

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how facebookresearch/mae computes; fine-tuned files pool the mean."""
        pooling = "mean" if "fc_norm.weight" in state else "cls"
        return Conventions(resampling=Resampling(0.0, False, "MAE's fine-tuning"), pooling=pooling)
