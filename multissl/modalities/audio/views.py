"""What is done to segments of sound on their device, from waves to spectrograms as the encoder sees them.

In this order: turned in a circle, louder or softer, noise, log-mel, another recording mixed in, a filter, levels
relative to the loudest, padding, normalized by the data, stretched or warped, each band centered, stretches of time and
bands of frequency wiped out.
Shapes: R = V*B rows stacked view-major, S samples of sound, T frames, F mel bins, N tokens.  State: none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from multissl.devices import constant, made_once
from multissl.modalities.audio import spectrogram as ops
from multissl.modalities.views import rand_rows
from multissl.random import RowRandom

KNOTS = 6
"""Places along the bands at which `equalize` draws."""


def draw_changes(cfg: Any, views: int, rng: RowRandom) -> dict[str, Tensor]:
    """Return uniform numbers on the host for what may change so many views, tensors [R, ...] by name."""
    shapes: dict[str, tuple[int, ...]] = {
        "equalize": (KNOTS,),
        "warp": (4,),
        "stretch": (4,),
        "time mask": (cfg.spans, 2),
        "frequency mask": (cfg.spans, 2),
        **dict.fromkeys(("roll", "roll chance", "gain", "noise", "noise chance", "snr", "mixup"), ()),
    }
    return {tag: rand_rows(rng.fork(tag), views, *shape) for tag, shape in shapes.items()}


def spectrograms(
    cfg: Any,
    statistics: tuple[float, float],
    wave: Tensor,
    real: Tensor,
    drawn: Mapping[str, Tensor] | None,
    other: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sound [R, S] as [R, T, F], its real samples [R], and the boxes cut from it with their turn [R, 5].

    Views are changed by `drawn`, as `draw_changes` returns it, and clean without. `other` [R, S] is mixed in;
    `statistics` are mean and deviation of the data.
    """
    turn = torch.zeros_like(wave[:, 0])
    if drawn is not None:
        wave, turn = _sound(cfg, wave, real, drawn)
    x = ops.fbank(wave, cfg.mels, cfg.rate)  # [R, T, F]
    if drawn is not None and other is not None:
        x = ops.mix(x, ops.fbank(other, cfg.mels, cfg.rate), cfg.mixup * drawn["mixup"])
    if drawn is not None and cfg.equalize:
        x = ops.equalize(x, cfg.equalize * (2 * drawn["equalize"] - 1))
    x = ops.relative(x, cfg.dynamics) if cfg.dynamics else x
    mean, std = statistics
    x = (x.masked_fill(_past(cfg.rate, real, x)[:, :, None], silence(cfg.dynamics)) - mean) / (2 * std)
    box, moved = constant((0.0, 1.0, 0.0, 1.0), x.device).repeat(len(x), 1), cfg.short == "fit"
    if drawn is not None and cfg.warp:
        box, moved = ops.warp_box(drawn["warp"], cfg.warp), True
    elif drawn is not None and cfg.stretch != (1.0, 1.0):
        box, moved = ops.stretch_box(drawn["stretch"], cfg.stretch), True
    if cfg.short == "fit":
        size, hop = ops.window_of(cfg.rate)
        sound = (((real - size) // hop + 1) / x.shape[1]).clamp(
            max=1
        )  # [R], the share of the view that is sound
        box = torch.cat([box[:, :2] * sound[:, None], box[:, 2:]], 1)
    if moved:
        x = ops.stretch(x, box, "border" if cfg.warp or cfg.short == "fit" else "zeros")
        end = ((real / wave.shape[1] - box[:, 0]) / box[:, 1]).clamp(0, 1)  # where the sound ends now
        real = torch.where(real < wave.shape[1], (end * wave.shape[1]).long(), real)
    real = torch.full_like(real, wave.shape[1]) if cfg.short == "fit" else real
    if cfg.center:
        x = ops.center(x, ~_past(cfg.rate, real, x))
    if drawn is not None and (cfg.time_mask or cfg.frequency_mask):
        frames, mels = x.shape[1:]
        hit = ops.spans(frames, cfg.time_mask * frames, drawn["time mask"])[:, :, None]
        hit = hit | ops.spans(mels, cfg.frequency_mask * mels, drawn["frequency mask"])[:, None]
        x = x.masked_fill(hit, 0.0)  # the mean of the data
    return x, real, torch.cat([box, turn[:, None]], 1)


def silence(dynamics: float) -> float:
    """What padding holds before it is normalized."""
    return -dynamics * math.log(10) / 10 if dynamics else ops.SILENCE


def _sound(cfg: Any, wave: Tensor, real: Tensor, drawn: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Sound [R, S] turned, louder or softer and with noise, and the share that it was turned by [R]."""
    turn = drawn["roll"] * (drawn["roll chance"] < cfg.roll) if cfg.roll else torch.zeros_like(wave[:, 0])
    wave = ops.roll(wave, real, turn) if cfg.roll else wave
    decibels = cfg.gain * (2 * drawn["gain"] - 1)
    wave = wave * 10 ** (decibels[:, None] / 20)
    if cfg.noise:
        tape = made_once(_noise, (), wave.device, torch.float32).unfold(0, wave.shape[1], 1)
        low, high = cfg.snr
        noise = tape[(drawn["noise"] * len(tape)).long()] * (drawn["noise chance"] < cfg.noise)[:, None]
        wave = ops.add_noise(wave, noise, low + (high - low) * drawn["snr"])
    return wave, turn


def _past(rate: int, real: Tensor, x: Tensor) -> Tensor:
    """Which frames of x [R, T, F] are past the end of `real` [R] samples, bool [R, T]."""
    size, hop = ops.window_of(rate)
    return torch.arange(x.shape[1], device=x.device) * hop + size > real[:, None]


def centers(middles: tuple[Tensor, Tensor], box: Tensor, cut: Tensor) -> Tensor:
    """Where tokens lie in a recording, (time, frequency) in shares of it: [R, N, 2]; past its end above 1.

    middles [T'] and [F']: those of tokens along time and frequency, in shares of the view;
    box [R, 2]: start and length of the segment; cut [R, 5]: box cut from the spectrogram, share it was turned by.
    """
    time, mel = middles
    inside = cut[:, :1] + cut[:, 1:2] * time  # [R, T'], in shares of the segment
    sound = (1 / box[:, 1:]).clamp(max=1)  # the share of the segment that the recording fills
    turned = (inside + cut[:, 4:] * sound) % sound
    inside = torch.where((cut[:, 4:] > 0) & (inside >= 0) & (inside < sound), turned, inside)
    time = box[:, :1] + box[:, 1:] * inside
    mel = cut[:, 2:3] + cut[:, 3:4] * mel  # [R, F']
    pairs = [time[:, :, None].expand(-1, -1, mel.shape[1]), mel[:, None].expand(-1, time.shape[1], -1)]
    return torch.stack(pairs, -1).flatten(1, 2)


def _noise() -> Tensor:
    """A minute and more of white noise of power 1, always the same one; views take a random place of it."""
    return torch.randn(1 << 20, generator=torch.Generator().manual_seed(16_000))
