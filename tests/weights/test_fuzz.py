"""Damaged and odd weights: whatever somebody puts into a file, it loads, or one line says what is wrong with it."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from multissl import registry
from multissl.contract.encoder import Encoders
from multissl.encoders.transformer import TransformerEncoder
from multissl.weights.containers import Source
from multissl.weights.layouts.dinov2 import to_dinov2
from multissl.weights.layouts.huggingface_dinov2 import to_huggingface
from multissl.weights.loading import derive_configs, load_weights
from multissl.weights.model_config import FIELDS, OF_ALL, checked
from tests.weights.test_containers import SPEC, encoder

CONFIG = {"model_type": "vit", "num_attention_heads": 3, "layer_norm_eps": 1e-6, "hidden_act": "gelu"}
JUNK: tuple[Any, ...] = (
    "two",
    "x",
    0,
    -3,
    2.5,
    7,
    True,
    None,
    [],
    [1],
    ["a"],
    [4, 4],
    {},
    {"a": 1},
    1e400,
    "",
)
WORDS = (
    "dist_token", "embeddings.distillation_token", "storage_tokens", "reg_token", "rope_embed.periods", "masked_embed",
    "decoder_pos_embed", "attn_pool.latent", "norm_pre.weight", "blocks.0.gamma_1", "blocks.0.attn.q_bias",
    "blocks.0.attn.qkv.bias_mask", "rel_pos_bias.relative_position_bias_table", "encoder.layer.0.lambda_1",
    "blocks.0.mlp.fc3.weight", "blocks.0.mlp.fc1_g.weight", "class_embedding", "head.probe", "mask_token",
    "fc_norm.weight", "head.attention.in_proj_weight", "encoder.relative_position_bias.relative_position_bias_table",
)  # fmt: skip
"""Names by which layouts are known or that they turn into others."""


def place_states() -> dict[str, dict[str, Tensor]]:
    """Return small weights, by the layout that is named before the file or another word where contents tell it."""
    plain = {n: t for n, t in to_dinov2(encoder(layerscale=0.0)).items() if n != "mask_token"}
    face = to_huggingface(encoder(layerscale=0.0))
    words = {"norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense"}  # fmt: skip
    vit = {n: t for n, t in face.items() if "layer_scale" not in n}
    for old, new in words.items():
        vit = {n.replace(old, new): t for n, t in vit.items()}
    gated = to_dinov2(encoder(registers=2, ffn="swiglu"))
    eva = {n.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): t for n, t in gated.items()}
    clips = plain | {
        "patch_embed.proj.weight": plain["patch_embed.proj.weight"][:, :, None].repeat(1, 1, 2, 1, 1)
    }
    parts = {
        n.replace("attn.qkv.bias", "attn.q_bias"): t[:24] if "qkv.bias" in n else t for n, t in plain.items()
    }
    parts |= {n.replace("q_bias", "v_bias"): t for n, t in parts.items() if "q_bias" in n}
    return {
        "": to_dinov2(encoder()), "registers": gated, "face": face, "vit": vit, "dino": plain, "timm_vit": plain,
        "mae": plain, "ijepa": plain, "moco_v3": {f"module.base_encoder.{n}": t for n, t in plain.items()},
        "timm_dinov3": eva, "dinov3": {n.replace("register", "storage"): t for n, t in gated.items()},
        "vjepa2": clips, "data2vec_vision": parts, "ast": plain | {"dist_token": plain["cls_token"]},
        "videomae": parts, "huggingface_ast": vit | {"embeddings.distillation_token": vit["embeddings.cls_token"]},
        "huggingface_siglip": vit, "huggingface_vjepa2": vit, "openai_clip": plain,
    }  # fmt: skip


def shaped(rng: random.Random, tensor: Tensor) -> Tensor:
    """Return a tensor in another shape."""
    tensor = tensor if tensor.layout == torch.strided and not tensor.is_meta else torch.zeros(2, 2)
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda t: torch.tensor(1.0), lambda t: t[None], lambda t: t.flatten(), lambda t: t[:0], lambda t: t[..., :0],
        lambda t: torch.cat([t, t]), lambda t: torch.cat([t, t], -1), lambda t: t[:1], lambda t: t[..., :5],
        lambda t: t.mT, lambda t: t.expand(3, *t.shape), lambda t: t[..., None, None],
    ]  # fmt: skip
    return rng.choice(ways)(tensor) if tensor.dim() > 1 else rng.choice(ways[:9])(tensor.reshape(-1))


def typed(rng: random.Random, tensor: Tensor) -> Any:
    """Return something else in a tensor's place."""
    tensor = tensor if tensor.layout == torch.strided and not tensor.is_meta else torch.zeros(2)
    kinds = (
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int8,
        torch.complex64,
        torch.bool,
        torch.float8_e4m3fn,
    )
    others: list[Callable[[], Any]] = [
        lambda: tensor.to(rng.choice(kinds)), lambda: tensor.to_sparse(), lambda: tensor.to("meta"),
        lambda: torch.full_like(tensor, float("nan")), lambda: tensor / 0, lambda: "text", lambda: {"w": tensor},
        lambda: torch.nn.Parameter(tensor.float()),
        lambda: torch.quantize_per_tensor(tensor.float(), 1.0, 0, torch.qint8),
    ]  # fmt: skip
    return rng.choice(others)()


def changed(rng: random.Random, state: dict[Any, Any]) -> dict[Any, Any]:
    """Return weights with something wrong in them."""
    state = dict(state)
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice([n for n, t in state.items() if isinstance(t, Tensor) and t.dtype == torch.float32])
        kind = rng.randrange(8)
        if kind < 3:
            state[name] = shaped(rng, state[name])
        elif kind == 3:
            state[name] = typed(rng, state[name])
        elif kind == 4:
            del state[name]
        elif kind == 5:
            state[rng.choice((3, None, ("a", 1), f"{name}.more", f"model.{name}"))] = state.pop(name)
        elif kind == 6:
            state[rng.choice(WORDS)] = state[name]
        else:
            state = {rng.choice(("model", "teacher", "other", 3)): state}
            return state
    return state


def loads(layout: str, path: Path) -> str:
    """Return nothing where weights load into an encoder made for them, else the line that says why not."""
    place = f"{layout}:{path}" if layout in registry.names("layouts") else str(path)
    try:
        cfg = derive_configs({"image": TransformerEncoder.Config(heads=3, depth=2)}, place)["image"]
        load_weights(Encoders({"image": cfg.build(SPEC)}), place)
    except ValueError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, Tensor]]:
    return place_states()


SEEDS = 300


def test_whatever_is_wrong_is_said_in_a_line_that_names_the_file(
    states: dict[str, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, refused = Path("folder/pytorch_model.bin"), 0
    for seed in range(SEEDS):
        rng = random.Random(seed)
        layout = rng.choice([*states])
        state, config = changed(rng, states[layout]), dict[str, Any](CONFIG)
        for _ in range(rng.choice((0, 0, 1, 2))):
            config[rng.choice([*FIELDS])] = rng.choice(JUNK)
        known = layout if layout in registry.names("layouts") else ""
        opened = functools.partial(in_memory, state, config, known)
        monkeypatch.setattr("multissl.weights.loading.open_place", opened)
        try:
            said = loads(layout, path)
        except Exception as error:
            raise AssertionError(f"seed {seed} ({layout or 'dinov2'}) raises {error!r}") from error
        assert not said or (str(path) in said and "\n" not in said), f"seed {seed}: {said}"
        refused += bool(said)
    assert 0.5 * SEEDS < refused < 0.98 * SEEDS  # both happen


def in_memory(state: dict[Any, Any], config: dict[str, Any], layout: str, place: str | Path) -> Source:
    """Return what a file of these contents would be opened as; files have tests of their own."""
    contents = {str(name): value for name, value in state.items()}
    return Source(contents, Path(str(place).rpartition(":")[2]), checked(config, OF_ALL), layout)


def test_what_is_not_changed_loads(states: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    for layout in ("", "registers", "face", "vit", "dino", "timm_vit", "mae", "moco_v3"):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        torch.save(states[layout], path)
        assert loads(layout, path) == ""
