"""Published layouts against the libraries that own them: random models, saved and read as a user would, at two sizes.

A model is saved to a folder as its library saves it, the encoder's options are derived from there, and features have to
agree at the model's own size and at another one that is not square.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.encoder import Encoders
from multissl.contract.plans import StreamSpec, tokens_along
from multissl.encoders.huggingface import HuggingFaceEncoder
from multissl.encoders.resnet import ResNetEncoder
from multissl.encoders.timm import TimmEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.weights.loading import derive_configs, load_weights

pytestmark = pytest.mark.reference
Size = tuple[int, ...]


class Model(NamedTuple):
    """A model of a library, tiny and random."""

    layout: str
    kind: str
    """Hugging Face's class without `Model` and `Config`, or timm's name."""
    options: dict[str, Any]
    sizes: tuple[Size, ...] = ((16, 16), (12, 20))
    """Of views, the model's own first."""
    patch: Size = (4, 4)
    stride: Size = ()


SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
PLAIN = {**SIZES, "intermediate_size": 48, "patch_size": 4, "image_size": 16}
CLIP = {"num_frames": 4, "tubelet_size": 2}
HUGGING_FACE = [
    Model("huggingface_vit", "ViT", PLAIN),
    Model("huggingface_vit", "ViTMAE", {**PLAIN, "mask_ratio": 0.0, "layer_norm_eps": 1e-6}),
    Model("huggingface_vit", "IJepa", PLAIN),
    Model("huggingface_dinov2", "Dinov2", {**SIZES, "patch_size": 4, "image_size": 16, "mlp_ratio": 2}),
    Model("huggingface_dinov2", "Dinov2", {**SIZES, "patch_size": 4, "image_size": 16, "use_swiglu_ffn": True}),
    Model("huggingface_dinov2", "Dinov2WithRegisters", {**SIZES, "patch_size": 4, "image_size": 16, "mlp_ratio": 2}),
    Model("huggingface_dinov3", "DINOv3ViT", {**PLAIN, "num_register_tokens": 3}),
    Model("huggingface_dinov3", "DINOv3ViT", {**PLAIN, "use_gated_mlp": True, "hidden_act": "silu"}),
    Model("huggingface_clip", "CLIPVision", PLAIN),
    Model("huggingface_clip", "CLIPVision", {**PLAIN, "hidden_act": "gelu"}),
    Model("huggingface_siglip", "SiglipVision", PLAIN),
    Model(
        "huggingface_data2vec", "Data2VecVision",
        {**PLAIN, "use_relative_position_bias": True, "layer_scale_init_value": 0.5}, ((16, 16),),
    ),
    Model("huggingface_videomae", "VideoMAE", {**PLAIN, **CLIP}, ((4, 16, 16),), (2, 4, 4)),
    Model(
        "huggingface_vjepa2", "VJEPA2",
        {**SIZES, "patch_size": 4, "crop_size": 16, "frames_per_clip": 4, "tubelet_size": 2, "mlp_ratio": 2,
         "pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1},
        ((4, 16, 16), (8, 16, 16)), (2, 4, 4),
    ),
    Model(
        "huggingface_ast", "AST",
        {**SIZES, "intermediate_size": 48, "patch_size": 4, "max_length": 21, "num_mel_bins": 16, "time_stride": 3,
         "frequency_stride": 2},
        ((21, 16),), (4, 4), (3, 2),
    ),
]  # fmt: skip
NARROW = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 16, "num_classes": 0}
ANY = {**NARROW, "dynamic_img_size": True}
TIMM = [
    Model("timm_vit", "vit_tiny_patch16_224", ANY),
    Model("timm_vit", "vit_tiny_patch16_224", {**ANY, "global_pool": "avg", "fc_norm": True}),
    Model(
        "timm_vit",
        "vit_tiny_patch16_224",
        {**ANY, "class_token": False, "global_pool": "avg", "reg_tokens": 2},
    ),
    Model("timm_dinov2", "vit_small_patch14_dinov2", ANY),
    Model("timm_dinov2", "vit_small_patch14_reg4_dinov2", ANY),
    Model("timm_dinov2", "vit_giant_patch14_dinov2", {**ANY, "mlp_ratio": 2.0}),
    Model("timm_dinov3", "vit_small_patch16_dinov3", NARROW),
    Model("timm_dinov3", "vit_small_plus_patch16_dinov3", NARROW),
    Model("timm_clip", "vit_base_patch16_clip_quickgelu_224", ANY),
    Model("timm_clip", "vit_base_patch16_clip_224", ANY),
    Model("timm_siglip", "vit_base_patch16_siglip_224", ANY),
]
TOLERANCE = 1e-4
NAMED = {"timm_vit", "timm_dinov2"}
"""Layouts that the user names, as contents do not tell them."""


def shaken(model: Any) -> Any:
    """The model in evaluation, away from the zeros and ones of an initialization."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def spec_of(model: Model, channels: int = 3) -> StreamSpec:
    grid = tokens_along(model.sizes[0], model.patch, model.stride)
    tokens = 1
    for n in grid:
        tokens *= n
    return StreamSpec(
        kind="grid",
        shape=(channels, *model.sizes[0]),
        num_tokens=tokens,
        patch=model.patch,
        stride=model.stride,
    )


def loaded(place: str | Path, spec: StreamSpec, **said: Any) -> TransformerEncoder:
    """A transformer whose options come from the weights, but for what is said."""
    cfg = derive_configs({"image": TransformerEncoder.Config(**said)}, place)["image"]
    encoder = cfg.build(spec).eval()
    load_weights(Encoders({"image": encoder}), place)
    assert isinstance(encoder, TransformerEncoder)
    return encoder


def run(encoder: TransformerEncoder, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Prefix and patch tokens before the final norm's place is judged, after it, and what is pooled."""
    item = Views(x=x, stream="image", role="clean")
    tokens, valid = encoder.tokenizer(item)
    groups, taps = encoder.trunk([tokens], [valid], inner=1, where=encoder._where([item]))
    return taps[0][0], groups[0], encoder([item])[0].pooled


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


@pytest.mark.parametrize("model", HUGGING_FACE, ids=lambda m: f"{m.kind}-{len(m.options)}")
@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_hugging_face_agrees(model: Model, pickled: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{model.kind}Config")(**model.options)
    config._attn_implementation = "eager"
    theirs = shaken(getattr(transformers, f"{model.kind}Model")(config))
    theirs.save_pretrained(tmp_path)
    if pickled:
        from safetensors.torch import load_file

        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    ours = loaded(tmp_path, spec_of(model, 1 if model.kind == "AST" else 3))
    for size in model.sizes[: 1 if pickled else 2]:
        with torch.no_grad():
            compare_with_hugging_face(theirs, ours, model, size)


def compare_with_hugging_face(theirs: Any, ours: TransformerEncoder, model: Model, size: Size) -> None:
    x = torch.randn(2, *ours.spec.shape[:1], *size)
    given: dict[str, Any] = {}
    if size != model.sizes[0] and model.kind in ("ViT", "ViTMAE", "IJepa", "CLIPVision", "SiglipVision"):
        given["interpolate_pos_encoding"] = True
    if model.kind == "ViTMAE":
        count = 1
        for n, p in zip(size, model.patch, strict=True):
            count *= n // p
        given["noise"] = torch.arange(count).expand(2, -1).float()  # its class shuffles tokens otherwise
    if model.kind == "VJEPA2":
        given["skip_predictor"] = True
    first = x[:, 0] if model.kind == "AST" else x.transpose(1, 2) if len(size) == 3 else x
    out = theirs(first, **given)
    raw, normed, pooled = run(ours, x)
    expected = out.last_hidden_state
    if model.kind == "AST":  # tokens go frequency first there
        grid = tokens_along(size, model.patch, model.stride)
        order = torch.arange(grid[0] * grid[1]).view(grid).T.flatten() + 2
        normed = normed[:, torch.cat([torch.arange(2), order])]
    close(raw if model.kind == "CLIPVision" else normed, expected)
    known = getattr(out, "pooler_output", None)
    if known is not None and model.kind != "ViT":  # whose pooler is a linear of its own
        close(pooled, known)


@pytest.mark.parametrize("model", TIMM, ids=lambda m: f"{m.kind}-{len(m.options)}")
def test_timm_agrees(model: Model, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    theirs = shaken(timm.create_model(model.kind, **model.options))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(f'{{"architecture": "{model.kind}", "num_heads": 2}}')
    ours = loaded(f"{model.layout}:{tmp_path}" if model.layout in NAMED else tmp_path, spec_of(model))
    for size in model.sizes:
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            _, normed, pooled = run(ours, x)
            tokens = theirs.forward_features(x)
            close(normed, tokens)
            close(pooled, theirs.forward_head(tokens, pre_logits=True))


def test_a_folder_of_timm_is_read_by_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    options = {**NARROW, "depth": 1}
    theirs = shaken(timm.create_model("vit_tiny_patch16_224", **options))
    timm.models.save_for_hf(
        theirs, tmp_path, model_args={n: v for n, v in options.items() if n != "num_classes"}
    )
    ours = loaded(f"timm:local-dir:{tmp_path}", spec_of(TIMM[0]))
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        close(run(ours, x)[1], theirs.forward_features(x))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_torchvision_agrees(tmp_path: Path, ending: str) -> None:
    from safetensors.torch import save_file
    from torchvision.models import VisionTransformer, resnet18

    theirs = shaken(VisionTransformer(16, 4, 2, 4, 256, 48, num_classes=5))
    path = tmp_path / f"vit.{ending}"
    (torch.save if ending == "pth" else save_file)(theirs.state_dict(), path)
    with pytest.raises(
        ValueError, match=r"nothing in the file tells heads: .*--encoders\.image\.heads N .*here 4"
    ):
        loaded(path, spec_of(TIMM[0]))
    ours = loaded(path, spec_of(TIMM[0]), heads=4)
    x = torch.randn(2, 3, 16, 16)  # its models know one size
    with torch.no_grad():
        tokens = theirs._process_input(x)
        tokens = theirs.encoder(torch.cat([theirs.class_token.expand(2, -1, -1), tokens], 1))
        close(run(ours, x)[1], tokens)

    net = shaken(resnet18())
    path = tmp_path / f"resnet.{ending}"
    (torch.save if ending == "pth" else save_file)(net.state_dict(), path)
    spec = StreamSpec(kind="grid", shape=(3, 32, 32), num_tokens=1, patch=(32, 32))
    encoder = ResNetEncoder(ResNetEncoder.Config(depth=18), spec).eval()
    load_weights(Encoders({"image": encoder}), path)
    net.fc = torch.nn.Identity()
    for size in ((32, 32), (32, 64)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            close(encoder([Views(x=x, stream="image", role="clean")])[0].pooled, net(x))


@pytest.mark.parametrize("prefix", ["module.encoder_q.", "module.encoder.", "module.", "backbone."])
def test_resnets_of_training_files_are_found(prefix: str, tmp_path: Path) -> None:
    """MoCo's, SimSiam's, SwAV's and others' names around torchvision's."""
    from torchvision.models import resnet18

    state: dict[str, Tensor] = {f"{prefix}{n}": t for n, t in shaken(resnet18()).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "checkpoint.pth.tar")
    spec = StreamSpec(kind="grid", shape=(3, 32, 32), num_tokens=1, patch=(32, 32))
    encoder = ResNetEncoder(ResNetEncoder.Config(depth=18), spec)
    load_weights(Encoders({"image": encoder}), tmp_path / "checkpoint.pth.tar")
    assert torch.equal(encoder.get_parameter("net.conv1.weight"), state[f"{prefix}conv1.weight"])


# encoders around other libraries' networks


TEXT = StreamSpec(kind="sequence", shape=(12,), num_tokens=12, vocab=40)
WAVE = StreamSpec(kind="grid", shape=(1, 3200), num_tokens=8, patch=(400,))
SEQUENCES: list[tuple[str, str, StreamSpec, dict[str, Any]]] = [
    ("Bert", "bert", TEXT, {"vocab_size": 40}),
    ("Roberta", "roberta", TEXT, {"vocab_size": 40, "pad_token_id": 1}),
    ("ModernBert", "modernbert", TEXT, {"vocab_size": 40, "pad_token_id": 0}),
    (
        "Wav2Vec2",
        "wav2vec2",
        WAVE,
        {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
    ),
    (
        "Hubert",
        "hubert",
        WAVE,
        {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
    ),
]


@pytest.mark.parametrize(
    ("kind", "name", "spec", "options"), SEQUENCES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_files_of_texts_and_waves_fill_the_networks_of_their_library(
    kind: str, name: str, spec: StreamSpec, options: dict[str, Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**SIZES, intermediate_size=48, **options)
    theirs = shaken(getattr(transformers, f"{kind}Model")(config))
    theirs.save_pretrained(tmp_path)
    ours = HuggingFaceEncoder(HuggingFaceEncoder.Config(model=str(tmp_path)), spec).eval()
    load_weights(Encoders({"x": ours}), tmp_path)
    x = torch.randint(3, 40, (2, 12)) if spec is TEXT else torch.randn(2, 1, 3200)
    with torch.no_grad():
        expected = theirs(x if spec is TEXT else x[:, 0]).last_hidden_state
        close(ours([Views(x=x, stream="x", role="clean")])[0].tokens, expected)


def test_a_wrapped_network_that_computes_otherwise_is_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(**PLAIN, layer_norm_eps=1e-6)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    spec = spec_of(HUGGING_FACE[0])
    made = HuggingFaceEncoder(HuggingFaceEncoder.Config(config={"model_type": "vit", **PLAIN}), spec)
    with pytest.raises(ValueError, match=r"says layer_norm_eps=1e-06, this encoder has 1e-12"):
        load_weights(Encoders({"x": made}), tmp_path)
    deep = HuggingFaceEncoder(
        HuggingFaceEncoder.Config(
            config={"model_type": "vit", **PLAIN, "num_hidden_layers": 3, "layer_norm_eps": 1e-6}
        ),
        spec,
    )
    with pytest.raises(ValueError, match=r"do not fit the encoder: missing layers\.2\."):
        load_weights(Encoders({"x": deep}), tmp_path)


def test_timms_files_fill_timms_networks(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    theirs = shaken(timm.create_model("vit_tiny_patch16_224", **{**ANY, "num_classes": 4}))
    torch.save({"state_dict": theirs.state_dict(), "epoch": 2}, tmp_path / "model_best.pth.tar")
    options = {n: v for n, v in ANY.items() if n not in ("num_classes", "img_size", "dynamic_img_size")}
    ours = TimmEncoder(
        TimmEncoder.Config(name="vit_tiny_patch16_224", options=options), spec_of(TIMM[0])
    ).eval()
    load_weights(Encoders({"image": ours}), tmp_path / "model_best.pth.tar")
    x = torch.randn(2, 3, 12, 20)
    with torch.no_grad():
        pooled = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
        close(ours([Views(x=x, stream="image", role="clean")])[0].pooled, pooled)
