"""Golden cases of the transformer encoder.

Covered: encoders_dinov2 (dinov2_vit, dinov2_pos_embed_interpolation, dinov2_intermediate_layers), encoders_hf
(hf_dinov2, by our transformer and by the wrapped model; hf_ast, wrapped), and the grid tables of
masked_modeling/sincos_pos_embed. Not covered here: the head variants of encoders_dinov2 (tested with the heads);
hf_videomae (with the videos); hf_vit_mae and hf_clip.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.learning import Features
from multissl.contract.plans import StreamSpec
from multissl.encoders.huggingface import HuggingFaceEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.positions import Position, resample, sincos
from multissl.modalities.views import pack_masks
from multissl.weights.loading import load_state, official
from tests.golden import Case, cases, close

pytestmark = pytest.mark.reference
HEADS = 2
"""Of every encoders_dinov2 case; the manifest does not state it."""


def build(case: Case, heads: int, offset: float, antialias: bool) -> TransformerEncoder:
    """An encoder of the case's shape, holding its weights."""
    state = official(case.tensors("param"))
    dim, channels, patch = state["patch_embed.proj.weight"].shape[:3]
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    swiglu = "blocks.0.mlp.w12.weight" in state
    cfg = TransformerEncoder.Config(
        dim=dim,
        depth=sum(name.endswith("norm1.weight") for name in state),
        heads=heads,
        ffn="swiglu" if swiglu else "mlp",
        layerscale=1.0,
        registers=state["register_tokens"].shape[1] if "register_tokens" in state else 0,
        position=Position(offset=offset, antialias=antialias),
    )
    spec = StreamSpec(
        kind="grid", shape=(channels, side * patch, side * patch), num_tokens=side**2, patch=(patch, patch)
    )
    encoder = TransformerEncoder(cfg, spec).eval()
    load_state(encoder, case.tensors("param"))  # in its own names, which tell how it resamples
    return encoder


def view(case: Case, image: Tensor) -> Views:
    given = case.tensors("in")
    masks = (pack_masks(given["mask"].bool()),) if "mask" in given else ()
    return Views(x=image, stream="image", role="global", masks=masks)


def check_build(case: Case, encoder: TransformerEncoder, views: Views) -> None:
    """Compare what was read from the weights with the hyperparameters."""
    hyper, cfg = case.hyper, encoder.cfg
    assert (cfg.ffn == "mlp") == (hyper["ffn"] == "mlp")
    assert cfg.registers == hyper["reg"]
    assert bool(views.masks) == hyper.get("mask", False)
    assert encoder.spec.shape[1] == hyper.get("img", encoder.spec.shape[1])


def image_of(case: Case) -> Tensor:
    return case.tensors("in")["image_u8"].float() / 128 - 1


def encode(encoder: TransformerEncoder, views: Views) -> tuple[Features, Tensor]:
    """Features, and all tokens before the final norm."""
    masking = "replace" if views.masks else "none"
    tokens, valid = encoder.tokenizer(views, masking)
    _, taps = encoder.trunk([tokens], [valid], inner=1)
    return encoder([views], masking)[0], taps[0][0]


@pytest.mark.parametrize("case", cases("encoders_dinov2", "dinov2_vit"))
def test_golden_dinov2_vit(case: Case) -> None:
    hyper, given = case.hyper, case.tensors("in")
    encoder = build(case, HEADS, hyper.get("off", 0.1), hyper.get("aa", False))
    image = image_of(case).requires_grad_()
    check_build(case, encoder, view(case, image))
    features, before_norm = encode(encoder, view(case, image))
    case.check(features.pooled, "out", "x_norm_clstoken")
    case.check(features.tokens, "out", "x_norm_patchtokens")
    expected = case.tensors("out")
    if "x_prenorm" in expected:
        case.check(before_norm, "out", "x_prenorm")
    if "x_norm_regtokens" in expected:
        registers = slice(1, encoder.tokenizer.prefix)
        case.check(encoder.trunk.norm(before_norm)[:, registers], "out", "x_norm_regtokens")

    loss = (features.pooled * given["probe_cls"]).mean() + (features.tokens * given["probe_patch"]).mean()
    loss.backward()
    found = official({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    for name in case.tensors("grad"):
        case.check(image.grad if name == "image" else found.get(name), "grad", name)


@pytest.mark.parametrize("case", cases("encoders_dinov2", "dinov2_pos_embed_interpolation"))
def test_golden_dinov2_pos_embed_interpolation(case: Case) -> None:
    hyper = case.hyper
    grid = [size // 14 for size in hyper["hw"]]
    table = case.tensors("in")["pos_embed"]
    case.check(resample(table, [hyper["M"]] * 2, grid, hyper["off"], hyper["aa"]), "out", "pos_embed")


@pytest.mark.parametrize("case", cases("encoders_dinov2", "dinov2_intermediate_layers"))
def test_golden_dinov2_intermediate_layers(case: Case) -> None:
    hyper: dict[str, Any] = case.hyper
    encoder = build(case, HEADS, hyper.get("off", 0.1), hyper.get("aa", False))
    check_build(case, encoder, view(case, image_of(case)))
    assert (
        hyper.get("chunks", 0) >= 0
    )  # official blocks come in chunks, whose names are made plain by `official`
    found = encoder.layers(view(case, image_of(case)), hyper["n"], norm=hyper["norm"])
    for i, features in enumerate(found):
        patches = features.tokens
        if hyper["reshape"]:
            patches = patches.mT.unflatten(2, (hyper["H"] // 14, hyper["W"] // 14))
        case.check(patches, "out", f"patch_{i}")
        case.check(features.pooled, "out", f"cls_{i}")
    assert len(found) == sum(name.startswith("cls_") for name in case.tensors("out"))


@pytest.mark.parametrize("case", cases("encoders_hf", "hf_dinov2"))
def test_golden_hf_dinov2(case: Case) -> None:
    heads = case.hyper["config"]["num_attention_heads"]
    encoder = build(case, heads, 0.0, antialias=case.hyper["reg"] > 0)
    views = view(case, image_of(case))
    assert bool(views.masks) == case.hyper["mask"]
    features, before_norm = encode(encoder, views)
    case.check(encoder.trunk.norm(before_norm), "out", "last_hidden_state")
    case.check(features.pooled, "out", "pooler_output")


@pytest.mark.parametrize("case", cases("encoders_hf", "hf_dinov2"))
@pytest.mark.parametrize("pooling", ["cls", "pooler"])
def test_golden_hf_dinov2_wrapped(case: Case, pooling: Any) -> None:
    h = case.hyper
    kind = "dinov2_with_registers" if h["reg"] else "dinov2"
    if h["config"] and h["mask"]:
        pytest.skip("a wrapped model takes no masks")
    fields = {"model_type": kind, "layer_norm_eps": 1e-6, **h["config"]}
    side = h["config"]["image_size"]
    spec = StreamSpec(kind="grid", shape=(3, side, side), num_tokens=16, patch=(14, 14))
    encoder = HuggingFaceEncoder(HuggingFaceEncoder.Config(config=fields, pooling=pooling), spec).eval()
    load_state(encoder, case.tensors("param"))
    image = image_of(case)
    (features,) = encoder(
        [Views(x=image.to(encoder.net.embeddings.cls_token.dtype), stream="image", role="clean")]
    )
    case.check(features.pooled, "out", "pooler_output")
    expected = case.tensors("out")["last_hidden_state"]
    assert features.tokens.shape[1] == expected.shape[1] - 1 - h["reg"]
    torch.testing.assert_close(features.tokens, expected[:, 1 + h["reg"] :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", cases("encoders_hf", "hf_ast"))
@pytest.mark.parametrize("pooling", ["mean", "pooler"])
def test_golden_hf_ast_wrapped(case: Case, pooling: Any) -> None:
    """Spectrograms [R, 1, T, F] through the wrapped model: overlapping patches, two tokens before them."""
    given = case.tensors("in")["spec"]
    fields = {"model_type": "audio-spectrogram-transformer", **case.hyper["config"]}
    length, mels = fields.pop("max_length"), fields.pop("num_mel_bins")  # these come from the stream
    assert given.shape[1:] == (length, mels)
    spec = StreamSpec(kind="grid", shape=(1, length, mels), num_tokens=1, patch=(16, 16))
    encoder = HuggingFaceEncoder(HuggingFaceEncoder.Config(config=fields, pooling=pooling), spec).eval()
    load_state(encoder, case.tensors("param"))
    (features,) = encoder([Views(x=given[:, None], stream="audio", role="clean")])
    expected = case.tensors("out")
    close(features.tokens, expected["last_hidden_state"][:, 2:], case.rtol or 0.0, "tokens")
    pooled = expected["pooler_output"] if pooling == "pooler" else features.tokens.mean(1)
    close(features.pooled, pooled, case.rtol or 0.0, "pooled")


@pytest.mark.parametrize("case", cases("masked_modeling", "sincos_pos_embed"))
def test_golden_sincos_pos_embed(case: Case) -> None:
    dim, n, frames = case.hyper["D"], case.hyper["n"], case.hyper["T"]
    case.check(sincos([n, n], dim)[0], "out", "pos2d")
    case.check(sincos(case.hyper["rect"], dim)[0], "out", "pos2d_rect")
    case.check(sincos([n, n], dim, column_first=False)[0, 1:], "out", "pos2d_rowfirst")
    case.check(sincos([frames, n, n], dim, uniform=case.hyper["up"])[0, 1:], "out", "pos3d")
