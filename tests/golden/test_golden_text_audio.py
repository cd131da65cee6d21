"""Golden cases of sound: filter banks and SpecAugment, AudioMAE's masks, AST's overlapping patches.

AudioMAE's loss stands with the other masked losses. SpecAugment is statistical: shares and histograms over many draws,
within three times the spread that the official code shows between re-draws.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from multissl.contract.plans import ViewPlan
from multissl.layers.tokenizers import Patches
from multissl.layers.transformer import Trunk
from multissl.modalities.audio import spectrogram as ops
from multissl.modalities.masks.bands import either, fixed_count, kept

from . import Case, cases, close

pytestmark = pytest.mark.reference


@pytest.mark.parametrize("case", cases("text_audio", "kaldi_fbank"))
def test_filter_banks(case: Case) -> None:
    """In fp64: soft bins of fp32 differ from processor to processor by more than the tolerance, torchaudio's too."""
    wave = case.tensors("in")["waveform"]
    found = ops.fbank(wave.double(), case.hyper["mel"], 16_000)[0]
    close(ops.fbank(wave, case.hyper["mel"], 16_000)[0], found.float(), 1e-4, "fp32")
    case.check(found, "out", "fbank")
    case.check((found - case.hyper["mean"]) / (2 * case.hyper["std"]), "out", "normalised")


@pytest.mark.parametrize("case", cases("masked_modeling", "audiomae_masking"))
def test_audiomae_masks(case: Case) -> None:
    """From the reference's noise: the tokens with the least noise stay, in 2-D per column and row."""
    given, hyper = case.tensors("in"), case.hyper
    plan = ViewPlan(num_global=1, mask_ratio=(hyper["ratio"],) * 2)
    hide = fixed_count("random", (64, 8), plan, 1)
    assert hide is not None
    order = given["noise"].argsort(1).argsort(1)
    case.check((order >= 512 - hide).float(), "out", "mask_1d")
    hidden = []
    for time, frequency in zip(given["noise_t"], given["noise_f"], strict=True):
        sides = [
            (noise.argsort().argsort() >= kept(len(noise), rate)).numpy()
            for noise, rate in ((time, hyper["pt"]), (frequency, hyper["pf"]))
        ]
        hidden.append(torch.from_numpy(either(*sides)))
    mask = torch.stack(hidden)
    case.check(mask.float(), "out", "mask_2d")
    seen = (~mask).nonzero()[:, 1].view(len(mask), -1, 1)
    case.check(given["x"].gather(1, seen), "out", "x_kept_2d")


@pytest.mark.parametrize("case", cases("text_audio", "spec_augment"))
def test_spec_augment(case: Case) -> None:
    """Widths, starts and how often each frame and bin is wiped out."""
    hyper, out = case.hyper, case.tensors("out")
    spread = case.manifest["redraw_spread"]
    generator = torch.Generator().manual_seed(0)
    draws = 20 * hyper["n"]
    for name, size, widest, many in (
        ("time", hyper["T"], hyper["tm"], hyper["nt"]), ("freq", hyper["Fq"], hyper["fm"], hyper["nf"])
    ):  # fmt: skip
        limit = min(widest, math.floor(size * hyper["p"])) if hyper["p"] < 1 else widest
        one = ops.spans(size, limit, torch.rand(draws, 1, 2, generator=generator))
        width = one.sum(1)
        bins = len(out[f"{name}_width_hist"])
        histogram = torch.bincount(width, minlength=bins).double() / draws
        assert len(histogram) == bins, "a width is larger than the reference's largest"
        expected = out[f"{name}_width_hist"].double()
        distance = 0.5 * (histogram - expected / expected.sum()).abs().sum()
        assert distance <= 3 * spread[f"{name}_width_hist"]["tv"], name
        worst = (one.double().mean(0) - out[f"{name}_mask_freq"].double()).abs().max()
        assert worst <= 3 * spread[f"{name}_mask_freq"]["max_abs"], name
        share = ops.spans(size, limit, torch.rand(draws, many, 2, generator=generator)).double().mean(1)
        for part, value in (("mean", share.mean()), ("std", share.std())):
            key = f"{name}_fraction_{part}"
            assert abs(value - out[key]) <= 3 * spread[key]["max_abs"], key
        if name == "time":
            start = one[width > 0].to(torch.uint8).argmax(1).double()
            for part, value in (("mean", start.mean()), ("std", start.std())):
                key = f"time_start_nonempty_{part}"
                assert abs(value - out[key]) <= 3 * spread[key]["max_abs"], key
            levels = torch.tensor(
                [0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1], dtype=torch.float64
            )
            apart = np.abs((start.quantile(levels) - out["time_start_nonempty_quantiles"]).numpy())[1:-1]
            assert apart.max() <= 3 * spread["time_start_nonempty_quantiles"]["max_abs"]


@pytest.mark.parametrize("case", cases("encoders_hf", "hf_ast"))
def test_golden_overlapping_patches_of_ast(case: Case) -> None:
    """Our patches and blocks with the weights of the Audio Spectrogram Transformer, whose tokens go frequency first."""
    c, state, given = case.hyper["config"], case.tensors("param"), case.tensors("in")["spec"]
    width, depth, size = c["hidden_size"], c["num_hidden_layers"], c["patch_size"]
    embed = Patches(1, width, (size, size), (c["time_stride"], c["frequency_stride"]))
    kernel = state["embeddings.patch_embeddings.projection.weight"].mT  # theirs reads (frequency, time)
    embed.load_state_dict(
        {"proj.weight": kernel, "proj.bias": state["embeddings.patch_embeddings.projection.bias"]}
    )
    patches = embed(given[:, None]).transpose(1, 2).flatten(1, 2)
    assert given.shape[1:] == (c["max_length"], c["num_mel_bins"])
    first = torch.cat([state["embeddings.cls_token"], state["embeddings.distillation_token"]], 1)
    tokens = (
        torch.cat([first.expand(len(given), -1, -1), patches], 1) + state["embeddings.position_embeddings"]
    )
    trunk = Trunk(width, depth, c["num_attention_heads"], hidden=c["intermediate_size"], eps=1e-12)
    own = {f"norm.{kind}": state[f"layernorm.{kind}"] for kind in ("weight", "bias")}
    for i in range(depth):
        for kind in ("weight", "bias"):
            parts = [state[f"layers.{i}.attention.{part}_proj.{kind}"] for part in ("q", "k", "v")]
            own[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
            for ours, theirs in {
                "attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
                "norm1": "layernorm_before", "norm2": "layernorm_after",
            }.items():  # fmt: skip
                own[f"blocks.{i}.{ours}.{kind}"] = state[f"layers.{i}.{theirs}.{kind}"]
    trunk.load_state_dict(own)
    case.check(trunk([tokens])[0][0], "out", "last_hidden_state")
