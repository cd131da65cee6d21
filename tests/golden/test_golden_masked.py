"""Golden cases of masked modeling: values and gradients of other projects' code.

Covered of masked_modeling: mae_random_masking, mae_loss, mae_model, simmim_loss, videomae_loss (target and loss),
audiomae_loss (its masks stand with sound), ijepa_model_loss, vjepa_loss (without its regularizer, which is off in its
own recipes); sincos_pos_embed stands with the encoders. Of noncontrastive: data2vec_targets.
"""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.data import Mask, Views
from multissl.contract.plans import StreamSpec, ViewPlan
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.decoder import Decoder, gather_tokens, places
from multissl.layers.positions import Position
from multissl.layers.tokenizers import Patches
from multissl.layers.transformer import Trunk
from multissl.losses.data2vec import average_layers, scaled_errors
from multissl.losses.ijepa import latent_loss, latent_targets
from multissl.losses.rebuild import masked_mean, normalize, values_loss
from multissl.modalities.audio.spectrogram import patchify as cut_sound
from multissl.modalities.image.crops import patchify
from multissl.modalities.masks.cells import num_hidden
from multissl.modalities.views import pack_masks

from . import Case, cases

pytestmark = pytest.mark.reference


def fill(module: nn.Module, state: dict[str, Tensor], names: dict[str, str]) -> None:
    """Give a module the tensors of a case, renamed by what they begin with; nothing may be missing or left over."""
    own = dict(module.named_parameters())
    used = set()
    with torch.no_grad():
        for old, new in names.items():
            for name, tensor in state.items():
                if name == old or (old.endswith(".") and name.startswith(old)):
                    used.add(new + name.removeprefix(old))
                    own[new + name.removeprefix(old)].copy_(tensor)
    assert used == own.keys(), own.keys() - used


def square(side: int, patch: int) -> StreamSpec:
    return StreamSpec(
        kind="grid", shape=(3, side, side), patch=(patch, patch), num_tokens=(side // patch) ** 2,
        target_dim=3 * patch**2,
    )  # fmt: skip


def pixels(case: Case) -> Tensor:
    dtype = torch.float64 if case.manifest["dtype"] == "f64" else torch.float32
    return (case.tensors("in")["image_u8"].to(dtype) / 128 - 1).requires_grad_()


def check_share(case: Case, mask: Tensor) -> None:
    """Compare the hidden tokens of each row [B, N] with what our masks hide of a view at the ratio of the case."""
    ratio, tokens = case.hyper["ratio"], mask[0].numel()
    plan = ViewPlan(num_global=1, mask_ratio=(ratio, ratio))
    assert mask.flatten(1).sum(1).tolist() == [num_hidden(plan, "random", tokens, len(mask))] * len(mask)


@pytest.mark.parametrize("case", cases("masked_modeling", "mae_random_masking"))
def test_golden_mae_keeps_as_many_tokens(case: Case) -> None:
    hyper, out, x = case.hyper, case.tensors("out"), case.tensors("in")["x"]
    plan = ViewPlan(num_global=1, mask_ratio=(hyper["ratio"], hyper["ratio"]))
    mask = pack_masks(out["mask"].bool())
    assert num_hidden(plan, "random", hyper["L"], hyper["B"]) == mask.num_hidden
    seen, hidden = places(mask)
    # The official order is the shuffled one: token i lies at ids_restore[i].
    kept, shuffled = gather_tokens(x, seen), out["ids_restore"].gather(1, seen)
    torch.testing.assert_close(kept, gather_tokens(out["x_masked"], shuffled), rtol=0, atol=0)
    assert (out["ids_restore"].gather(1, hidden) >= seen.shape[1]).all()


@pytest.mark.parametrize("case", cases("masked_modeling", "mae_loss"))
def test_golden_mae_loss(case: Case) -> None:
    given = case.tensors("in")
    target, pred = patchify(given["imgs"], case.hyper["p"]), given["pred"].requires_grad_()
    case.check(target, "out", "patchified")
    norm = "token" if case.hyper["norm"] else "none"
    loss = values_loss(pred, normalize(target, norm), "mse", given["mask"])
    loss.backward()
    case.check(loss, "out", "loss")
    case.check(pred.grad, "grad", "pred")


@pytest.mark.parametrize("case", cases("masked_modeling", "audiomae_loss"))
def test_golden_audiomae_loss(case: Case) -> None:
    given, hyper = case.tensors("in"), case.hyper
    size, step = (hyper["p"],) * 2, (hyper["stride"],) * 2
    target, pred = cut_sound(given["spec"].squeeze(1), size, step), given["pred"].requires_grad_()
    case.check(target, "out", "patchified")
    loss = values_loss(pred, normalize(target, "token" if hyper["norm"] else "none"), "mse", given["mask"])
    loss.backward()
    case.check(loss, "out", "loss")
    case.check(pred.grad, "grad", "pred")


@pytest.mark.parametrize("case", cases("masked_modeling", "videomae_loss"))
def test_golden_videomae_loss(case: Case) -> None:
    given, p = case.tensors("in"), case.hyper["p"]
    shape = (1, 3, 1, 1, 1)
    mean = torch.tensor((0.485, 0.456, 0.406)).to(given["videos"]).view(shape)
    std = torch.tensor((0.229, 0.224, 0.225)).to(given["videos"]).view(shape)
    x = given["videos"] * std + mean  # the official targets are un-normalized pixels
    b, c, t, h, w = x.shape
    cut = x.reshape(b, c, t // 2, 2, h // p, p, w // p, p).permute(0, 2, 4, 6, 3, 5, 7, 1)
    tokens = cut.reshape(b, -1, 2 * p * p * c)  # time, row, column, channel
    target = normalize(tokens, "channel" if case.hyper["norm"] else "none", c)
    check_share(case, given["mask"])
    _, hidden = places(pack_masks(given["mask"]))
    case.check(gather_tokens(target, hidden), "out", "labels")
    pred = given["pred"].requires_grad_()
    loss = values_loss(pred, gather_tokens(target, hidden), "mse")
    loss.backward()
    case.check(loss, "out", "loss")
    case.check(pred.grad, "grad", "pred")


@pytest.mark.parametrize("case", cases("masked_modeling", "simmim_loss"))
def test_golden_simmim_loss(case: Case) -> None:
    given, stride, patch = case.tensors("in"), case.hyper["stride"], case.hyper["ps"]
    parameters = case.tensors("param")
    features = given["features"].requires_grad_()  # [B, C, h, w], a token each
    kernel = parameters["decoder.0.weight"].requires_grad_()

    def order(
        x: Tensor,
    ) -> Tensor:  # pixel shuffle reads (channel, row, column), a token's values end in the channel
        return x.unflatten(0, (3, stride, stride)).permute(1, 2, 0, *range(3, x.dim() + 2)).flatten(0, 2)

    tokens = features.flatten(2).mT  # [B, N, C]
    pred = F.linear(tokens, order(kernel.flatten(1)), order(parameters["decoder.0.bias"]))
    close_to(case, pred, patchify(case.tensors("out")["reconstruction"], stride), "reconstruction")
    fine = given["mask"].repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]  # [B, 1, H, W]
    hidden = patchify(
        fine.expand_as(given["image"]).contiguous(), stride
    )  # by value: masks may be finer than tokens
    loss = values_loss(pred, patchify(given["image"], stride), "l1", hidden)
    loss.backward()
    case.check(loss, "out", "loss")
    case.check(features.grad, "grad", "features")
    case.check(kernel.grad, "grad", "decoder_weight")


@pytest.mark.parametrize("case", cases("masked_modeling", "mae_model"))
def test_golden_mae_model(case: Case) -> None:
    hyper, state, out = case.hyper, case.tensors("param"), case.tensors("out")
    x, spec = pixels(case), square(hyper["H"], hyper["p"])
    position = Position(kind="sincos")
    cfg = TransformerEncoder.Config(
        dim=hyper["D"], depth=hyper["depth"], heads=hyper["heads"], position=position
    )
    encoder: Any = TransformerEncoder(cfg, spec).to(x.dtype)
    encoder.prepare_for(frozenset({"drop"}))
    state["tokenizer.mask_token"] = torch.zeros(
        1, hyper["D"]
    )  # idle here, and absent from the official encoder
    fill(encoder, state, {
        "cls_token": "tokenizer.cls_token", "tokenizer.mask_token": "tokenizer.mask_token",
        "patch_embed.": "tokenizer.patch_embed.", "blocks.": "trunk.blocks.", "norm.": "trunk.norm.",
    })  # fmt: skip
    decoder = Decoder.Config(dim=hyper["dD"], depth=hyper["ddepth"], heads=hyper["dheads"])
    decoder = decoder.build(hyper["D"], spec).to(x.dtype)
    fill(decoder, state, {
        "mask_token": "mask_token", "decoder_embed.": "embed.", "decoder_blocks.": "trunk.blocks.",
        "decoder_norm.": "trunk.norm.",
    })  # fmt: skip
    for ours, name in ((encoder.tokenizer.pos_embed, "pos_embed"), (decoder.pos_embed, "decoder_pos_embed")):
        torch.testing.assert_close(ours.to(x.dtype), state[name], rtol=1e-6, atol=1e-6)
        ours.data = state[name]
    check_share(case, out["mask"])
    mask = pack_masks(out["mask"].bool())
    seen, hidden = places(mask)
    (features,) = encoder([Views(x=x, stream="image", role="global", masks=(mask,))], "drop")
    shuffled = out["ids_restore"].gather(1, seen)  # where the official order has our tokens
    latent = torch.cat([features.pooled[:, None], features.tokens], 1)
    at = F.pad(shuffled + 1, (1, 0))
    close_to(case, latent, gather_tokens(out["latent"], at), "latent")
    both = torch.cat(decoder(features.tokens, seen, hidden, features.pooled[:, None]), 1)
    whole = gather_tokens(both, torch.cat([seen, hidden], 1).argsort(1))  # [B, N, d] in place
    pred_bias = state["decoder_pred.bias"].requires_grad_()
    pred = F.linear(whole, state["decoder_pred.weight"], pred_bias)
    case.check(pred, "out", "pred")
    target = normalize(patchify(x.detach(), hyper["p"]), "token" if hyper["norm"] else "none")
    loss = values_loss(pred, target, "mse", mask.hidden)
    loss.backward()
    case.check(loss, "out", "loss")
    found = {
        "image": x.grad, "mask_token": decoder.mask_token.grad, "cls_token": encoder.tokenizer.cls_token.grad,
        "decoder_pred.bias": pred_bias.grad, "decoder_embed.bias": decoder.embed.bias.grad,
        "blocks.0.attn.qkv.bias": encoder.trunk.blocks[0].attn.qkv.bias.grad,
    }  # fmt: skip
    for name in case.tensors("grad"):
        case.check(found[name], "grad", name)


def close_to(case: Case, actual: Tensor, expected: Tensor, what: str) -> None:
    bound = (case.rtol or 0) * expected.abs().max().item() + 1e-7
    assert (actual - expected).abs().max().item() <= bound, f"{case.id}/{what}"


class Bare(nn.Module):
    """I-JEPA's encoder: patches and blocks, without a class token."""

    def __init__(self, hyper: dict[str, Any]) -> None:
        super().__init__()
        self.patch_embed = Patches(3, hyper["D"], (hyper["p"], hyper["p"]))
        self.trunk = Trunk(hyper["D"], hyper["depth"], hyper["heads"])

    def forward(self, x: Tensor, table: Tensor, seen: Tensor | None = None) -> Tensor:
        tokens = self.patch_embed(x).flatten(1, 2) + table
        return self.trunk([tokens if seen is None else gather_tokens(tokens, seen)])[0][0]


@pytest.mark.parametrize("case", cases("masked_modeling", "ijepa_model_loss"))
def test_golden_ijepa(case: Case) -> None:
    hyper, state, given = case.hyper, case.tensors("param"), case.tensors("in")
    x, spec = pixels(case), square(hyper["H"], hyper["p"])
    encoder = Bare(hyper).to(x.dtype)
    fill(encoder, state, {
        "encoder.patch_embed.": "patch_embed.", "encoder.blocks.": "trunk.blocks.", "encoder.norm.": "trunk.norm.",
    })  # fmt: skip
    predictor = Decoder(
        Decoder.Config(dim=hyper["pD"], depth=hyper["pdepth"], heads=hyper["heads"]), hyper["D"], spec
    )
    predictor = predictor.to(x.dtype)
    fill(predictor, state, {
        "predictor.mask_token": "mask_token", "predictor.predictor_embed.": "embed.",
        "predictor.predictor_blocks.": "trunk.blocks.", "predictor.predictor_norm.": "trunk.norm.",
    })  # fmt: skip
    torch.testing.assert_close(
        predictor.pos_embed[:, 1:].to(x.dtype), state["predictor.predictor_pos_embed"], rtol=1e-6, atol=1e-6
    )
    predictor.pos_embed.data = F.pad(state["predictor.predictor_pos_embed"], (0, 0, 1, 0))
    seen = given["ctx_idx"]
    wanted = torch.cat([given[f"tgt_idx_{i}"] for i in range(hyper["npred"])])
    with torch.no_grad():
        whole = encoder(x, state["encoder.pos_embed"])
    case.check(whole, "out", "encoder_full")
    context = encoder(x, state["encoder.pos_embed"], seen)
    case.check(context, "out", "encoder_context")
    times = hyper["npred"]
    _, tokens = predictor(context.repeat(times, 1, 1), seen.repeat(times, 1), wanted)
    pred = F.linear(tokens, state["predictor.predictor_proj.weight"], state["predictor.predictor_proj.bias"])
    case.check(pred, "out", "pred")
    target = gather_tokens(latent_targets(whole).repeat(times, 1, 1), wanted)
    case.check(target, "out", "target")
    loss = latent_loss(pred, target)
    loss.backward()
    case.check(loss, "out", "loss")
    found = {
        "image": x.grad,
        "mask_token": predictor.mask_token.grad,
        "encoder_norm": encoder.trunk.norm.weight.grad,
    }
    for name in case.tensors("grad"):
        case.check(found[name], "grad", name)


@pytest.mark.parametrize("case", cases("masked_modeling", "vjepa_loss"))
def test_golden_vjepa_loss(case: Case) -> None:
    given, sets = case.tensors("in"), range(len(case.hyper["ks"]))
    whole = latent_targets(given["target_full"])
    preds = [given[f"pred_{i}"].requires_grad_() for i in sets]
    targets = [gather_tokens(whole, given[f"idx_{i}"]) for i in sets]
    losses = [latent_loss(p, t, "power", case.hyper["e"]) for p, t in zip(preds, targets, strict=True)]
    loss = torch.stack(losses).mean()  # official: a mean over masks, whatever their lengths
    loss.backward()
    case.check(loss, "out", "loss_jepa")
    for i in sets:
        case.check(targets[i], "out", f"target_{i}")
        if not case.hyper["reg"]:
            case.check(preds[i].grad, "grad", f"pred_{i}")


def norm_of(instance: bool, layer: bool) -> Literal["instance", "layer", "none"]:
    """The norm by the two switches of fairseq, of which the first wins."""
    return "instance" if instance else "layer" if layer else "none"


@pytest.mark.parametrize("case", cases("noncontrastive", "data2vec_targets"))
def test_golden_data2vec(case: Case) -> None:
    given, hyper = case.tensors("in"), case.hyper
    last = [given[f"layer_{i}"] for i in range(hyper["L"] - hyper["top_k"], hyper["L"])]
    each = norm_of(hyper["inst_layer"], hyper["ln_layer"])
    final = norm_of(hyper["inst_avg"], hyper["ln_avg"])
    target = average_layers(last, each, final)
    case.check(target, "out", "targets")
    pred = given["pred"].requires_grad_()
    errors = scaled_errors(pred, target, hyper["beta"], hyper["scale"] or 0.0)
    case.check(errors.flatten(0, 1), "out", "loss_elem")
    errors.sum().backward()
    case.check(errors.sum(), "out", "loss_sum")
    case.check(pred.grad, "grad", "pred")


def test_the_mean_over_hidden_tokens_is_no_mean_of_rows() -> None:
    errors, hidden = torch.tensor([[1.0, 0.0, 0.0], [4.0, 5.0, 6.0]])[..., None], torch.ones(2, 3).bool()
    hidden[0, 1:] = False
    assert masked_mean(errors, hidden) == 4.0  # iBOT's weights would give (1 + 5) / 2
    mask: Mask = pack_masks(hidden)
    assert (errors.flatten()[mask.index] * mask.weight).sum() / 2 == 3.0
