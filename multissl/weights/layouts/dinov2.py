"""DINOv2's official names, in released files and in those of its training code, and the way back to them.

They are ours without `tokenizer.` and `trunk.`. DINO, MAE, timm and others call a plain vision transformer the same,
so that only a mask token and LayerScale together, or register tokens, tell that a file is of DINOv2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.patches import Patches
from multissl.layers.tokenizers import GridTokenizer
from multissl.parallel.sharding import full
from multissl.weights.conventions import RESAMPLED, Context, Conventions, Resampling
from multissl.weights.layouts.base import fuse, names_of, shorten
from multissl.weights.layouts.plain_vit import PlainViT
from multissl.weights.unwrapping import Network, State, strip


class DINOv2(PlainViT):
    """Meta's DINOv2, released and as its training code writes it."""

    name = "dinov2"
    title = "DINOv2"
    free = RESAMPLED
    heads = (*PlainViT.heads, r"dino_head\.", r"ibot_head\.")

    def matches(self, network: Network) -> bool:
        """Return whether there are Meta's registers, or a mask token beside LayerScale.

        A mask token of zeros was put into timm's DINOv2, which lacks it, to make it fit.
        """
        state = {
            re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): t for name, t in network.state.items()
        }
        own = names_of(network._replace(state=state), r"blocks\.0\.norm1\.weight", "cls_token", "pos_embed")
        if "register_tokens" in state or not own:
            return own
        mask = state.get("mask_token")
        return "blocks.0.ls1.gamma" in state and mask is not None and bool(mask.any())

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how facebookresearch/dinov2 computes."""
        registers = "register_tokens" in state
        resampling = (
            Resampling(0.0, True, "DINOv2 with registers") if registers else Resampling(0.1, False, "DINOv2")
        )
        return Conventions(resampling=resampling, heads=context.config.get("num_heads"))


def official_names(state: Mapping[str, Tensor]) -> State:
    """Return the official names of a state in them, in ours, or of a training file."""
    bare = strip(state).state
    return fuse(
        {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", shorten(name)): t for name, t in bare.items()}
    )


def to_dinov2(encoder: TransformerEncoder) -> State:
    """Return the encoder's weights under the official DINOv2 names, whole, on the CPU."""
    tokenizer = encoder.tokenizer
    patches = isinstance(tokenizer, GridTokenizer) and isinstance(tokenizer.patch_embed, Patches)
    cfg = encoder.cfg
    usual = (
        cfg.class_token,
        cfg.norm_pre,
        cfg.norm_order,
        cfg.final_norm,
        cfg.key_bias,
        cfg.act,
        encoder.pool,
    )
    if (
        not patches
        or len(encoder.spec.patch) != 2
        or cfg.position.kind != "learned"
        or usual != (True, False, "pre", "tokens", True, "gelu", None)
    ):
        raise ValueError(
            "only a transformer over 2-D patches with position.kind=learned, no conv_stem, a class token and blocks as "
            "DINOv2 has them has its form: keep this one under its own names, with save_weights"
        )
    return official_names({name: full(t).detach().cpu() for name, t in encoder.state_dict().items()})
