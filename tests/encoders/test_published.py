"""Recipes and model folders from strangers: their values are read, their code never runs, nothing is fetched."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from multissl.config import to_dict
from multissl.configs.image import dino
from multissl.contract.data import Views
from multissl.contract.plans import StreamSpec
from multissl.encoders.huggingface import HuggingFaceEncoder
from multissl.encoders.published import change_config, describe_config, read_config
from multissl.run.model import load

transformers = pytest.importorskip("transformers")
PICTURES = StreamSpec(kind="grid", shape=(3, 16, 16), num_tokens=16, patch=(4, 4))
VIT = {
    "model_type": "vit", "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4,
    "image_size": 16,
}  # fmt: skip
CODE = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedModel

Path({proof!r}).touch()

class Config(PretrainedConfig):
    model_type = "stranger"

class Model(PreTrainedModel):
    config_class = Config
"""
MAP = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}


@pytest.fixture
def proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once a stranger's code has run; whoever is asked on the terminal says yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    return tmp_path / "the code ran"


def folder(path: Path, config: dict[str, Any], proof: Path | None = None) -> str:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if proof:
        (path / "code.py").write_text(CODE.format(proof=str(proof)))
    return str(path)


@pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}, {"code_revision": "main"}])
@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "stranger", "auto_map": MAP},
        VIT | {"auto_map": MAP},
        {"model_type": "clip", "vision_config": {"model_type": "stranger", "auto_map": MAP}},
    ],
    ids=["type", "known", "nested"],
)
def test_a_folder_with_code_of_its_own_is_refused_unrun(
    tmp_path: Path, proof: Path, config: dict[str, Any], options: dict[str, Any]
) -> None:
    model = folder(tmp_path / "model", config, proof)
    with pytest.raises(ValueError, match=r"encoders\.model=.*code of its own \(auto_map\)") as error:
        HuggingFaceEncoder(HuggingFaceEncoder.Config(model=model, config=options), PICTURES)
    assert "\n" not in str(error.value)
    assert not proof.exists()


def test_a_run_of_a_stranger_is_read_without_its_code(tmp_path: Path, proof: Path) -> None:
    recipe = dino.default()
    saved = to_dict(recipe)
    model = folder(tmp_path / "model", {"model_type": "stranger", "auto_map": MAP}, proof)
    saved["encoders"]["image"] = {
        "kind": "huggingface",
        "model": model,
        "config": {"model_type": "stranger", "trust_remote_code": True},
    }
    (tmp_path / "recipe.json").write_text(json.dumps(saved))
    (tmp_path / "modality.json").write_text(json.dumps(recipe.modality.build().state()))
    save_file({"image.x": torch.zeros(1)}, tmp_path / "encoder.safetensors")
    with pytest.raises(ValueError, match=r"code of its own"):
        load(tmp_path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trust_remote_code", True),
        ("cache_dir", "elsewhere"),
        ("return_unused_kwargs", True),
        ("subfolder", "elsewhere"),
        ("_attn_implementation", "someone/kernel"),
        ("attn_implementation", "kernels-community/flash-attn"),
        ("_out_features", ["stem"]),
        ("name_or_path", "elsewhere"),
        ("to_dict", {}),
        ("save_pretrained", 1),
        ("architectures", ["ViTModel"]),
        ("return_dict", False),
    ],
)
def test_only_fields_of_the_network_are_options(tmp_path: Path, name: str, value: Any) -> None:
    described = HuggingFaceEncoder.Config(config={**VIT, name: value})
    changed = HuggingFaceEncoder.Config(model=folder(tmp_path, VIT), config={name: value})
    for config in (described, changed):
        with pytest.raises(ValueError, match=rf"encoders\.config has no field '{name}'; "):
            config.build(PICTURES)


def test_fields_are_changed_by_any_of_their_names_and_in_nested_configs(tmp_path: Path) -> None:
    config = read_config(folder(tmp_path, {"model_type": "clip", "vision_config": {"hidden_size": 48}}))
    change_config(config, {"projection_dim": 7, "vision_config": {"num_hidden_layers": 3}})
    vision = config.vision_config
    assert (config.projection_dim, vision.hidden_size, vision.num_hidden_layers) == (7, 48, 3)
    assert isinstance(vision, transformers.CLIPVisionConfig)
    made = describe_config(
        {"model_type": "gpt2", "hidden_size": 8, "n_layer": 2}, {"vocab_size": 5, "image_size": 4}
    )
    assert (made.n_embd, made.num_hidden_layers, made.vocab_size) == (8, 2, 5)
    swin = describe_config({"model_type": "swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}, {})
    assert swin.hidden_size == 16  # what follows from other fields follows from the changed ones
    nested = describe_config({"model_type": "clip", "vision_config": {"num_hidden_layers": 3}}, {})
    assert nested.vision_config.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projection_din": 3}, r"encoders\.config has no field 'projection_din'; did you mean projection_dim\?"),
        ({"model_type": "bert"}, r"encoders\.config\.model_type='bert': the model is a 'clip'; leave model_type out"),
        ({"vision_config": 3}, r"encoders\.config\.vision_config=3: want a mapping"),
        ({"vision_config": {"hiden_size": 3}}, r"encoders\.config\.vision_config has no field 'hiden_size'; did you"),
        ({"vision_config": {"model_type": "vit"}}, r"encoders\.config\.vision_config\.model_type='vit'"),
        ({"vision_config": {"trust_remote_code": True}}, r"vision_config has no field 'trust_remote_code'"),
        ({"vision_config": {"auto_map": MAP}}, r"encoders\.config brings code of its own"),
        ({"projection_dim": "wide"}, r"encoders\.config: .*'projection_dim' expected int, got str"),
    ],
)  # fmt: skip
def test_wrong_changes_are_refused_in_one_line(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    config = read_config(folder(tmp_path, {"model_type": "clip"}))
    with pytest.raises(ValueError, match=message) as error:
        change_config(config, options)
    assert "\n" not in str(error.value)


def test_the_default_type_says_nothing_beside_a_model(tmp_path: Path) -> None:
    config = VIT | {"model_type": "deit"}
    assert (
        HuggingFaceEncoder(
            HuggingFaceEncoder.Config(model=folder(tmp_path, config)), PICTURES
        ).net.config.model_type
        == "deit"
    )
    other = HuggingFaceEncoder.Config(model=str(tmp_path), config={"model_type": "vit", "qkv_bias": False})
    with pytest.raises(ValueError, match="the model is a 'deit'"):
        other.build(PICTURES)


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_an_attention_named_by_a_folder_is_not_fetched(tmp_path: Path, name: str) -> None:
    encoder = HuggingFaceEncoder(
        HuggingFaceEncoder.Config(model=folder(tmp_path, {**VIT, name: "someone/kernel"})), PICTURES
    )
    assert encoder.net.config._attn_implementation in ("sdpa", "eager")
    assert encoder([Views(x=torch.zeros(1, 3, 16, 16), stream="image", role="clean")])[0].pooled.shape == (
        1,
        12,
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (VIT | {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized weights"),
        (
            {"model_type": "detr", "backbone": "someone/net", "use_timm_backbone": False},
            "backbone='someone/net'",
        ),
        ({"model_type": "timm_wrapper", "architecture": "local-dir:/tmp"}, "architecture='local-dir:/tmp'"),
        ({"model_type": "timm_wrapper", "model_args": {"checkpoint_path": "a.pth"}}, "'checkpoint_path'"),
        ({"model_type": "stranger"}, "encoders.model=.*stranger"),
    ],
)
def test_folders_that_lead_elsewhere_are_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_config(folder(tmp_path, config))
    assert str(error.value).startswith(f"encoders.model={str(tmp_path)!r}")
    assert "\n" not in str(error.value)


def test_a_model_that_is_nowhere_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"encoders\.model='.*nowhere': ") as error:
        read_config(str(tmp_path / "nowhere"))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"encoders\.config\.model_type='vitt'; did you mean vit\?"):
        describe_config({"model_type": "vitt"}, {})
