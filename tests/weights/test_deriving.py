"""An encoder from weights: options at their defaults are taken from them, what contradicts or is unknown is named."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.build import build, fitted
from multissl.configs.image import dino
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.positions import Position
from multissl.options import apply, read
from multissl.recipe import Recipe
from multissl.weights.hubs import open_place
from multissl.weights.layouts.dinov2 import to_dinov2
from multissl.weights.loading import derive_configs, load_state
from multissl.weights.released import licence_line, licence_of, released, released_as, released_heads
from tests.weights.test_containers import encoder, same

FILE = "weights.pth"


def recipe(
    place: object, cfg: TransformerEncoder.Config | None = None, patch: int = 4, size: int = 16
) -> Recipe:
    made = dino.default()
    made.modality = made.modality.replace(size=size, local_size=size // 2, patch=patch)
    made.encoders["image"] = cfg or TransformerEncoder.Config()
    made.init, made.evals = str(place), {}
    return made


def written(folder: Path, state: dict[str, Tensor], name: str = FILE) -> Path:
    torch.save(state, folder / name)
    return folder / name


def derived(place: object, **options: Any) -> TransformerEncoder.Config:
    cfg = derive_configs({"image": TransformerEncoder.Config(**options)}, str(place))["image"]
    assert isinstance(cfg, TransformerEncoder.Config)
    return cfg


def test_sizes_and_conventions_are_taken_and_a_run_is_built(tmp_path: Path) -> None:
    theirs = encoder(registers=2, ffn="swiglu", position=Position(offset=0.0, antialias=True))
    place = written(tmp_path, to_dinov2(theirs))
    made = fitted(recipe(place, TransformerEncoder.Config(heads=3, drop_path=0.2)))
    cfg: Any = made.encoders["image"]
    assert (cfg.dim, cfg.depth, cfg.heads, cfg.registers, cfg.ffn) == (24, 2, 3, 2, "swiglu")
    assert (cfg.position.offset, cfg.position.antialias, cfg.position.grid) == (0.0, True, (4, 4))
    assert cfg.drop_path == 0.2  # what weights do not tell stays
    assert fitted(made).encoders == made.encoders
    parts = build(made, torch.device("cpu"))
    assert same(parts.learner.encoders["image"], theirs)


def test_what_contradicts_is_named_with_both_values(tmp_path: Path) -> None:
    place = written(tmp_path, to_dinov2(encoder()))
    with pytest.raises(ValueError, match="ask for") as error:
        derived(place, heads=3, dim=48, norm_eps=1e-5, depth=3)
    said = str(error.value)
    for part in (
        "dim 24 (here 48)",
        "depth 2 (here 3)",
        "norm_eps 1e-06 (here 1e-05)",
        "--encoders.image transformer",
    ):
        assert part in said
    words = [w for way in re.findall(r"(--encoders[\w.]+) (\S+) \(here", said) for w in way]
    asked = recipe(place, TransformerEncoder.Config(heads=3, dim=48, norm_eps=1e-5, depth=3))
    fitted(apply(asked, read(words)))
    reset = apply(asked, read(["--encoders.image", "transformer", "--encoders.image.heads", "3"]))
    assert fitted(reset).encoders == fitted(apply(asked, read(words))).encoders


@pytest.mark.parametrize("layout", ["dino", "ibot", "moco_v3", "mae", "timm_vit"])
def test_plain_names_are_taken_for_whose_they_are_said_to_be(layout: str, tmp_path: Path) -> None:
    state = {n: t for n, t in to_dinov2(encoder(layerscale=0.0)).items() if n != "mask_token"}
    place = written(tmp_path, state)
    with pytest.raises(ValueError, match="say whose they are, as in --init dino:FILE"):
        derived(place, heads=3)
    position = derived(f"{layout}:{place}", heads=3).position
    expected = {"dino": (0.1, False), "ibot": (0.1, False), "mae": (0.0, False)}.get(layout, (0.0, True))
    assert (position.offset, position.antialias) == expected


def test_clips_of_vjepa_are_of_the_first_or_the_second(tmp_path: Path) -> None:
    state = {
        "patch_embed.proj.weight": torch.zeros(24, 3, 2, 4, 4), "patch_embed.proj.bias": torch.zeros(24),
        "pos_embed": torch.zeros(1, 8, 24), "norm.weight": torch.ones(24), "norm.bias": torch.zeros(24),
        "blocks.0.attn.qkv.weight": torch.zeros(72, 24), "blocks.0.norm1.weight": torch.ones(24),
        "blocks.0.mlp.fc1.weight": torch.zeros(48, 24),
    }  # fmt: skip
    place = written(tmp_path, state)
    with pytest.raises(ValueError, match="say which, as in --init vjepa:FILE or --init vjepa2:FILE"):
        derived(place, heads=2)
    assert derived(f"vjepa:{place}", heads=2).position.kind == "learned"
    second = derived(f"vjepa2:{place}", heads=2)
    assert (second.position.kind, second.position.base, second.class_token) == ("rope", 10000.0, False)


def test_what_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    place = written(tmp_path, to_dinov2(encoder()))
    with pytest.raises(ValueError, match=r"nothing in the file tells heads.*--encoders\.image\.heads N"):
        derived(place)
    face = {f"encoder.layer.0.{n}": t for n, t in {
        "layernorm_before.weight": torch.ones(24), "attention.attention.query.weight": torch.zeros(24, 24),
        "attention.attention.key.weight": torch.zeros(24, 24), "attention.attention.value.weight": torch.zeros(24, 24),
        "intermediate.dense.weight": torch.zeros(48, 24),
    }.items()}  # fmt: skip
    face["embeddings.patch_embeddings.projection.weight"] = torch.zeros(24, 3, 4, 4)
    place = written(tmp_path, face, "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"tells heads, norm_eps: name the folder that holds its config\.json"
    ):
        derived(place)
    config = {"model_type": "vit", "num_attention_heads": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert (derived(place).heads, derived(tmp_path).norm_eps) == (2, 1e-12)
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(ValueError, match=r"hidden_act=relu of config\.json: known are gelu"):
        derived(place)


def test_unknown_layouts_and_names_are_refused_with_the_nearest() -> None:
    words = (
        r"the 2 names of these weights, such as stem\.0\.weight, .* are in no layout.*nearest is \w+, with 1"
    )
    with pytest.raises(ValueError, match=words):
        load_state(encoder(), {"stem.0.weight": torch.zeros(2, 2), "norm.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"known here: known are dinov2, dinov3"):
        load_state(encoder(), {"stem.0.weight": torch.zeros(2, 2)})
    state = to_dinov2(encoder())
    with pytest.raises(ValueError, match=r"no layout is called 'dinov4'; did you mean dinov3\?"):
        load_state(encoder(), state, layout="dinov4")
    with pytest.raises(ValueError, match="library is no layout of a transformer"):
        load_state(encoder(), state, layout="library")
    with pytest.raises(ValueError, match=r"do not fit the encoder: unknown blocks\.0\.attn\.extra"):
        load_state(encoder(), state | {"blocks.0.attn.extra": torch.zeros(1)})


def test_patches_and_channels_of_another_size_are_resampled_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(
        "multissl.weights.loading.log.warning", lambda text, *values: lines.append(text % values)
    )
    theirs = encoder()
    place = written(tmp_path, to_dinov2(theirs))
    parts = build(
        fitted(recipe(place, TransformerEncoder.Config(heads=3), patch=8, size=32)), torch.device("cpu")
    )
    ours: Any = parts.learner.encoders["image"]
    assert ours.tokenizer.patch_embed.proj.weight.shape == (24, 3, 8, 8)
    assert any("patches of 4x4 are resampled to 8x8 (FlexiViT)" in line for line in lines)
    table: Any = theirs.tokenizer.pos_embed
    assert torch.equal(ours.tokenizer.pos_embed, table)  # as many tokens
    # a picture that is resized to the larger patch gives the tokens of before
    x = torch.randn(1, 3, 16, 16)
    larger = torch.nn.functional.interpolate(
        x.unfold(2, 4, 4).unfold(3, 4, 4).reshape(-1, 1, 4, 4), size=(8, 8), mode="bicubic", antialias=True
    )
    larger = larger.view(1, 3, 4, 4, 8, 8).permute(0, 1, 2, 4, 3, 5).reshape(1, 3, 32, 32)
    torch.testing.assert_close(ours.tokenizer.embed(larger), theirs.tokenizer.embed(x), rtol=1e-4, atol=1e-4)


# the table of released models


def test_the_table_of_released_models_is_whole() -> None:
    from multissl import registry

    for model in released():
        assert model.layout in registry.names("layouts")
        assert model.dim % model.heads == 0
        assert model.size == 0 or model.size % model.patch == 0
        assert len(model.mean) == len(model.std) == 3
    names = [m.name for m in released()]
    assert len(names) == len(set(names))
    assert released_as(Path("dinov3_vits16_pretrain_lvd1689m-08c60483.pth")).heads == 6  # type: ignore[union-attr]
    assert released_as(Path("mine.pth")) is None


def test_the_licence_is_said_and_non_commercial_ones_by_that_word() -> None:
    assert "MIT" in licence_line("image", "vjepa2", None, {})
    assert "CC-BY-NC-4.0: no commercial use" in licence_line(
        "image", "mae", Path("mae_pretrain_vit_base.pth"), {}
    )
    assert licence_of("huggingface_vit", None, {"model_type": "vit_mae"}) == "CC-BY-NC-4.0"
    assert "is not known here" in licence_line("image", "timm_vit", None, {})


def test_heads_that_no_file_holds_come_from_the_table() -> None:
    state = {"patch_embed.proj.weight": torch.zeros(384, 3, 16, 16)} | {
        f"blocks.{i}.norm1.weight": torch.zeros(1) for i in range(12)
    }
    assert released_heads("moco_v3", state) == 12
    assert released_heads("dino", state) == 6
    assert released_heads("timm_vit", state) is None


# hubs


@pytest.mark.parametrize("place", ["hf:someone/nothing", "timm:vit_tiny_patch16_224"])
@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://nowhere.invalid"])
def test_without_network_a_hub_is_answered_in_a_line_and_soon(
    place: str, endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"is not in the cache, and .* cannot be reached") as error:
        open_place(place)
    assert time.monotonic() - began < 5
    assert "\n" not in str(error.value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        open_place(place)


def test_a_hub_name_may_be_a_folder_and_must_be_a_name(tmp_path: Path) -> None:
    written(tmp_path, to_dinov2(encoder()), "pytorch_model.bin")
    assert "blocks.0.norm1.weight" in open_place(f"hf:{tmp_path}").contents
    with pytest.raises(ValueError, match="is no name of a model"):
        open_place("hf:../../etc/passwd x")


# the page


def test_the_table_of_the_page_is_what_the_tests_compare() -> None:
    from tests.weights import table

    page = table.PAGE.read_text(encoding="utf-8")
    assert page == table.written(page), "run python -m tests.weights.table"
    assert page.count("| `") >= 26
