"""torchvision's vision transformers, which know one size of pictures.

Other sizes are resampled here to the plain size, as by most code; torchvision has a helper
(`interpolate_embeddings`) that aligns corners, which is not done here, so that its tables are others.
"""

from __future__ import annotations

from multissl.weights.conventions import Context, Conventions, Resampling
from multissl.weights.layouts.base import Published, names_of
from multissl.weights.unwrapping import Network, State


class TorchvisionViT(Published):
    """`torchvision.models.VisionTransformer`."""

    name = "torchvision_vit"
    title = "torchvision's ViT"
    renames = (
        (r"^class_token$", "cls_token"),
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"^encoder\.ln\.", "norm."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".attn.qkv."),
        (r"\.self_attention\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
        (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
    )
    heads = (r"heads\.",)

    def matches(self, network: Network) -> bool:
        """Return whether its name of the patches is there."""
        return names_of(network, r"conv_proj\.weight", r"encoder\.layers\.encoder_layer_0\..*")

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how torchvision computes at the size of its models, and how others are made here."""
        return Conventions(resampling=Resampling(0.0, False, "this package, for torchvision,"))
