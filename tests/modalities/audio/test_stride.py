"""Tokens of a spectrogram that overlap (AST, AudioMAE at stride 10): counts, targets, places, padding, readers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from multissl.contract.data import Batch
from multissl.contract.encoder import Encoders
from multissl.contract.learning import Progress
from multissl.contract.plans import StreamSpec, ViewPlan, tokens_along
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.decoder import Decoder
from multissl.layers.tokenizers import Patches
from multissl.modalities.audio.adapter import Audio
from multissl.objectives.mae import MAE
from tests.modalities.audio.test_adapter import FULL, SHORT, noises, run, small

STRIDE = (5, 6)
GRID = tokens_along((32, 32), (8, 8), STRIDE)
PLAN = ViewPlan(num_global=1, mask_ratio=(0.5, 0.5), target=True, coords=True)


def test_counts_are_those_of_ast() -> None:
    cfg = Audio.Config(stride=(10, 10))
    assert cfg.grid(1024) == (101, 12)
    assert Audio.Config().grid(1024) == (64, 8)
    assert GRID == (5, 5)
    spec = small(stride=STRIDE).streams()["audio"]
    assert (spec.num_tokens, spec.grid, spec.stride, spec.target_dim) == (25, (5, 5), STRIDE, 64)
    assert small().streams()["audio"].stride == ()


def test_targets_and_places_are_those_of_every_patch_one_by_one() -> None:
    off = {"gain": 0.0, "noise": 0.0, "time_mask": 0.0, "frequency_mask": 0.0}
    (views,) = run(small(stride=STRIDE, **off), noises(FULL), PLAN)
    assert views.target is not None
    assert views.coords is not None
    plain = run(small(**off), noises(FULL), PLAN)[0].coords
    assert plain is not None
    whole = 4 * (plain[:, 5] - plain[:, 0])  # of a view of 4 x 4 tokens, in shares of its recording
    begin = plain[:, 0] - whole / 8
    for t in range(5):
        for f in range(5):
            patch = views.x[:, 0, 5 * t : 5 * t + 8, 6 * f : 6 * f + 8]
            assert torch.equal(views.target[:, 5 * t + f], patch.flatten(1))
            middle = torch.tensor([(5 * t + 4) / 32, (6 * f + 4) / 32])
            torch.testing.assert_close(views.coords[:, 5 * t + f], begin + whole * middle)


def test_padding_begins_where_the_middle_of_a_token_is_no_sound() -> None:
    for options in ({}, {"stride": STRIDE}):
        (views,) = run(small(**options), noises(SHORT), ViewPlan(num_clean=1))
        assert views.valid is not None
        silent = views.x[:, 0] == views.x[:, 0, -1:, :1]
        real = (~silent).any(2).sum(1)  # frames with sound
        step = options.get("stride", (8, 8))[0]
        columns = views.valid.unflatten(1, small(**options).cfg.grid(32))[:, :, 0]
        for row, frames in zip(columns, real.tolist(), strict=True):
            middles = torch.arange(len(row)) * step + 4
            assert torch.equal(row, (middles < frames) | (torch.arange(len(row)) == 0))


def test_a_patch_embedding_multiplies_every_patch_by_its_weight() -> None:
    torch.manual_seed(0)
    embed, x = Patches(2, 6, (4, 3), (2, 1)), torch.randn(2, 2, 9, 7)
    tokens = embed(x)
    assert tokens.shape == (2, *tokens_along((9, 7), (4, 3), (2, 1)), 6) == (2, 3, 5, 6)
    weight = embed.proj.weight.flatten(1)
    for i in range(3):
        for j in range(5):
            patch = x[:, :, 2 * i : 2 * i + 4, j : j + 3].flatten(1)
            torch.testing.assert_close(tokens[:, i, j], patch @ weight.T + embed.proj.bias)


def test_a_stride_of_a_patch_is_no_overlap() -> None:
    torch.manual_seed(0)
    plain, strided = Patches(1, 6, (4, 4)), Patches(1, 6, (4, 4), (4, 4))
    strided.load_state_dict(plain.state_dict())
    x = torch.randn(2, 1, 8, 12)
    torch.testing.assert_close(strided(x), plain(x))


@pytest.mark.parametrize("masking", ["drop", "replace"])
def test_mae_trains_on_tokens_that_overlap(masking: Any) -> None:
    modality = small(stride=STRIDE)
    spec = modality.streams()
    encoders = Encoders({"audio": TransformerEncoder.Config(dim=16, depth=1, heads=2).build(spec["audio"])})
    encoders["audio"].prepare_for(frozenset({masking}))
    decoder = Decoder.Config(dim=16, depth=1, heads=2)
    objective = MAE.Config(mask_ratio=0.5, masking=masking, decoder=decoder).build(encoders, spec)
    batch = Batch(run(modality, noises([*FULL, *SHORT]), objective.plans()["audio"]))
    losses = objective(encoders, batch, Progress(step=0, total=10))
    losses.total.backward()
    assert losses.total.isfinite()
    patch = encoders["audio"].get_parameter("tokenizer.patch_embed.proj.weight")
    assert patch.grad is not None
    assert patch.grad.abs().sum() > 0
    assert modality.figures(batch)
    assert encoders["audio"].figures(batch[0]) == []


def test_baselines_read_sound_and_no_padding() -> None:
    for options in ({}, {"stride": STRIDE}):
        modality = small(**options)
        (views,) = run(modality, noises(SHORT), ViewPlan(num_clean=1))
        assert views.valid is not None
        floor = modality.baselines()["mean_std"]
        spoilt = replace(views, x=views.x.clone())
        spoilt.x[1:, :, -2:] = 100.0  # the first sound fills its view
        torch.testing.assert_close(floor(spoilt), floor(views))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"stride": (5, 0)},
            r"modality\.stride=\(5, 0\): want 0 0, or 1 or more of both up to patch=\(8, 8\)",
        ),
        ({"stride": (9, 8)}, r"modality\.stride=\(9, 8\)"),
        ({"stride": (-1, 2)}, r"modality\.stride=\(-1, 2\)"),
        ({"stride": (4, 4), "frames": 4}, r"modality\.frames=4"),
    ],
)
def test_strides_that_leave_gaps_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(**options)
    assert small(stride=(8, 8)).cfg.grid(32) == (4, 4)


def test_a_stem_of_convolutions_makes_no_overlap() -> None:
    spec = StreamSpec(
        kind="grid", shape=(1, 32, 32), patch=(8, 8), stride=STRIDE, num_tokens=25, target_dim=64
    )
    with pytest.raises(ValueError, match="conv_stem=True makes tokens without overlap"):
        TransformerEncoder.Config(dim=16, depth=1, heads=2, conv_stem=True).build(spec)
