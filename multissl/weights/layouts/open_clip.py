"""OpenAI's and open_clip's names of CLIP's pictures.

OpenAI's networks compute quick GELU; of those that open_clip trained, names with `quickgelu` do, the others exact GELU.
No file says which: `openai_clip` and `open_clip` are asked for.
"""

from __future__ import annotations

from dataclasses import replace

from multissl.weights.conventions import Context, Conventions, Resampling
from multissl.weights.layouts.base import Published, Renames, names_of
from multissl.weights.unwrapping import Network, State

NAMES: Renames = (
    (r"^conv1\.", "patch_embed.proj."),
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


class CLIPNames(Published):
    """CLIP by one of the two."""

    name = "clip_names"
    title = "OpenAI's or open_clip's CLIP"
    renames = NAMES
    heads = (r"proj$",)

    def matches(self, network: Network) -> bool:
        """Return whether its class embedding and blocks are there."""
        return names_of(network, r"class_embedding", r"conv1\.weight", r"transformer\.resblocks\.0\..*")

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return what both do."""
        resampling = Resampling(0.0, True, "open_clip")
        return Conventions(
            norm_eps=1e-5, act=None, resampling=resampling, heads=context.config.get("num_heads")
        )


class OpenAICLIP(CLIPNames):
    """CLIP by OpenAI."""

    name = "openai_clip"
    title = "OpenAI's CLIP"

    def matches(self, network: Network) -> bool:
        """Return False: its names are those of open_clip."""
        return False

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how OpenAI's code computes."""
        return replace(super().conventions(state, context), act="quick_gelu")


class OpenCLIP(CLIPNames):
    """CLIP by open_clip, without `quickgelu` in its name."""

    name = "open_clip"
    title = "open_clip's CLIP"

    def matches(self, network: Network) -> bool:
        """Return False: its names are those of OpenAI."""
        return False

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how open_clip computes."""
        return replace(super().conventions(state, context), act="gelu")
