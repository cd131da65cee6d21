"""Official names that no library writes: networks of a library under the names that their authors' files have.

The tensors are a library's, so its features are what has to come out; the names are those of the authors' code.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from multissl.contract.plans import StreamSpec, tokens_along
from multissl.layers.positions import sincos
from multissl.weights.loading import published_layout
from multissl.weights.unwrapping import strip
from tests.weights.test_libraries import (
    ANY,
    CLIP,
    NARROW,
    PLAIN,
    SIZES,
    TIMM,
    close,
    loaded,
    run,
    shaken,
    spec_of,
)

pytestmark = pytest.mark.reference
State = dict[str, Tensor]


def renamed(state: State, pairs: list[tuple[str, str]]) -> State:
    """A state under other names."""
    new: State = {}
    for name, tensor in state.items():
        for old, better in pairs:
            name = re.sub(old, better, name)
        new[name] = tensor
    return new


FACE_TO_TIMM = [
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^layernorm\.", "norm."),
    (r"attention\.(attention\.)?(query|q_proj)", "attn.q"),
    (r"attention\.(attention\.)?(key|k_proj)", "attn.k"),
    (r"attention\.(attention\.)?(value|v_proj)", "attn.v"),
    (r"attention\.(output\.dense|o_proj)", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(?<!attention\.)output\.dense", "mlp.fc2"),
]


def packed(state: State) -> State:
    """Queries, keys and values in one linear; biases as they are."""
    for name in [n for n in state if n.endswith("attn.q.weight")]:
        block = name.removesuffix("q.weight")
        state[f"{block}qkv.weight"] = torch.cat([state.pop(f"{block}{p}.weight") for p in "qkv"])
        if f"{block}k.bias" in state:
            state[f"{block}qkv.bias"] = torch.cat([state.pop(f"{block}{p}.bias") for p in "qkv"])
        elif f"{block}q.bias" in state:
            state[f"{block}q_bias"], state[f"{block}v_bias"] = (state.pop(f"{block}{p}.bias") for p in "qv")
    return state


@pytest.mark.parametrize("fine_tuned", [False, True], ids=["pretrained", "fine-tuned"])
def test_mae_by_its_authors(fine_tuned: bool, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    pool = {"global_pool": "avg", "fc_norm": True} if fine_tuned else {"global_pool": "token"}
    theirs = shaken(timm.create_model("vit_tiny_patch16_224", **{**ANY, **pool}))
    theirs.pos_embed.data = sincos((4, 4), 24)
    state: State = dict(theirs.state_dict())
    if not fine_tuned:  # `mae_visualize_*` holds the decoder, whose mask token is as wide as that is
        state |= {"mask_token": torch.zeros(1, 1, 12), "decoder_pos_embed": torch.zeros(1, 17, 12)}
        state |= {"decoder_blocks.0.norm1.weight": torch.ones(12), "decoder_pred.weight": torch.zeros(48, 12)}
    torch.save({"model": state, "epoch": 800}, tmp_path / "mae.pth")
    layout = published_layout(strip(state))
    assert layout is not None
    assert layout.name == "mae"
    ours = loaded(tmp_path / "mae.pth", spec_of(TIMM[0]), heads=2)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        close(run(ours, x)[2], theirs(x))


def test_moco_v3_and_ijepa_are_told_by_their_fixed_tables(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    theirs = shaken(timm.create_model("vit_tiny_patch16_224", **ANY))
    state: State = dict(theirs.state_dict())
    tables = {"mae": sincos((4, 4), 24), "moco_v3": sincos((4, 4), 24, column_first=False)}
    for name, table in tables.items():
        found = published_layout(strip(state | {"pos_embed": table}))
        assert found is not None
        assert found.name == name
    without = {n: t for n, t in state.items() if n != "cls_token"} | {"pos_embed": sincos((4, 4), 24)[:, 1:]}
    found = published_layout(strip(without))
    assert found is not None
    assert found.name == "ijepa"


def test_videomae_by_its_authors(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(**PLAIN, **CLIP, use_mean_pooling=False, layer_norm_eps=1e-6)
    theirs = shaken(transformers.VideoMAEModel(config))
    state = packed(renamed(dict(theirs.state_dict()), FACE_TO_TIMM))
    assert "blocks.0.attn.q_bias" in state
    torch.save({"module": {f"encoder.{n}": t for n, t in state.items()}}, tmp_path / "checkpoint.pth")
    spec = StreamSpec(kind="grid", shape=(3, 4, 16, 16), num_tokens=32, patch=(2, 4, 4))
    ours = loaded(tmp_path / "checkpoint.pth", spec, heads=2)
    x = torch.randn(2, 3, 4, 16, 16)
    with torch.no_grad():
        close(run(ours, x)[1], theirs(x.transpose(1, 2)).last_hidden_state)


def test_ast_by_its_authors(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"patch_size": 4, "max_length": 21, "num_mel_bins": 16, "time_stride": 3, "frequency_stride": 2}
    config = transformers.ASTConfig(**SIZES, intermediate_size=48, **sizes, layer_norm_eps=1e-6)
    theirs = shaken(transformers.ASTModel(config))
    state = packed(renamed(dict(theirs.state_dict()), FACE_TO_TIMM))
    wrapped: State = {f"module.v.{n}": t for n, t in state.items()}
    wrapped["module.mlp_head.0.weight"] = torch.zeros(24)
    torch.save(wrapped, tmp_path / "audioset.pth")
    grid = tokens_along((21, 16), (4, 4), (3, 2))
    spec = StreamSpec(
        kind="grid", shape=(1, 21, 16), num_tokens=grid[0] * grid[1], patch=(4, 4), stride=(3, 2)
    )
    ours = loaded(tmp_path / "audioset.pth", spec, heads=2)
    x = torch.randn(2, 1, 21, 16)
    with torch.no_grad():
        close(run(ours, x)[2], theirs(x[:, 0]).pooler_output)


@pytest.mark.parametrize("shared", [False, True], ids=["each block", "shared"])
def test_beit_and_data2vec_by_their_authors(shared: bool, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    options = {**NARROW, "use_abs_pos_emb": False, "init_values": 0.1, "global_pool": "avg"}
    options |= {"use_rel_pos_bias": not shared, "use_shared_rel_pos_bias": shared}
    theirs = shaken(timm.models.Beit(**options))
    state: State = dict(theirs.state_dict())
    assert any("relative_position_bias_table" in name for name in state)
    torch.save({"model": state}, tmp_path / "finetuned_base.pt")
    ours = loaded(tmp_path / "finetuned_base.pt", spec_of(TIMM[0]))
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        close(run(ours, x)[1], theirs.forward_features(x))
        close(run(ours, x)[2], theirs.forward_head(theirs.forward_features(x), pre_logits=True))


@pytest.mark.parametrize(("layout", "act"), [("openai_clip", "quick_gelu"), ("open_clip", "gelu")])
def test_clip_by_openai_and_open_clip(layout: str, act: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(**PLAIN, hidden_act=act)
    theirs = shaken(transformers.CLIPVisionModel(config))
    pairs = [
        (r"^(vision_model\.)?embeddings\.class_embedding$", "class_embedding"),
        (r"^(vision_model\.)?embeddings\.patch_embedding\.", "conv1."),
        (r"^(vision_model\.)?embeddings\.position_embedding\.weight$", "positional_embedding"),
        (r"^(vision_model\.)?pre_layrnorm", "ln_pre"),
        (r"^(vision_model\.)?post_layernorm", "ln_post"),
        (r"^(vision_model\.)?encoder\.layers\.", "transformer.resblocks."),
        (r"layer_norm", "ln_"),
        (r"self_attn\.([qkv])_proj", r"attn.\1"),
        (r"self_attn\.out_proj", "attn.out_proj"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
    ]
    state = packed(renamed({n: t for n, t in theirs.state_dict().items() if "position_ids" not in n}, pairs))
    state = {n.replace("attn.qkv.", "attn.in_proj_"): t for n, t in state.items()}
    visual: State = {f"visual.{n}": t for n, t in state.items()} | {"visual.proj": torch.zeros(24, 8)}
    visual |= {
        "token_embedding.weight": torch.zeros(5, 8),
        "transformer.resblocks.0.ln_1.weight": torch.ones(8),
    }
    torch.save(visual, tmp_path / "clip.bin")
    with pytest.raises(ValueError, match=r"nothing in the file tells act"):
        loaded(tmp_path / "clip.bin", spec_of(TIMM[0]), heads=2)
    ours = loaded(f"{layout}:{tmp_path / 'clip.bin'}", spec_of(TIMM[0]), heads=2)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        out = theirs(x)
        close(run(ours, x)[0], out.last_hidden_state)
        close(run(ours, x)[2], out.pooler_output)
