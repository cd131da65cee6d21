"""Golden cases about videos: tubes and multi-block masks (statistics of draws), and V-JEPA's nets (values).

Covered of stochastic: videomae_tube_mask, vjepa_masks; of masked_modeling: vjepa_model; of encoders_hf: hf_videomae
(with its table, sincos_pos_embed's video1d). Losses and targets (videomae_loss, vjepa_loss) stand with the other
masked methods.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from multissl.contract.plans import StreamSpec, ViewPlan
from multissl.layers.decoder import Decoder, gather_tokens, places
from multissl.layers.positions import sincos
from multissl.layers.tokenizers import Patches
from multissl.layers.transformer import Trunk
from multissl.losses.rebuild import normalize, values_loss
from multissl.modalities.masks import draw_masks
from multissl.modalities.masks import draw_masks as draw_clip_masks
from multissl.modalities.masks.cells import hidden_each
from multissl.modalities.masks.unions import Lasting, union_masks
from multissl.modalities.video.adapter import Video
from multissl.modalities.video.clips import tubelets
from multissl.modalities.views import pack_masks
from multissl.random import RowRandom

from . import Case, cases
from .test_golden_masked import check_share, fill
from .test_golden_stochastic import near, summary

pytestmark = pytest.mark.reference


@pytest.mark.parametrize("case", cases("stochastic", "videomae_tube_mask"))
def test_golden_tubes(case: Case) -> None:
    hyper, grid = case.hyper, tuple(case.hyper["win"])
    plan = ViewPlan(num_global=1, mask_ratio=(hyper["ratio"], hyper["ratio"]))
    rng = RowRandom((0, 0), 0, hyper["n"], hyper["n"])
    (mask,) = draw_clip_masks(plan, "tube", grid, 1, rng)
    slots = mask.hidden.unflatten(1, (grid[0], -1))  # [n, T, H*W]
    assert (slots == slots[:, :1]).all()
    near(case, "count_per_frame", slots[0, 0].sum())
    near(case, "total", mask.num_hidden)
    near(case, "position_freq", slots[:, 0].double().mean(0).reshape(grid[1:]))
    assert mask.num_hidden == hidden_each(plan, "tube", grid, hyper["n"]) == len(mask.index) // hyper["n"]


@pytest.mark.parametrize("case", cases("stochastic", "vjepa_masks"))
def test_golden_vjepa_masks(case: Case) -> None:
    hyper, grid = case.hyper, tuple(case.hyper["grid"])
    cells, slots, batch = grid[0] * grid[1], hyper["T"] // 2, hyper["B"]
    lengths: dict[str, list[int]] = {"enc": [], "pred": []}
    seen = {name: np.zeros(slots * cells) for name in lengths}
    for step in range(hyper["n_batches"]):
        rng = RowRandom((0, step), 0, batch, batch)
        shown, most = np.ones((slots, cells), bool), slots * cells
        # theirs keep int(n * (1 - ratio)) cells, as MAE does; VideoMAE's hide int(n * r)
        if hyper["kind"] == "tube":
            plan = ViewPlan(num_global=1, mask_ratio=(hyper["ratio"], hyper["ratio"]))
            hidden = draw_masks(plan, "random", grid, 1, rng)[0].hidden.numpy()
        else:
            plan = ViewPlan(
                num_global=1, num_masks=1, mask_ratio=tuple(hyper["ss"]), context_ratio=(1.0, 1.0),
                target_aspect=tuple(hyper["ar"]),
            )  # fmt: skip
            lasting = Lasting(blocks=tuple(hyper["ts"]), context=hyper["mtk"])
            hidden = union_masks(plan, grid, hyper["blocks"], rng, slots, lasting)
            shown[lasting.first_slots(slots) :] = False
            most = hyper["mk"] or hidden.shape[1]
        hidden = (
            hidden.reshape(batch, -1, cells).repeat(slots * cells // hidden.shape[1], 1).reshape(batch, -1)
        )
        for name, rows in (("enc", ~hidden & shown.reshape(-1)), ("pred", hidden)):
            # the public code cuts all lists to the shortest, last tokens first
            short = min(int(rows.sum(1).min()), most if name == "enc" else hidden.shape[1])
            lengths[name].append(short)
            kept = np.concatenate([np.flatnonzero(r)[:short] for r in rows])
            seen[name] += np.bincount(kept, minlength=slots * cells) / batch
    for name, found in lengths.items():
        summary(case, f"{name}_len", np.array(found))
        near(case, f"{name}_position_freq", (seen[name] / hyper["n_batches"]).reshape(slots, *grid))


@pytest.mark.parametrize("case", cases("masked_modeling", "vjepa_model"))
def test_golden_vjepa_nets(case: Case) -> None:
    hyper, state, given = case.hyper, case.tensors("param"), case.tensors("in")
    dtype = torch.float64 if case.manifest["dtype"] == "f64" else torch.float32
    x = given["video_u8"].to(dtype) / 128 - 1
    p, patch = hyper["p"], (2, hyper["p"], hyper["p"])
    grid = (hyper["T"] // 2, hyper["H"] // p, hyper["H"] // p)
    spec = StreamSpec(kind="grid", shape=tuple(x.shape[1:]), patch=patch, num_tokens=int(np.prod(grid)))
    for width, name in ((hyper["D"], "encoder.pos_embed"), (hyper["pD"], "predictor.predictor_pos_embed")):
        table = sincos(grid, width, uniform=hyper["up"])[:, 1:].to(dtype)
        torch.testing.assert_close(table, state[name], rtol=1e-6, atol=1e-6)
    encoder = nn.ModuleDict(
        {
            "patch_embed": Patches(3, hyper["D"], patch),
            "trunk": Trunk(hyper["D"], hyper["depth"], hyper["heads"]),
        }
    ).to(dtype)
    fill(encoder, state, {
        "encoder.patch_embed.": "patch_embed.", "encoder.blocks.": "trunk.blocks.", "encoder.norm.": "trunk.norm.",
    })  # fmt: skip
    predictor = Decoder.Config(dim=hyper["pD"], depth=hyper["pdepth"], heads=hyper["heads"]).build(
        hyper["D"], spec
    )
    predictor = predictor.to(dtype)
    fill(predictor, state, {
        f"predictor.mask_tokens.{hyper['mi']}": "mask_token", "predictor.predictor_embed.": "embed.",
        "predictor.predictor_blocks.": "trunk.blocks.", "predictor.predictor_norm.": "trunk.norm.",
    })  # fmt: skip
    predictor.pos_embed.data = F.pad(state["predictor.predictor_pos_embed"], (0, 0, 1, 0))
    tokens = encoder["patch_embed"](x).flatten(1, 3) + state["encoder.pos_embed"]
    case.check(encoder["trunk"]([tokens])[0][0], "out", "encoder_full")
    context = encoder["trunk"]([gather_tokens(tokens, given["ctx_idx"])])[0][0]
    case.check(context, "out", "encoder_context")
    _, wanted = predictor(context, given["ctx_idx"], given["tgt_idx"])
    out = state["predictor.predictor_proj.weight"], state["predictor.predictor_proj.bias"]
    case.check(F.linear(wanted, *out), "out", "pred")


def waves(count: int, dim: int) -> torch.Tensor:
    """VideoMAE's table [count, dim] over the flattened grid: ours with sines and cosines in turn, not in two halves."""
    table = sincos([count], dim)[0, 1:]
    return torch.stack([table[:, : dim // 2], table[:, dim // 2 :]], -1).flatten(1)


@pytest.mark.parametrize("case", cases("masked_modeling", "sincos_pos_embed"))
def test_golden_videomae_table(case: Case) -> None:
    case.check(waves(case.hyper["T"] * case.hyper["n"] ** 2, case.hyper["D"]), "out", "video1d")


def blocks(state: dict[str, torch.Tensor], prefix: str, width: int, depth: int, heads: int) -> Trunk:
    """Our blocks with Hugging Face's weights, whose keys have no bias; the final norm stays as it begins."""
    hidden = len(state[f"{prefix}0.intermediate.dense.bias"])
    trunk, own = Trunk(width, depth, heads, hidden=hidden, eps=1e-12), {}
    for i in range(depth):
        theirs, name = f"{prefix}{i}.", f"blocks.{i}."
        qkv = [state[f"{theirs}attention.attention.{part}.weight"] for part in ("query", "key", "value")]
        query, value = (state[f"{theirs}attention.attention.{part}.bias"] for part in ("query", "value"))
        own[f"{name}attn.qkv.weight"] = torch.cat(qkv)
        own[f"{name}attn.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
        for ours, part in {
            "attn.proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
            "norm1": "layernorm_before", "norm2": "layernorm_after",
        }.items():  # fmt: skip
            for kind in ("weight", "bias"):
                own[f"{name}{ours}.{kind}"] = state[f"{theirs}{part}.{kind}"]
    own |= {n: p for n, p in trunk.state_dict().items() if n.startswith("norm.")}
    trunk.load_state_dict(own)
    return trunk


@pytest.mark.parametrize("case", cases("encoders_hf", "hf_videomae"))
def test_golden_hf_videomae(case: Case) -> None:
    c, state, given = case.hyper["config"], case.tensors("param"), case.tensors("in")
    width, narrow, p = c["hidden_size"], c["decoder_hidden_size"], c["patch_size"]
    patch = (c["tubelet_size"], p, p)
    x = (given["video_u8"].float() / 128 - 1).transpose(1, 2)  # [B, 3, T, S, S]
    embed = Patches(3, width, patch)
    fill(embed, state, {"videomae.embeddings.patch_embeddings.projection.": "proj."})
    check_share(case, given["mask"])
    seen, hidden = places(pack_masks(given["mask"].bool()))
    tokens = embed(x).flatten(1, 3)
    count = tokens.shape[1]
    encoder = blocks(
        state, "videomae.encoder.layer.", width, c["num_hidden_layers"], c["num_attention_heads"]
    )
    _, taps = encoder(
        [gather_tokens(tokens + waves(count, width), seen)], inner=1
    )  # no norm after the last block
    mask_token = state["mask_token"].requires_grad_()
    table = waves(count, narrow).expand(len(x), -1, -1)
    shown = F.linear(taps[0][0], state["encoder_to_decoder.weight"]) + gather_tokens(table, seen)
    heads, depth = c["decoder_num_attention_heads"], c["decoder_num_hidden_layers"]
    decoder = blocks(state, "decoder.decoder_layers.", narrow, depth, heads)
    _, taps = decoder([torch.cat([shown, mask_token + gather_tokens(table, hidden)], 1)], inner=1)
    out = F.layer_norm(
        taps[0][0][:, seen.shape[1] :], [narrow], state["decoder.norm.weight"], state["decoder.norm.bias"]
    )
    logits = F.linear(out, state["decoder.head.weight"], state["decoder.head.bias"])
    case.check(logits, "out", "logits")
    mean, std = (torch.tensor(v)[:, None, None, None] for v in (Video.Config().mean, Video.Config().std))
    target = normalize(tubelets(x * std + mean, patch), "channel" if c["norm_pix_loss"] else "none", 3)
    loss = values_loss(logits, gather_tokens(target, hidden), "mse")
    loss.backward()
    case.check(loss, "out", "loss")
    case.check(mask_token.grad, "grad", "mask_token")
