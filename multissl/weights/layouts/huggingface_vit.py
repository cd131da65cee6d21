"""Hugging Face's names of ViT, DeiT without distillation, ViTMAE's encoder, ViT-MSN and I-JEPA, which are the same.

Which of them it is, and with it the eps of the norms (1e-12 or 1e-6), is in `config.json` alone.
"""

from __future__ import annotations

from multissl.weights.conventions import Context, Conventions
from multissl.weights.layouts.base import Published, names_of
from multissl.weights.layouts.huggingface_names import (
    HEADS,
    RENAMES,
    act_of,
    eps_of,
    heads_of,
    plain_size,
    tokens_of,
)
from multissl.weights.layouts.plain_vit import with_class_row
from multissl.weights.unwrapping import Network, State

KINDS = {
    "vit": "ViTModel",
    "vit_mae": "ViTMAEModel",
    "vit_msn": "ViTMSNModel",
    "ijepa": "IJepaModel",
    "deit": "DeiTModel",
}


class HuggingFaceViT(Published):
    """ViTModel, ViTMAEModel, IJepaModel and others of their names."""

    name = "huggingface_vit"
    title = "Hugging Face's ViT"
    model_types = tuple(KINDS)
    renames = RENAMES
    heads = HEADS

    def matches(self, network: Network) -> bool:
        """Return whether blocks have these norms, tokens are of pictures, and nothing is of another model."""
        if not names_of(network, r"(encoder\.layer|layers)\.0\.layernorm_before\.weight"):
            return False
        patches = network.state.get("embeddings.patch_embeddings.projection.weight")
        other = ("distillation_token", "lambda_1", "q_bias", "relative_position")
        foreign = any(part in name for name in network.state for part in other)
        return patches is not None and patches.dim() in (0, 1, 4) and not foreign

    def official(self, network: Network, context: Context) -> State:
        """Rename; a mask token is the encoder's where it is as wide."""
        return with_class_row(super().official(network, context))

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how these classes compute."""
        kind = KINDS.get(context.config.get("model_type", ""), "ViTModel")
        return Conventions(
            norm_eps=eps_of(context, 1e-12),
            act=act_of(context),
            heads=heads_of(context.config),
            resampling=plain_size(kind),
            grid=tokens_of(context),
            pooling="cls" if "cls_token" in state else "mean",
        )
