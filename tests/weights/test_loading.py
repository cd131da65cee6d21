from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.encoder import Encoders
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.positions import Position, resample
from multissl.weights.files import read_weights, save_weights
from multissl.weights.layouts.dinov2 import to_dinov2
from multissl.weights.layouts.huggingface_dinov2 import to_huggingface
from multissl.weights.loading import load_state, load_weights, official


def spec(side: int = 56) -> StreamSpec:
    return StreamSpec(kind="grid", shape=(3, side, side), num_tokens=(side // 14) ** 2, patch=(14, 14))


def build(side: int = 56, **options: Any) -> TransformerEncoder:
    torch.manual_seed(0)
    given = {"dim": 24, "depth": 2, "heads": 3, "layerscale": 0.5} | options
    encoder = TransformerEncoder(TransformerEncoder.Config(**given), spec(side)).eval()
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("options", [{}, {"registers": 4}, {"ffn": "swiglu"}])
@pytest.mark.parametrize("form", ["own", "dinov2", "memory", "disk"])
def test_round_trips_are_equal_to_the_bit(options: dict[str, Any], form: Any, tmp_path: Path) -> None:
    smooth = bool(options.get("registers"))
    if form != "own":  # positions as that code resamples them
        offset = 0.1 if form == "dinov2" and not smooth else 0.0
        options = options | {"position": Position(offset=offset, antialias=smooth)}
    encoder = build(**options)
    state = {
        "own": lambda: encoder.state_dict(),
        "dinov2": lambda: to_dinov2(encoder),
        "memory": lambda: to_huggingface(encoder, "memory"),
        "disk": lambda: to_huggingface(encoder, "disk"),
    }[form]()
    save_weights(tmp_path / "some" / "weights.safetensors", state)
    other = build(**options)
    for parameter in other.parameters():
        parameter.data.zero_()
    load_state(other, read_weights(tmp_path / "some" / "weights.safetensors"))
    same(other.state_dict(), encoder.state_dict())
    assert [p.name for p in (tmp_path / "some").iterdir()] == ["weights.safetensors"]


def test_files_of_a_run_or_of_one_encoder_fill_the_encoders(tmp_path: Path) -> None:
    encoder = build(position=Position(offset=0.0))
    streams = Encoders({"image": encoder, "depth": build(registers=2)})
    save_weights(tmp_path / "run.safetensors", streams.state_dict())
    save_weights(tmp_path / "one.safetensors", to_huggingface(encoder))
    two = Encoders({"image": build(position=Position(offset=0.0)), "depth": build(registers=2)})
    one = Encoders({"image": build(position=Position(offset=0.0))})
    for parameter in [*two.parameters(), *one.parameters()]:
        parameter.data.zero_()
    load_weights(two, tmp_path / "run.safetensors")
    same(two.state_dict(), streams.state_dict())
    load_weights(one, tmp_path / "one.safetensors")
    same(one["image"].state_dict(), encoder.state_dict())
    with pytest.raises(ValueError, match="the recipe has image, depth"):
        load_weights(two, tmp_path / "one.safetensors")
    with pytest.raises(
        ValueError, match=r"the 1 names of these weights, such as x, are in no layout that is known"
    ):
        load_weights(two, _written(tmp_path / "part.safetensors", {"image.x": torch.zeros(1)}))


def _written(path: Path, state: dict[str, Tensor]) -> Path:
    save_weights(path, state)
    return path


def test_official_names_are_those_of_the_release() -> None:
    names = to_dinov2(build(registers=4))
    assert {
        "cls_token",
        "pos_embed",
        "mask_token",
        "register_tokens",
        "patch_embed.proj.weight",
    } <= names.keys()
    assert {"blocks.1.ls2.gamma", "blocks.0.attn.qkv.weight", "norm.bias"} <= names.keys()
    assert len(names) == 6 + 2 + 2 * 14


def test_training_files_with_chunks_prefixes_and_heads_load() -> None:
    encoder = build()
    state = {
        f"teacher.module.backbone.{name.replace('blocks.', 'blocks.0.')}": t
        for name, t in to_dinov2(encoder).items()
    }
    state["teacher.module.dino_head.mlp.0.weight"] = torch.zeros(3)
    other = build(depth=2)
    torch.nn.init.zeros_(other.get_parameter("trunk.norm.weight"))
    load_state(other, state)
    same(other.state_dict(), encoder.state_dict())


@pytest.mark.parametrize(("offset", "antialias"), [(0.1, False), (0.0, True)])
def test_positions_of_another_grid_are_resampled_as_the_model_would(offset: float, antialias: bool) -> None:
    how = Position(offset=offset, antialias=antialias)
    large = build(98, position=how)
    small = build(56, position=how)
    load_state(small, large.state_dict())
    assert large.tokenizer.pos_embed is not None
    assert small.tokenizer.pos_embed is not None
    expected = resample(large.tokenizer.pos_embed, (7, 7), (4, 4), offset, antialias)
    torch.testing.assert_close(small.tokenizer.pos_embed, expected)
    x = Views(x=torch.randn(1, 3, 56, 56), stream="image", role="clean")
    torch.testing.assert_close(small([x])[0].pooled, large([x])[0].pooled)


def test_a_table_kept_on_its_own_grid_is_loaded_as_it_is() -> None:
    large = build(98)
    small = build(56, position=Position(grid=(7, 7)))
    load_state(small, large.state_dict())
    for size in [(28, 28), (42, 98)]:
        x = Views(x=torch.randn(1, 3, *size), stream="image", role="clean")
        torch.testing.assert_close(small([x])[0].pooled, large([x])[0].pooled)


def test_what_does_not_fit_is_refused_by_name() -> None:
    encoder = build()
    state = encoder.state_dict()
    lacking = {n: t for n, t in state.items() if not n.endswith("fc1.bias")}
    with pytest.raises(
        ValueError, match=r"missing blocks\.0\.mlp\.fc1\.bias, missing blocks\.1\.mlp\.fc1\.bias"
    ):
        load_state(encoder, lacking)
    with pytest.raises(ValueError, match="unknown classifier"):
        load_state(encoder, state | {"classifier.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="unknown register_tokens"):
        load_state(encoder, build(registers=2).state_dict())
    with pytest.raises(ValueError, match=r"cls_token is \(1, 1, 12\) where the encoder has \(1, 1, 24\)"):
        load_state(encoder, build(dim=12).state_dict())
    with pytest.raises(ValueError, match="and 23 more"):
        load_state(encoder, {})


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors", "model"])
def test_pickles_are_refused(name: str, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ValueError, match=r"is a pickle.*not read: convert it"):
        read_weights(tmp_path / name)


def test_other_files_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "notes.safetensors").write_text("no weights here, only words")
    with pytest.raises(ValueError, match="is no safetensors file"):
        read_weights(tmp_path / "notes.safetensors")
    with pytest.raises(ValueError, match="no weights at"):
        read_weights(tmp_path / "absent.safetensors")


def test_a_stem_is_no_kernel_of_patches_and_says_its_own() -> None:
    def stem(patch: int, **options: Any) -> TransformerEncoder:
        views = StreamSpec(
            kind="grid", shape=(3, 48, 48), patch=(patch, patch), num_tokens=(48 // patch) ** 2
        )
        cfg = TransformerEncoder.Config(dim=24, depth=1, heads=3, position=Position(kind="none"), **options)
        return TransformerEncoder(cfg, views)

    weights = stem(12, conv_stem=True).state_dict()
    load_state(stem(12, conv_stem=True), weights)
    for patch, here in ((8, "8 x 8"), (6, "6 x 6"), (4, "4 x 4")):
        said = rf"stem for tokens of 12 x 12 pixels, here they have {here}.*--modality.patch 12\)"
        with pytest.raises(ValueError, match=said):
            load_state(stem(patch, conv_stem=True), weights, stream="image")
    with pytest.raises(
        ValueError, match=r"have a convol.*want --encoders.image.conv_stem True \(here False\)"
    ):
        load_state(stem(12), weights, stream="image")
    with pytest.raises(ValueError, match=r"have no convol.*want --encoders.image.conv_stem False"):
        load_state(stem(12, conv_stem=True), stem(12).state_dict(), stream="image")


def test_only_plain_vision_transformers_take_dinov2_names() -> None:
    with pytest.raises(ValueError, match="conv_stem"):
        to_dinov2(build(conv_stem=True))
    with pytest.raises(ValueError, match=r"position\.kind=learned"):
        to_huggingface(build(position=Position(kind="none")))


@pytest.mark.reference
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("swiglu", [False, True])
def test_hugging_face_models_agree(registers: int, swiglu: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    options = {"num_register_tokens": registers} if registers else {}
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        patch_size=14,
        image_size=56,
        use_swiglu_ffn=swiglu,
        **options,
    )
    torch.manual_seed(1)
    theirs = getattr(transformers, f"{kind}Model")(config).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ours = build(
        registers=registers,
        ffn="swiglu" if swiglu else "mlp",
        position=Position(offset=0.0, antialias=registers > 0),
    )
    load_state(ours, theirs.state_dict())
    for size in [(56, 56), (42, 98)]:
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            (features,) = ours([Views(x=x, stream="image", role="clean")])
            expected = theirs(x)
        torch.testing.assert_close(features.pooled, expected.pooler_output, rtol=0, atol=1e-4)
        patches = expected.last_hidden_state[:, 1 + registers :]
        torch.testing.assert_close(features.tokens, patches, rtol=0, atol=1e-4)

    same(to_huggingface(ours, "memory"), dict(theirs.state_dict()))
    theirs.save_pretrained(tmp_path)
    on_disk = read_weights(tmp_path / "model.safetensors")
    same(to_huggingface(ours, "disk"), on_disk)
    same(official(on_disk), to_dinov2(ours))
