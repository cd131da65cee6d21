"""V-JEPA's files (Bardes et al. 2024, arXiv 2404.08471): plain names over tubelets, a fixed table, no class token."""

from __future__ import annotations

from multissl.weights.conventions import Context, Conventions, Resampling
from multissl.weights.layouts.plain_vit import PlainViT
from multissl.weights.unwrapping import Network, State


class VJEPA(PlainViT):
    """V-JEPA, the first; V-JEPA 2's files have the same names and a table that is not used."""

    name = "vjepa"
    title = "V-JEPA"
    of_pictures = False

    def matches(self, network: Network) -> bool:
        """Return False: its names are those of V-JEPA 2."""
        return False

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how facebookresearch/jepa computes."""
        return Conventions(
            resampling=Resampling(0.0, False, "V-JEPA"), pooling="mean", heads=context.config.get("num_heads")
        )
