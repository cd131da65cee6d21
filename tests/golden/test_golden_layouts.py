"""Golden cases of published layouts: weights under their published names give the features of their own code.

Every case is read as a user's file would be: the layout is recognised by content, or named where content cannot tell;
the encoder's options are derived from the weights, what their `config.json` says and the layout's conventions. Compared
are the input of the first block, the output of every block, the final tokens and what is pooled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from multissl.contract.data import Views
from multissl.contract.plans import StreamSpec, tokens_along
from multissl.encoders.huggingface import HuggingFaceEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.positions import resample
from multissl.weights.conventions import Context
from multissl.weights.fitting import derive, options_of
from multissl.weights.loading import load_state, published_layout
from multissl.weights.resampling import adapt_channels, resample_patches
from multissl.weights.unwrapping import strip
from tests.golden import Case, cases, cases_of

pytestmark = pytest.mark.reference


class Variant(NamedTuple):
    """How the files of a variant are read."""

    layout: str
    named: bool = False
    """Whether the user says the layout, as contents do not."""
    kind: str = ""
    """The config's model_type."""


PICTURES = {
    "hf_dinov2": Variant("huggingface_dinov2", kind="dinov2"),
    "hf_dinov2_registers": Variant("huggingface_dinov2", kind="dinov2_with_registers"),
    "hf_dinov3": Variant("huggingface_dinov3", kind="dinov3_vit"),
    "hf_vit": Variant("huggingface_vit", kind="vit"),
    "hf_vit_mae_encoder": Variant("huggingface_vit", kind="vit_mae"),
    "hf_ijepa": Variant("huggingface_vit", kind="ijepa"),
    "hf_clip_vision": Variant("huggingface_clip", kind="clip_vision_model"),
    "hf_siglip_vision": Variant("huggingface_siglip", kind="siglip_vision_model"),
    "hf_data2vec_vision": Variant("huggingface_data2vec", kind="data2vec-vision"),
    "timm_dinov2": Variant("timm_dinov2", named=True),
    "timm_dinov3": Variant("timm_dinov3"),
    "timm_vit": Variant("timm_vit", named=True),
    "timm_clip": Variant("timm_clip"),
    "timm_siglip": Variant("timm_siglip"),
    "torchvision_vit": Variant("torchvision_vit"),
    "dino_v1": Variant("dino", named=True),
    "ibot": Variant("ibot", named=True),
    "dinov3_official": Variant("dinov3"),
    "ijepa_official": Variant("ijepa", named=True),
    "wrapped_dino_teacher": Variant("dino", named=True),
    "wrapped_hf_vit_memory": Variant("huggingface_vit", kind="vit"),
    "wrapped_hf_dinov3_memory": Variant("huggingface_dinov3", kind="dinov3_vit"),
    "wrapped_hf_clip_full": Variant("huggingface_clip", kind="clip_vision_model"),
    "wrapped_mocov3": Variant("moco_v3"),
    "wrapped_hf_dinov2_memory": Variant("huggingface_dinov2", kind="dinov2"),
}
CLIPS = {
    "hf_videomae": Variant("huggingface_videomae", kind="videomae"),
    "hf_vjepa2": Variant("huggingface_vjepa2", kind="vjepa2"),
    "vjepa2_official": Variant("vjepa2"),
    "vjepa_official": Variant("vjepa", named=True),
    "wrapped_vjepa2_encoder": Variant("vjepa2", named=True),
    "wrapped_vjepa_target": Variant("vjepa", named=True),
    "wrapped_hf_videomae_pretraining": Variant("huggingface_videomae", kind="videomae"),
}
OTHERS = {
    "hf_ast": Variant("huggingface_ast", kind="audio-spectrogram-transformer"),
    "hf_siglip2_vision": Variant("huggingface_siglip", kind="siglip2_vision_model"),
}
SEQUENCES = {
    "hf_bert": "bert",
    "hf_roberta": "roberta",
    "hf_modernbert": "modernbert",
    "hf_wav2vec2": "wav2vec2",
    "wrapped_hf_bert_old": "bert",
    "wrapped_hf_modernbert_mlm": "modernbert",
    "wrapped_hf_wav2vec2_published": "wav2vec2",
}
"""Of texts and waves, whose networks are held as transformers has them: the config's model_type."""
AFTER = ("last_hidden_state", "tokens")
"""What libraries call the final tokens."""
POOLED = ("pooler_output", "pooled", "mean")


def described(case: Case, kind: str) -> dict[str, Any]:
    """What lies beside the weights: the library's config, or the options that their code was called with."""
    hyper = case.hyper
    if "config" in hyper:
        return {"model_type": kind, **hyper["config"]}
    options = dict(hyper.get("options") or {n: hyper[n] for n in hyper if n != "like"})
    options.setdefault("num_heads", options.get("heads"))
    return options | ({"architecture": hyper["model"]} if "model" in hyper else {})


def side_of(config: dict[str, Any]) -> int:
    """Pixels of the views that the network was made for; those of rotary positions fit any."""
    size = next((config[n] for n in ("image_size", "img_size", "crop_size") if n in config), 16)
    return size[0] if isinstance(size, list) else size


def build(case: Case, spec: StreamSpec, variant: Variant, config: dict[str, Any]) -> TransformerEncoder:
    """An encoder that is derived from the case's weights, holding them."""
    state, layout = case.tensors("param"), variant.layout if variant.named else ""
    network = strip(state)
    found = published_layout(network, layout, config)
    assert found is not None
    assert found.name == variant.layout
    official = found.official(network, Context(config))
    options = options_of(official, found.conventions(official, Context(config)))
    asked = TransformerEncoder.Config(heads=config["num_heads"] if options["heads"] is None else 6)
    cfg = derive(asked, options, "image", found.title)
    torch.manual_seed(0)
    encoder = TransformerEncoder(cfg, spec).eval()
    load_state(encoder, state, None, "image", layout=layout, config=config)
    return encoder


def compare(case: Case, encoder: TransformerEncoder, views: Views, order: Tensor | None = None) -> None:
    """Compare all that the case holds; `order` brings our tokens into theirs."""

    def theirs(x: Tensor) -> Tensor:
        return x if order is None else x[:, order]

    with torch.no_grad():
        tokens, valid = encoder.tokenizer(views)
        groups, taps = encoder.trunk([tokens], [valid], inner=encoder.depth, where=encoder._where([views]))
        features = encoder([views])[0]
    expected = case.tensors("out")
    case.check(theirs(tokens), "out", "embeddings")
    for i, tap in enumerate(taps):
        case.check(theirs(tap[0]), "out", f"block_{i}")
    found = theirs(groups[0])
    before_norm = encoder.cfg.norm_pre and "last_hidden_state" in expected  # Hugging Face's CLIP
    for name in AFTER:
        if name in expected:
            case.check(theirs(taps[-1][0]) if before_norm else found, "out", name)
    pools = [name for name in POOLED if name in expected]
    for name in pools:
        if name == "pooler_output" and "pooler.dense.weight" in " ".join(case.tensors("param")):
            continue  # a linear that is random in published files
        case.check(features.pooled, "out", name)
    prefix = encoder.tokenizer.prefix
    for name, part in {
        "cls": found[:, 0],
        "storage": found[:, 1:prefix],
        "patches": found[:, prefix:],
    }.items():
        if name in expected:
            case.check(part, "out", name)


@pytest.mark.parametrize("case", cases_of("layouts", PICTURES))
def test_golden_layouts_of_pictures(case: Case) -> None:
    variant = PICTURES[case.variant]
    config = described(case, variant.kind)
    side, patch = side_of(config), config["patch_size"]
    spec = StreamSpec(
        kind="grid", shape=(3, side, side), num_tokens=(side // patch) ** 2, patch=(patch, patch)
    )
    encoder = build(case, spec, variant, config)
    image = case.tensors("in")["image_u8"].float() / 128 - 1
    compare(case, encoder, Views(x=image, stream="image", role="clean"))


@pytest.mark.parametrize("case", cases_of("layouts", CLIPS))
def test_golden_layouts_of_clips(case: Case) -> None:
    variant = CLIPS[case.variant]
    config = described(case, variant.kind)
    side, patch, length = side_of(config), config["patch_size"], config["tubelet_size"]
    frames = config.get("num_frames") or config["frames_per_clip"]
    spec = StreamSpec(
        kind="grid",
        shape=(3, frames, side, side),
        num_tokens=frames // length * (side // patch) ** 2,
        patch=(length, patch, patch),
    )
    encoder = build(case, spec, variant, config)
    video = case.tensors("in")["video_u8"].transpose(1, 2).float() / 128 - 1
    compare(case, encoder, Views(x=video, stream="video", role="clean"))


@pytest.mark.parametrize("case", cases("layouts", "hf_ast"))
def test_golden_layouts_of_spectrograms(case: Case) -> None:
    variant = OTHERS[case.variant]
    config = described(case, variant.kind)
    patch, stride = config["patch_size"], (config["time_stride"], config["frequency_stride"])
    plane = (config["max_length"], config["num_mel_bins"])
    grid = tokens_along(plane, (patch, patch), stride)
    spec = StreamSpec(
        kind="grid", shape=(1, *plane), num_tokens=grid[0] * grid[1], patch=(patch, patch), stride=stride
    )
    encoder = build(case, spec, variant, config)
    spectrogram = case.tensors("in")["spec"][:, None]
    frequency_first = torch.arange(grid[0] * grid[1]).view(grid).T.flatten() + 2
    order = torch.cat([torch.arange(2), frequency_first])
    compare(case, encoder, Views(x=spectrogram, stream="audio", role="clean"), order)


@pytest.mark.parametrize("case", cases("layouts", "hf_siglip2_vision"))
def test_golden_layouts_of_pictures_of_varying_size(case: Case) -> None:
    variant = OTHERS[case.variant]
    config = described(case, variant.kind)
    patch, side = config["patch_size"], round(config["num_patches"] ** 0.5)
    spec = StreamSpec(
        kind="grid", shape=(3, side * patch, side * patch), num_tokens=side**2, patch=(patch, patch)
    )
    encoder = build(case, spec, variant, config)
    given, expected = case.tensors("in"), case.tensors("out")
    for row, (high, wide) in enumerate(given["spatial_shapes"].tolist()):
        count = high * wide
        assert given["pixel_attention_mask"][row].sum() == count
        patches = given["patches"][row, :count].view(high, wide, patch, patch, 3)
        image = patches.permute(4, 0, 2, 1, 3).reshape(1, 3, high * patch, wide * patch)
        with torch.no_grad():
            features = encoder([Views(x=image, stream="image", role="clean")])[0]
        tokens = expected["last_hidden_state"].clone()
        tokens[row, :count] = features.tokens[0]  # what lies behind a picture's own patches counts nowhere
        case.check(tokens, "out", "last_hidden_state")
        pooled = expected["pooler_output"].clone()
        pooled[row] = features.pooled[0]
        case.check(pooled, "out", "pooler_output")


@pytest.mark.parametrize("case", cases_of("layouts", SEQUENCES))
def test_golden_layouts_of_texts_and_waves(case: Case, tmp_path: Path) -> None:
    config: dict[str, Any] = {"model_type": SEQUENCES[case.variant], **case.hyper["config"]}
    given, expected = case.tensors("in"), case.tensors("out")
    wave = given.get("wave")
    if wave is None:
        x, real = given["input_ids"], given["attention_mask"].bool()
        spec = StreamSpec(
            kind="sequence", shape=x.shape[1:], num_tokens=x.shape[1], vocab=config["vocab_size"]
        )
    else:
        x, real = wave[:, None], torch.ones(expected["last_hidden_state"].shape[:2], dtype=torch.bool)
        spec = StreamSpec(kind="grid", shape=(1, wave.shape[1]), num_tokens=1, patch=(wave.shape[1],))
    (tmp_path / "config.json").write_text(json.dumps(config))  # with fields of before transformers 5
    encoder = HuggingFaceEncoder(HuggingFaceEncoder.Config(model=str(tmp_path)), spec).eval()
    load_state(encoder, case.tensors("param"), None, "x", config=config)
    found: dict[str, Tensor] = {}
    for name, block in encoder.net.named_modules():
        if match := re.fullmatch(r"(?:encoder\.)?layers?\.(\d+)", name):
            block.register_forward_hook(keep(found, f"block_{match[1]}"))
    with torch.no_grad():
        item = Views(x=x, stream="x", role="clean", valid=real if wave is None else None)
        found["last_hidden_state"] = encoder([item])[0].tokens
    assert len(found) == config["num_hidden_layers"] + 1
    for name, tokens in found.items():  # padding counts nowhere
        case.check(torch.where(real[:, :, None], tokens, expected[name]), "out", name)


def keep(found: dict[str, Tensor], name: str) -> Callable[..., None]:
    """A hook that keeps what a block gives."""

    def hook(_: nn.Module, __: Any, out: Any) -> None:
        found[name] = out if isinstance(out, Tensor) else out[0]

    return hook


@pytest.mark.parametrize("case", cases("layouts", "flexi_patch"))
def test_golden_flexi_patch(case: Case) -> None:
    kernel = case.tensors("in")["kernel"]
    for name in case.tensors("out"):
        how, _, size = name.rpartition("to_")
        high, wide = map(int, size.split("x"))
        mode, antialias = ("bilinear", False) if how == "bilinear_" else ("bicubic", True)
        case.check(resample_patches(kernel, (high, wide), mode, antialias), "out", name)


@pytest.mark.parametrize("case", cases("layouts", "timm_positions"))
def test_golden_timm_positions(case: Case) -> None:
    table = case.tensors("in")["table"]
    side = round((table.shape[1] - 1) ** 0.5)
    for name in case.tensors("out"):
        high, wide = map(int, name.removeprefix("to_").split("x"))
        case.check(resample(table, (side, side), (high, wide), 0.0, True), "out", name)


@pytest.mark.parametrize("case", cases("layouts", "timm_channels"))
def test_golden_timm_channels(case: Case) -> None:
    kernel = case.tensors("in")["kernel"]
    for name in case.tensors("out"):
        case.check(adapt_channels(kernel, int(name.removeprefix("to_"))), "out", name)
