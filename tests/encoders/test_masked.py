"""Vision transformers of other libraries under masks: what ours computes with the same weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.build import build
from multissl.configs.image import dino
from multissl.contract.data import Views
from multissl.contract.encoder import Encoder
from multissl.contract.plans import StreamSpec
from multissl.encoders.huggingface import HuggingFaceEncoder
from multissl.encoders.timm import TimmEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.decoder import Decoder
from multissl.modalities.views import pack_masks
from multissl.objectives.ijepa import IJEPA
from multissl.objectives.mae import MAE
from multissl.recipe import Recipe
from multissl.weights.conventions import Context
from multissl.weights.fitting import derive, options_of
from multissl.weights.loading import load_state, published_layout
from multissl.weights.unwrapping import strip

SPEC = StreamSpec(kind="grid", shape=(3, 16, 16), num_tokens=16, patch=(4, 4))
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "patch_size": 4,
}


def hugging_face(kind: str, **options: Any) -> HuggingFaceEncoder.Config:
    sizes = {n: v for n, v in SIZES.items() if not (n == "intermediate_size" and "dinov2" in kind)}
    return HuggingFaceEncoder.Config(config={"model_type": kind, **sizes, **options})


def timm(name: str, **options: Any) -> TimmEncoder.Config:
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4}
    return TimmEncoder.Config(name=name, options=sizes | options, pooling="mean")


NETWORKS = {
    "vit": (hugging_face("vit"), ""),
    "ijepa": (hugging_face("ijepa"), ""),
    "dinov2": (hugging_face("dinov2", mlp_ratio=2), ""),
    "registers": (hugging_face("dinov2_with_registers", num_register_tokens=2), ""),
    "clip": (hugging_face("clip_vision_model"), ""),
    "siglip": (hugging_face("siglip_vision_model"), ""),
    "dinov3": (hugging_face("dinov3_vit"), ""),
    "timm": (timm("vit_tiny_patch16_224"), "timm_vit"),
    "timm registers": (timm("vit_small_patch14_reg4_dinov2"), ""),
    "timm siglip": (timm("vit_base_patch16_siglip_224"), ""),
    "eva": (timm("vit_small_patch16_dinov3"), ""),
}
"""Encoders around networks, and the layout of their weights where contents do not tell."""


def pair(name: str) -> tuple[Encoder, TransformerEncoder]:
    """A wrapped network and our transformer with its weights."""
    cfg, layout = NETWORKS[name]
    torch.manual_seed(0)
    wrapped: Any = cfg.build(SPEC).eval()
    for parameter in wrapped.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    state = {n.removeprefix("net."): t for n, t in wrapped.state_dict().items() if n != "mask_token"}
    about = (
        wrapped.net.config.to_dict()
        if isinstance(cfg, HuggingFaceEncoder.Config)
        else {
            "architecture": cfg.name,
            "num_heads": 2,  # type: ignore[attr-defined]
        }
    )
    found = published_layout(strip(state), layout, about)
    assert found is not None
    official = found.official(strip(state), Context(about))
    options = options_of(official, found.conventions(official, Context(about)))
    ours = TransformerEncoder(derive(TransformerEncoder.Config(), options, "image", "it"), SPEC).eval()
    load_state(ours, state, layout=layout, config=about)
    ours.tokenizer.mask_token.data.copy_(wrapped.mask_token)
    return wrapped, ours


def views(hidden: Tensor | None = None, rows: int = 2) -> Views:
    x = torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return Views(x=x, stream="image", role="global", masks=() if hidden is None else (pack_masks(hidden),))


HIDDEN = torch.zeros(2, 16, dtype=torch.bool)
HIDDEN[0, [1, 5, 6]] = HIDDEN[1, [0, 2, 15]] = True


@pytest.mark.reference
@pytest.mark.parametrize("name", NETWORKS)
def test_hidden_tokens_are_replaced_or_left_out_as_in_ours(name: str) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    wrapped, ours = pair(name)
    assert wrapped.maskings == NETWORKS[name][0].maskings_for(SPEC)
    item, plain = views(HIDDEN), views()
    for masking in sorted(wrapped.maskings):
        (theirs, whole), (expected, rest) = (e([item, plain], masking) for e in (wrapped, ours))
        # Hugging Face's CLIP ends before the norm of its tokens
        seen = ours.trunk.norm(theirs.tokens) if name == "clip" else theirs.tokens
        torch.testing.assert_close(seen, expected.tokens, rtol=1e-4, atol=1e-4)
        assert seen.shape[1] == (13 if masking == "drop" else 16)
        untouched = ours.trunk.norm(whole.tokens) if name == "clip" else whole.tokens
        torch.testing.assert_close(untouched, rest.tokens, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(wrapped([item], "none")[0].tokens, wrapped([plain])[0].tokens)


@pytest.mark.reference
@pytest.mark.parametrize("name", ["vit", "timm"])
def test_the_mask_token_learns_is_copied_and_may_lack_in_older_weights(name: str) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("timm")
    encoder: Any = NETWORKS[name][0].build(SPEC)
    encoder.prepare_for(frozenset({"none"}))
    assert not encoder.mask_token.requires_grad
    encoder.prepare_for(frozenset({"replace"}))
    twin = copy.deepcopy(encoder)
    twin.mask_token.data += 1
    first, second = encoder([views(HIDDEN)], "replace")[0], twin([views(HIDDEN)], "replace")[0]
    assert not torch.allclose(first.pooled, second.pooled)
    first.tokens.square().sum().backward()
    assert encoder.mask_token.grad is not None
    assert any(p is encoder.mask_token for p in encoder.token_parameters())
    old = {n: t for n, t in twin.state_dict().items() if n != "mask_token"}
    encoder.load_state_dict(old)
    torch.testing.assert_close(encoder([views()])[0].pooled, twin([views()])[0].pooled)


@pytest.mark.reference
def test_networks_that_cannot_take_masks_say_so() -> None:
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    for cfg in (timm("resnet10t"), hugging_face("vit_mae"), hugging_face("convnext")):
        assert cfg.maskings_for(SPEC) == frozenset({"none"})


def small(encoder: Encoder.Config, objective: Any = None) -> Recipe:
    recipe = dino.default()
    recipe.modality = recipe.modality.replace(size=16, local_size=8)
    recipe.encoders["image"] = encoder
    if objective is not None:
        recipe.objective = objective
    recipe.evals, recipe.batch_size = {}, 4
    return recipe


@pytest.mark.reference
@pytest.mark.parametrize("network", [hugging_face("vit"), timm("vit_tiny_patch16_224")], ids=["face", "timm"])
@pytest.mark.parametrize(
    "objective",
    [None, MAE.Config(decoder=Decoder.Config(dim=16, depth=1, heads=2)), IJEPA.Config()],
    ids=["ibot", "mae", "ijepa"],
)
def test_ibot_mae_and_ijepa_are_built_on_them(network: Encoder.Config, objective: Any) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    parts = build(small(network, objective), torch.device("cpu"))
    assert parts.learner.encoders["image"].maskings >= {"replace", "drop"}
