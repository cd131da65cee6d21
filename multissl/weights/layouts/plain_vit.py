"""The plain names of a vision transformer, which many projects share: DINO, iBOT, MoCo v3, MAE, DeiT, I-JEPA and timm.

They are DINOv2's without LayerScale, and ours without `tokenizer.` and `trunk.`. Norms (eps 1e-6) and GELU (exact) are
the same in all of these projects; how they resample positions, and what they evaluate, differs, and is in no file.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from multissl.layers.positions import sincos
from multissl.weights.conventions import Context, Conventions
from multissl.weights.layouts.base import Published, Renames, begins, names_of
from multissl.weights.unwrapping import Network, State

NAMES: Renames = (
    (r"^masked_embed$", "mask_token"),
    (r"^reg_token$", "register_tokens"),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
)


class PlainViT(Published):
    """Whatever has these names and no sign of the project that it comes from."""

    name = "plain_vit"
    title = "a plain vision transformer"
    renames = NAMES
    heads = (
        *(rf"{name}\b" for name in ("head", "heads", "predictor", "pre_logits")),
        r"decoder_",
        r"head_dist\.",
    )

    def matches(self, network: Network) -> bool:
        """Return whether fused projections lie in `blocks`, under patches."""
        fused = names_of(network, r"blocks\..*attn\.qkv\.weight", r"patch_embed\.proj\.weight")
        return fused and not begins(network.state, "rope_embed", "attn_pool.", "norm_pre.", "rel_pos_bias")

    def official(self, network: Network, context: Context) -> State:
        """Rename; a table without a row for the class token gets one of zeros where there is such a token."""
        state = super().official(network, context)
        if "decoder_pos_embed" in network.state:
            state.pop("mask_token", None)  # it is as wide as the decoder
        return with_class_row(state)

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return what all of these projects do."""
        return Conventions(pooling="cls" if "cls_token" in state else "mean")

    def check_told(self, state: State) -> None:
        """Raise a ValueError where the names are all that is known, and are those of several projects.

        They differ in how positions are resampled; of clips, in what positions are.
        """
        if self.name != "plain_vit":
            return
        if state["patch_embed.proj.weight"].dim() == 5:
            raise ValueError(
                "these names are those of V-JEPA and of V-JEPA 2, whose positions differ: say which, as in "
                "--init vjepa:FILE or --init vjepa2:FILE"
            )
        raise ValueError(
            "these names are those of DINO, iBOT, MoCo v3, MAE, I-JEPA and timm, which resample positions in different "
            "ways: say whose they are, as in --init dino:FILE (dino, ibot, moco_v3, mae, ijepa, timm_vit, timm_dinov2)"
        )


def with_class_row(state: State) -> State:
    """Return official names in which the position table has a row for the class token, where there is one.

    Rows for registers, which ours lack, are added to them.
    """
    table, registers = state.get("pos_embed"), state.get("register_tokens")
    if table is not None and registers is not None:
        before, count = int("cls_token" in state), registers.shape[1]
        if not is_square(table.shape[1] - before) and is_square(table.shape[1] - before - count):
            rows = table[:, before : before + count]
            table = torch.cat([table[:, :before], table[:, before + count :]], 1)
            state = state | {"register_tokens": registers + rows, "pos_embed": table}
    if table is not None and "cls_token" in state and is_square(table.shape[1]) and table.shape[1] > 1:
        state = state | {"pos_embed": torch.cat([torch.zeros_like(table[:, :1]), table], 1)}
    return state


def is_square(count: int) -> bool:
    """Return whether so many tokens may be a square grid."""
    return math.isqrt(count) ** 2 == count


def is_fixed(table: Tensor | None, column_first: bool) -> bool:
    """Return whether a position table is the fixed one of sines and cosines of a square grid."""
    if table is None or table.dim() != 3 or not table.numel() or table.shape[2] % 4:
        return False
    side = math.isqrt(table.shape[1])
    if side * side not in (table.shape[1], table.shape[1] - 1):
        return False
    fixed = sincos((side, side), table.shape[2], column_first)[:, 1:]
    return bool((table[:, -side * side :].float() - fixed).abs().max() < 1e-3)
