"""Hugging Face's names of V-JEPA 2: rotary positions over tubelets, a predictor that is left out.

Hugging Face's class takes the places of tokens from its config's grid; for clips of another size that is wrong, and
features differ here, where they come from the clip's own grid, as in the authors' code.
"""

from __future__ import annotations

from multissl.weights.conventions import Context, Conventions
from multissl.weights.layouts.base import Published, names_of
from multissl.weights.layouts.huggingface_names import act_of, heads_of
from multissl.weights.unwrapping import Network, State


class HuggingFaceVJEPA2(Published):
    """VJEPA2Model."""

    name = "huggingface_vjepa2"
    title = "Hugging Face's VJEPA2Model"
    of_pictures = False
    model_types = ("vjepa2",)
    renames = (
        (r"^encoder\.", ""),
        (r"^embeddings\.patch_embeddings\.proj\.", "patch_embed.proj."),
        (r"^layer\.(\d+)\.", r"blocks.\1."),
        (r"^layernorm\.", "norm."),
        (r"\.attention\.query\.", ".attn.q."),
        (r"\.attention\.key\.", ".attn.k."),
        (r"\.attention\.value\.", ".attn.v."),
        (r"\.attention\.proj\.", ".attn.proj."),
    )
    heads = (r"predictor\.", r"pooler\.", r"classifier\.")

    def matches(self, network: Network) -> bool:
        """Return whether its names of patches and blocks are there."""
        return names_of(
            network,
            r"(encoder\.)?embeddings\.patch_embeddings\.proj\.weight",
            r"(encoder\.)?layer\.0\.attention\.query\.weight",
        )

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how this class computes."""
        return Conventions(
            norm_eps=float(context.config.get("layer_norm_eps", 1e-6)),
            act=act_of(context),
            heads=heads_of(context.config),
            kind="rope",
            base=10000.0,
            pooling="mean",
        )
