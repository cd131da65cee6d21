"""DINO's files (Caron et al. 2021, arXiv 2104.14294): plain names, positions resampled by a factor."""

from __future__ import annotations

from multissl.weights.conventions import Context, Conventions, Resampling
from multissl.weights.layouts.plain_vit import PlainViT
from multissl.weights.unwrapping import Network, State


class DINO(PlainViT):
    """DINO, of which nothing in a file tells."""

    name = "dino"
    title = "DINO"

    def matches(self, network: Network) -> bool:
        """Return False: its names are those of many."""
        return False

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how facebookresearch/dino computes."""
        return Conventions(resampling=Resampling(0.1, False, self.title))
