"""What Hugging Face's vision models share: their names in memory and on disk, and what their `config.json` says.

Names in memory changed with transformers 5 for some models, names on disk are those of before: both are read.
"""

from __future__ import annotations

from typing import Any, cast

from multissl.layers.transformer import Act
from multissl.weights.conventions import Context, Resampling
from multissl.weights.layouts.base import Renames

RENAMES: Renames = (
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.layer|encoder\.layers|layers)\.(\d+)\.", r"blocks.\2."),
    (r"^layernorm\.", "norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.(q)uery\.|\.attention\.(q)_proj\.", ".attn.q."),
    (r"\.attention\.attention\.(k)ey\.|\.attention\.(k)_proj\.", ".attn.k."),
    (r"\.attention\.attention\.(v)alue\.|\.attention\.(v)_proj\.", ".attn.v."),
    (r"\.attention\.attention\.q_bias$", ".attn.q.bias"),
    (r"\.attention\.attention\.v_bias$", ".attn.v.bias"),
    (r"\.attention\.output\.dense\.|\.attention\.o_proj\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.lambda_([12])$", r".ls\1.gamma"),
)
HEADS = (r"pooler\.dense", r"classifier\b", r"decoder\b", r"lm_head\b", r"distillation_classifier\b")
"""Of models with heads; the pooler's linear is random in many files."""
ACTS = {
    "gelu": "gelu", "gelu_pytorch_tanh": "tanh_gelu", "gelu_new": "tanh_gelu", "gelu_fast": "tanh_gelu",
    "quick_gelu": "quick_gelu",
}  # fmt: skip


def plain_size(kind: str) -> Resampling:
    """Return how most models resample: to the plain size, without antialias."""
    return Resampling(0.0, False, f"Hugging Face's {kind}")


def heads_of(config: Any) -> int | None:
    """Return the number of heads, None without a config."""
    return config.get("num_attention_heads")


def eps_of(context: Context, usual: float) -> float | None:
    """Return the eps of norms: the config's, else its class's default; None without a config."""
    return float(context.config.get("layer_norm_eps", usual)) if context.config else None


def act_of(context: Context, usual: str = "gelu") -> Act:
    """Return the activation that a config names."""
    name = context.config.get("hidden_act", usual)
    if name not in ACTS:
        raise ValueError(f"hidden_act={name} of config.json: known are {', '.join(ACTS)}")
    return cast(Act, ACTS[name])


def tokens_of(context: Context) -> tuple[int, ...]:
    """Return the grid of the position table that a config describes, () where it does not."""
    size, patch = context.config.get("image_size"), context.config.get("patch_size")
    if not size or not patch:
        return ()
    high, wide = (size, size) if isinstance(size, int) else size
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    return high // rows, wide // columns
