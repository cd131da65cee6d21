"""Hugging Face's names of DINOv3: rotary positions that are in no file, keys without bias."""

from __future__ import annotations

from multissl.weights.conventions import Context, Conventions
from multissl.weights.layouts.base import Published, names_of
from multissl.weights.layouts.huggingface_names import act_of, heads_of
from multissl.weights.unwrapping import Network, State


class HuggingFaceDINOv3(Published):
    """DINOv3ViTModel."""

    name = "huggingface_dinov3"
    title = "Hugging Face's DINOv3ViTModel"
    model_types = ("dinov3_vit",)
    renames = (
        (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
        (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
        (r"^(model\.)?layer\.(\d+)\.", r"blocks.\2."),
        (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
        (r"\.attention\.o_proj\.", ".attn.proj."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    )
    heads = (r"classifier\b", r"rope_embeddings\.")

    def matches(self, network: Network) -> bool:
        """Return whether its names of patches and blocks are there."""
        return names_of(
            network, r"embeddings\.patch_embeddings\.weight", r"(model\.)?layer\.0\.attention\.q_proj\.weight"
        )

    def official(self, network: Network, context: Context) -> State:
        """Rename; `up_proj` is the value of a gated net, and the first linear of a plain one."""
        is_gated = any(".mlp.gate_proj." in name for name in network.state)
        up, down, gate = ("w2", "w3", "w1") if is_gated else ("fc1", "fc2", "")
        words = {"up_proj": up, "down_proj": down, "gate_proj": gate}
        state = network.state
        for old, new in words.items():
            state = {name.replace(f".mlp.{old}.", f".mlp.{new}."): t for name, t in state.items()}
        return super().official(network._replace(state=state), context)

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how this class computes; its gated net is SwiGLU where the config says silu."""
        config, is_gated = context.config, "blocks.0.mlp.w12.weight" in state
        if is_gated and config and config.get("hidden_act", "gelu") != "silu":
            raise ValueError(
                f"hidden_act={config.get('hidden_act', 'gelu')} with a gated net: only silu is known here"
            )
        theta = config.get("rope_theta") or config.get("rope_parameters", {}).get("rope_theta", 100.0)
        return Conventions(
            norm_eps=float(config.get("layer_norm_eps", 1e-5)),
            act="gelu" if is_gated else act_of(context),
            heads=heads_of(config),
            kind="rope",
            base=float(theta),
            key_bias=bool(config.get("key_bias", False)),
        )
