"""DINOv3's files (Siméoni et al. 2025, arXiv 2508.10104): rotary positions, storage tokens, keys without bias.

Files hold a bias of the keys that a mask makes 0, and periods that are rounded to bfloat16: both as they compute.
"""

from __future__ import annotations

from multissl.weights.conventions import Context, Conventions
from multissl.weights.layouts.base import Published, begins
from multissl.weights.unwrapping import Network, State, tensor_of


class DINOv3(Published):
    """Meta's DINOv3."""

    name = "dinov3"
    title = "Meta's DINOv3"
    renames = (
        (r"^storage_tokens$", "register_tokens"),
        (r"^rope_embed\.periods$", "rope_periods"),
        (r"^cls_norm\.", "prefix_norm."),
    )
    heads = (r"local_cls_norm\.", r"projectors\.", r"head\b", r"dino_head\.", r"ibot_head\.")

    def matches(self, network: Network) -> bool:
        """Return whether periods or storage tokens are there."""
        return begins(network.state, "rope_embed.", "storage_tokens") and begins(network.state, "blocks.")

    def official(self, network: Network, context: Context) -> State:
        """Rename; the bias of the keys is 0, whatever the file holds (a module that was never initialised: NaN)."""
        state = dict(network.state)
        for name in [n for n in state if n.endswith("qkv.bias_mask")]:
            del state[name]
            bias = name.replace("bias_mask", "bias")
            state[bias] = tensor_of(state, bias).clone()
            third = len(state[bias]) // 3
            state[bias][third : 2 * third] = 0
        return super().official(network._replace(state=state), context)

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how facebookresearch/dinov3 computes; released models have `layernormbf16`."""
        norm, known = (
            context.config.get("norm_layer", "layernormbf16"),
            {"layernormbf16": 1e-5, "layernorm": 1e-6},
        )
        if norm not in known:
            raise ValueError(f"norm_layer={norm} of config.json: known are {', '.join(known)}")
        return Conventions(
            norm_eps=known[norm], kind="rope", key_bias=False, heads=context.config.get("num_heads")
        )
