"""The audio modality: segments, spectrograms, padding, masks, targets, determinism, and what users get wrong."""

# long file: the behaviours of one adapter share their sounds and helpers

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from multissl.contract.data import Batch, Sample
from multissl.contract.plans import CLEAN, ViewPlan
from multissl.engine.batches import StepBatches
from multissl.modalities.audio import spectrogram as ops
from multissl.modalities.audio.adapter import Audio
from multissl.modalities.audio.figures import SCALE, colored
from multissl.modalities.audio.files import measure
from multissl.random import RowRandom

RATE = 16_000
PLAN = ViewPlan(num_clean=1, num_global=2, num_local=2, mask_ratio=(0.5, 0.5), target=True, coords=True)
MIXED = {"mixup": 0.4, "stretch": (0.6, 1.5), "roll": 0.5, "equalize": 6.0}
WARPED = {"warp": 0.2, "center": True, "equalize": 6.0}


def small(**options: Any) -> Audio:
    given = {"frames": 32, "local_frames": 16, "mels": 32, "patch": (8, 8), "mean": -7.0, "std": 4.0}
    return Audio(Audio.Config(**{**given, "mask_group": 4, **options}))


def rows(first: int = 0, count: int = 4, total: int = 4, line: int = 0) -> RowRandom:
    return RowRandom((0, 0, line), first, count, total)


def noises(lengths: list[int]) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample(rng.normal(0, 0.1, n).astype(np.float32), i, i % 2, group=i // 2)
        for i, n in enumerate(lengths)
    ]


FULL, SHORT = [9000, 9500, 10_000, 7000], [9000, 2000, 3000, 500]


def run(
    modality: Audio, samples: list[Sample], plan: ViewPlan = PLAN, first: int = 0, total: int = 0
) -> Batch:
    place = (first, len(samples), total or len(samples))
    raw = modality.collate(samples, {"audio": plan}, rows(*place))
    return modality.views(raw, {"audio": plan}, rows(*place, line=1))


# views


def test_views_come_clean_global_local_with_masks_targets_and_places() -> None:
    clean, large, local = run(small(), noises(FULL))
    assert [v.role for v in (clean, large, local)] == ["clean", "global", "local"]
    assert [tuple(v.x.shape) for v in (clean, large, local)] == [
        (4, 1, 32, 32),
        (8, 1, 32, 32),
        (8, 1, 16, 32),
    ]
    assert large.mask is not None
    assert (large.mask.num_hidden, large.mask.hidden.shape) == (8, (8, 16))
    assert clean.mask is None
    assert large.target is not None
    assert large.target.shape == (8, 16, 64)
    assert large.coords is not None
    assert large.coords.shape == (8, 16, 2)
    assert large.group_id is not None
    assert torch.equal(large.group_id, torch.tensor([0, 0, 1, 1]))
    spec = small().streams()["audio"]
    assert (spec.shape, spec.num_tokens, spec.target_dim, spec.patch) == ((1, 32, 32), 16, 64, (8, 8))


def test_a_tone_of_1_khz_lands_in_its_mel_bin_at_its_level() -> None:
    tone = 0.5 * torch.sin(2 * torch.pi * 1000 / RATE * torch.arange(RATE))
    mels = small(mels=128, patch=(8, 16))
    (clean,) = run(mels, [Sample(tone.numpy(), 0)], CLEAN)
    top = ops.mel(torch.tensor([20.0, 1000.0, 8000.0]))
    expected = (top[1] - top[0]) / (top[2] - top[0]) * 129 - 1
    assert abs(clean.x[0, 0].mean(0).argmax() - expected) <= 1
    louder = run(mels, [Sample((tone * 2).numpy(), 0)], CLEAN)[0].x - clean.x
    assert louder[0, 0].mean(0)[int(expected)] == pytest.approx(
        np.log(4) / 8, abs=1e-3
    )  # power, over 2 * std


def test_targets_are_the_patches_of_the_view_time_first() -> None:
    _, large, _ = run(small(), noises(FULL))
    assert large.target is not None
    patch = large.x[3, 0, 8:16, 16:24]  # second in time, third in frequency, of four
    assert torch.equal(large.target[3, 4 + 2], patch.flatten())


@pytest.mark.parametrize("options", [{}, MIXED, WARPED], ids=["plain", "mixed", "warped"])
def test_two_ranks_make_the_views_of_one(options: dict[str, Any]) -> None:
    samples, modality = noises([*FULL, *SHORT]), small(**options)
    whole = run(modality, samples)
    parts = [run(modality, samples[i : i + 4], first=i, total=8) for i in (0, 4)]
    for i, views in enumerate(whole):
        for part in ("x", "valid", "target", "coords"):
            if getattr(views, part) is not None:
                split = [getattr(p[i], part).unflatten(0, (views.num_views, 4)) for p in parts]
                together = getattr(views, part).unflatten(0, (views.num_views, 8))
                torch.testing.assert_close(together, torch.cat(split, 1), atol=1e-5, rtol=0)
    mask, masks = whole[1].mask, [p[1].mask for p in parts]
    assert mask is not None
    hidden = [m.hidden.unflatten(0, (2, 4)) for m in masks if m]
    assert torch.equal(mask.hidden.unflatten(0, (2, 8)), torch.cat(hidden, 1))


def test_the_same_seed_gives_the_same_bytes_and_another_step_others() -> None:
    modality = small(**MIXED, data="")
    steps = StepBatches(modality, {"audio": PLAN}, 4, 0, 0, 1, final=True)
    once, twice, other = steps[3][0], pickle.loads(pickle.dumps(steps))[3][0], steps[4][0]
    assert all(torch.equal(a.x, b.x) for a, b in zip(once, twice, strict=True))
    assert not torch.equal(once[1].x, other[1].x)
    assert not torch.equal(once[1].x[:4], once[1].x[4:]), "two views of a sample are equal"


def test_clean_views_take_no_notice_of_the_options_of_views() -> None:
    plain = run(small(), noises(FULL), CLEAN)[0].x
    assert torch.equal(run(small(**MIXED, gain=20.0, noise=1.0), noises(FULL), CLEAN)[0].x, plain)


@pytest.mark.parametrize(
    "options", [{"gain": 12.0}, {"noise": 1.0}, {"roll": 1.0}, {"mixup": 0.5}, {"stretch": (0.6, 1.5)},
                {"equalize": 6.0}, {"warp": 0.2}, {"time_mask": 0.5}, {"frequency_mask": 0.5}],
    ids=lambda o: next(iter(o))
)  # fmt: skip
def test_every_option_of_views_changes_global_views(options: dict[str, Any]) -> None:
    off = {"gain": 0.0, "noise": 0.0, "time_mask": 0.0, "frequency_mask": 0.0}
    samples, plan = noises(FULL), ViewPlan(num_global=1)
    assert not torch.equal(
        run(small(**off), samples, plan)[0].x, run(small(**{**off, **options}), samples, plan)[0].x
    )


def test_coords_follow_a_segment_through_cut_turn_and_stretch() -> None:
    """A chirp's frequency says when it sounded: places agree with what is heard there."""
    t = torch.arange(RATE) / RATE
    chirp = torch.sin(2 * torch.pi * (500 * t + 3000 * t**2)) * 0.3  # 500 + 6000 t hertz
    off = {"gain": 0.0, "noise": 0.0, "time_mask": 0.0, "frequency_mask": 0.0}
    plan = ViewPlan(num_global=1, coords=True)
    for options in ({}, {"roll": 1.0}, {"stretch": (0.8, 0.8)}):
        modality = small(**off, **options, frames=48, mels=64, patch=(4, 64))
        (views,) = run(modality, [Sample(chirp.numpy(), i) for i in range(8)], plan)
        assert views.coords is not None
        top = ops.mel(torch.tensor([20.0, 8000.0]))
        middle = views.coords[
            :, :1, 1
        ]  # of the part of the band that is seen, which stretching makes smaller
        low, high = (middle - 0.4, middle + 0.4) if "stretch" in options else (0 * middle, 0 * middle + 1)
        heard = views.x[:, 0].unflatten(1, (-1, 4)).mean(2).argmax(-1).float() + 1  # [R, T'] bins of 64
        heard = low + (high - low) * heard / 65
        hertz = 700 * (((top[0] + heard * (top[1] - top[0])) / 1127).exp() - 1)
        when = (hertz - 500) / 6000
        inside = (when > 0.05) & (when < 0.95) & (views.coords[:, :, 0] > 0) & (views.coords[:, :, 0] < 1)
        error = (when - views.coords[:, :, 0]).abs()[inside]
        assert error.median() < 0.03, options


def test_a_warp_keeps_the_whole_sound_and_moves_its_pitch_and_its_end() -> None:
    """A tone of 0.2 s in a view of 0.4 s: its end and its band follow the box."""
    tone = (0.3 * torch.sin(2 * torch.pi * 1000 / RATE * torch.arange(3200))).numpy()
    off = {"gain": 0.0, "noise": 0.0, "time_mask": 0.0, "frequency_mask": 0.0}
    plan = ViewPlan(num_clean=1, num_global=1, coords=True)
    modality = small(**off, warp=0.3, frames=40, local_frames=40, mels=64, patch=(4, 64))
    clean, views = run(modality, [Sample(tone, i) for i in range(16)], plan)
    assert views.valid is not None
    assert clean.valid is not None
    assert clean.valid.sum(1).tolist() == [4] * 16  # of 4 frames each, 18 in all
    lengths = views.valid.sum(1)
    assert set(lengths.tolist()) <= {2, 3, 4, 5, 6}
    assert len(lengths.unique()) > 1
    top = views.x[:, 0, :8].mean(1).argmax(-1)  # the tone's bin
    still = int(clean.x[0, 0, :8].mean(0).argmax())
    assert int((top - still).abs().max()) <= 0.3 * 64
    assert len(top.unique()) > 4
    assert views.coords is not None
    inside = (views.coords[:, :, 0] < 1).sum(1)  # places within the recording
    assert int((inside - lengths).abs().max()) <= 1


def test_equalizing_moves_bands_smoothly_within_its_decibels() -> None:
    x = torch.zeros(2, 3, 11)
    found = ops.equalize(x, torch.tensor([[0.0, 10.0, -10.0], [3.0, 3.0, 3.0]]))
    assert found.shape == x.shape
    decibels = found * 10 / np.log(10)  # of power
    torch.testing.assert_close(decibels[0, 1, ::5], torch.tensor([0.0, 10.0, -10.0]))
    torch.testing.assert_close(decibels[1], torch.full((3, 11), 3.0))
    assert float(decibels[0].diff(dim=1).abs().max()) <= 4.001


def test_centering_takes_a_filter_back_and_looks_at_real_frames_alone() -> None:
    options = {"gain": 0.0, "noise": 0.0, "time_mask": 0.0, "frequency_mask": 0.0, "center": True}
    plan = ViewPlan(num_clean=1, num_global=1)
    clean, filtered = run(small(**options, equalize=12.0), noises(SHORT), plan)
    ends = [32, 11, 17, 1]  # real frames of 9000 (the whole view), 2000, 3000 and 500 samples
    for i, end in enumerate(ends):
        torch.testing.assert_close(clean.x[i, 0, :end].mean(0), torch.zeros(32), atol=1e-5, rtol=0)
        if i:  # whole recordings: the same sound but for the filter
            torch.testing.assert_close(clean.x[i, 0, :end], filtered.x[i, 0, :end], atol=1e-4, rtol=0)
        assert (clean.x[i, 0, end:] == small().state()["pad"]).all()


def test_trimming_cuts_the_silence_around_a_sound_and_fitting_makes_slow_and_fast_alike() -> None:
    """A rise of 0.15 s and of 0.3 s, each in silence of its own length, become the same view."""
    rng = np.random.default_rng(0)
    sounds = []
    for i, (before, length, after) in enumerate(((500, 2400, 9000), (4000, 4800, 100))):
        t = np.arange(length) / length
        rise = 0.3 * np.sin(2 * np.pi * np.cumsum(300 + 3000 * t) / RATE)
        quiet = [rng.normal(0, 1e-3, n) for n in (before, after)]
        sounds.append(Sample(np.concatenate([quiet[0], rise, quiet[1]]).astype(np.float32), i))
    options = {"frames": 48, "local_frames": 16, "mels": 32, "patch": (8, 8)}
    (loose,) = run(small(**options), sounds, CLEAN)
    fitted = small(**options, trim=30.0, short="fit", dynamics=40.0)
    (views,) = run(fitted, sounds, CLEAN)
    assert views.valid is None, "a fitted view has no padding"
    tops = views.x[:, 0].argmax(-1).float()  # [2, T], the band of the rise
    assert float((tops[0] - tops[1]).abs().mean()) < 1.5 < float((loose.x[0] - loose.x[1]).abs().max())
    assert float(tops[:, 1:-1].diff(dim=1).min()) >= 0
    assert float(tops[:, -6:-2].mean() - tops[:, 2:6].mean()) > 10
    lowest, highest = (views.x * 8.0 - 7.0).aminmax()  # in natural logarithms again
    assert (float(lowest), float(highest)) == pytest.approx((-40 * np.log(10) / 10, 0.0), abs=0.35)
    plan = ViewPlan(num_global=1, mask_ratio=(0.5, 0.5))
    mask = run(fitted, sounds, plan)[0].mask
    assert mask is not None
    assert mask.hidden.unflatten(1, (6, 4))[:, 3:].any(), "the end of a fitted view is never hidden"


def test_statistics_are_those_of_what_views_hold() -> None:
    data = noises(SHORT)
    mean, _ = measure(data, RATE, 32, dynamics=20.0)  # type: ignore[arg-type]
    assert -20 * np.log(10) / 10 < mean < 0


# padding


def test_padding_is_marked_holds_the_floor_and_is_never_counted_as_hidden() -> None:
    modality = small(gain=0.0, noise=1.0, time_mask=0.0, frequency_mask=0.0)
    clean, large, _ = run(modality, noises(SHORT))
    pad = modality.state()["pad"]
    assert pad == pytest.approx((ops.SILENCE + 7.0) / 8.0)
    assert clean.valid is not None
    assert clean.valid.unflatten(1, (4, 4))[:, :, 0].sum(1).tolist() == [4, 1, 2, 1]
    real = ops.num_frames(2000, RATE)
    assert torch.equal(large.x[1, 0, real:], torch.full_like(large.x[1, 0, real:], pad))
    assert (large.x[1, 0, :real] > pad).all()
    assert large.mask is not None
    assert large.valid is not None
    assert large.valid.flatten()[large.mask.index[large.mask.weight > 0]].all()
    assert large.mask.num_hidden == 8
    assert (large.mask.hidden.sum(1) == 8).all()
    assert large.mask.weight.sum() == pytest.approx(8.0)
    assert (large.valid & ~large.mask.hidden).any(1).all(), "a row shows no sound"


def test_repeated_recordings_have_no_padding() -> None:
    clean, large, _ = run(small(short="repeat"), noises(SHORT))
    assert clean.valid is None
    assert large.valid is None
    assert (clean.x > small().state()["pad"] + 0.1).all()


def test_padding_changes_no_feature_and_no_loss() -> None:
    from multissl.encoders.transformer import TransformerEncoder
    from multissl.layers.readout import Readout

    spec = small().streams()["audio"]
    torch.manual_seed(0)
    encoder = TransformerEncoder(
        TransformerEncoder.Config(dim=16, depth=2, heads=2, pooling="mean"), spec
    ).eval()
    (clean,) = run(small(), noises(SHORT), CLEAN)
    spoilt = replace(clean, x=clean.x.clone())
    spoilt.x[1, 0, 8:] = 3.0  # one column of tokens of the second row is real
    with torch.no_grad():
        (a,), (b,) = encoder([clean]), encoder([spoilt])
    torch.testing.assert_close(a.pooled, b.pooled, atol=1e-5, rtol=0)
    readout = Readout(16, spec)
    at, target = torch.arange(16).expand(4, -1), ops.patchify(clean.x[:, 0], (8, 8))
    worse = ops.patchify(spoilt.x[:, 0], (8, 8))
    losses = [readout.loss(a.tokens, at, t, "mse", "token", clean.valid)[0] for t in (target, worse)]
    assert losses[0] == losses[1]
    assert readout.loss(a.tokens, at, worse)[0] != losses[1]
    assert clean.valid is not None
    everything = torch.ones_like(clean.valid)
    for metric in ("mse", "l1"):
        whole = readout.loss(a.tokens, at, target, metric, "none", everything)
        plain = readout.loss(a.tokens, at, target, metric, "none")
        torch.testing.assert_close(whole, plain)


def test_targets_and_a_context_want_whole_views() -> None:
    plan = ViewPlan(num_global=1, mask_ratio=(0.2, 0.3), num_masks=2, context_ratio=(0.8, 0.9))
    assert len(run(small(), noises(FULL), plan)[0].masks) == 3
    with pytest.raises(ValueError, match=r"modality.short=pad.*set modality.short=repeat"):
        run(small(), noises(SHORT), plan)
    assert len(run(small(short="repeat"), noises(SHORT), plan)[0].masks) == 3


# spectrograms and statistics


def test_filter_banks_are_kaldi_s() -> None:
    torchaudio = pytest.importorskip("torchaudio", reason="the extra `audio` is not installed")
    wave = torch.randn(3, 6000, generator=torch.Generator().manual_seed(0)) * 0.1
    for mels, rate in ((128, 16_000), (40, 8000)):
        options = {"htk_compat": True, "use_energy": False, "window_type": "hanning", "dither": 0.0}
        expected = torch.stack([
            torchaudio.compliance.kaldi.fbank(w[None], sample_frequency=rate, num_mel_bins=mels, **options)
            for w in wave
        ])  # fmt: skip
        torch.testing.assert_close(ops.fbank(wave, mels, rate), expected, atol=5e-4, rtol=0)


def test_frames_are_counted_as_published() -> None:
    assert [ops.num_frames(int(s * RATE), RATE) for s in (0.02, 1, 5, 10, 10.24)] == [0, 98, 498, 998, 1022]
    assert ops.num_samples(98, RATE) == RATE - 80
    assert pytest.approx(-15.942, abs=1e-3) == ops.SILENCE
    assert torch.equal(ops.fbank(torch.zeros(1, 800), 8, RATE), torch.full((1, 3, 8), ops.SILENCE))


def test_mixing_adds_power_and_noise_keeps_its_distance() -> None:
    a, b = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    share = torch.tensor([0.0, 0.25])
    mixed = ops.mix(a, b, share)
    torch.testing.assert_close(mixed[0], a[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed[1].exp(), 0.75 * a[1].exp() + 0.25 * b[1].exp())
    wave, noise = torch.randn(1, 20_000) * 3, torch.randn(1, 20_000)
    added = ops.add_noise(wave, noise, torch.tensor([10.0])) - wave
    assert 10 * torch.log10(wave.pow(2).mean() / added.pow(2).mean()) == pytest.approx(10, abs=0.2)


def test_statistics_are_those_of_the_training_data_and_are_restored() -> None:
    data = noises(FULL)
    mean, std = measure(data, RATE, 32)  # type: ignore[arg-type]
    every = [ops.fbank(torch.tensor(s.data - s.data.mean())[None], 32, RATE) for s in data]
    assert mean == pytest.approx(np.mean([x.mean() for x in every]), abs=1e-3)
    assert 0.1 < std < 10
    modality = small(mean=0.0, std=0.0)
    modality.restore({"mean": -3.0, "std": 2.0, "pad": 0.0})
    sizes = {"frames": modality.cfg.frames, "local_frames": modality.cfg.local_frames}
    assert modality.state() == {"mean": -3.0, "std": 2.0, "pad": (ops.SILENCE + 3.0) / 4.0, "sizes": sizes}
    x = run(modality, data, CLEAN)[0].x
    torch.testing.assert_close(x * 4.0 - 3.0, run(small(), data, CLEAN)[0].x * 8.0 - 7.0, atol=1e-4, rtol=0)


def test_baselines_figures_and_pictures() -> None:
    modality = small()
    batch = run(modality, noises(SHORT))
    baselines = modality.baselines()
    assert baselines["raw"](batch[0]).shape == (4, 32 * 32)
    stats = baselines["mean_std"](batch[0])
    assert stats.shape == (4, 64)
    real = batch[0].x[1, 0, :8]  # padding does not count
    torch.testing.assert_close(stats[1, :32], real.mean(0))
    (figure,) = modality.figures(batch)
    assert figure.image.dtype == np.uint8
    assert "Gray tiles" in figure.caption
    assert "padding" in figure.caption
    assert (
        "the sound as a whole, the recording as it is, 2 x changed view, 2 x short changed view"
        in figure.caption
    )
    assert figure.image.shape[:2] == (4 * 88, 2 * 168 + 168 + 2 * 168 + 2 * 88), (
        "a recording a line, a view a column"
    )
    quiet = colored(torch.tensor([[0.0, 1.0], [-9.0, -9.0]]), torch.tensor([[False, False], [True, True]]))
    assert quiet[:, 1, 0].allclose(torch.tensor(SCALE[0]), atol=0.1), (
        "padding took part in the range of colors"
    )
    assert modality.pictures(batch[0]).shape == (4, 32, 32, 3)
    assert modality.figures(Batch()) == []


# what users get wrong


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 100}, r"modality.frames=100: want a multiple of patch=\(8, 8\), such as 96"),
        ({"mels": 20}, r"modality.mels=20: want a multiple of patch"),
        ({"mixup": 1.0}, r"modality.mixup=1.0: want 0 to 0.9"),
        ({"snr": (20.0, 5.0)}, r"modality.snr=\(20.0, 5.0\)"),
        ({"stretch": (0.0, 1.0)}, r"modality.stretch"),
        (
            {"patch": (2, 32), "mask": "frequency"},
            r"have no frequency to hide; set modality.mask=time or random",
        ),
        ({"warp": 0.2, "stretch": (0.6, 1.5)}, r"modality.warp=0.2 and modality.stretch=.* set one"),
        ({"equalize": 61.0}, r"modality.equalize=61.0: want 0 to 60"),
        ({"hold_out": "jackson"}, r"modality.hold_out needs modality.data"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(**options)
