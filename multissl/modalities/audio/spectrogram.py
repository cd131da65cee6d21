"""Log-mel spectrograms on any device, a batch at a time, and what is done to them.

`fbank` is Kaldi's filter bank as AudioMAE, AST and SSAST use it (Huang et al., NeurIPS 2022, arXiv 2207.06405): 25 ms
Hann windows every 10 ms without an offset, pre-emphasis 0.97, power spectrum, HTK mel triangles, natural logarithm with
a floor; of sound in [-1, 1]. Masks of time and frequency: SpecAugment (Park et al., Interspeech 2019, arXiv
1904.08779). Mixing and stretching: BYOL-A (Niizumi et al., IJCNN 2021, arXiv 2103.06695).
All randomness comes in as uniform draws. Shapes: R rows, S samples, T frames, F mel bins.  State: none.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.devices import made_once

EPSILON = float(torch.finfo(torch.float32).eps)
SILENCE = math.log(EPSILON)
"""The logarithm of digital silence, -15.94: what padding holds."""
EMPHASIS = 0.97


def window_of(rate: int) -> tuple[int, int]:
    """Samples of a frame (25 ms) and between frames (10 ms)."""
    return rate * 25 // 1000, rate // 100


def num_frames(samples: int, rate: int) -> int:
    """Whole frames that a sound of so many samples holds."""
    size, hop = window_of(rate)
    return 0 if samples < size else 1 + (samples - size) // hop


def num_samples(frames: int, rate: int) -> int:
    """The shortest sound of so many frames."""
    size, hop = window_of(rate)
    return size + (frames - 1) * hop


def fbank(wave: Tensor, mels: int, rate: int, low: float = 20.0) -> Tensor:
    """Sound [R, S] as natural logarithms of mel power [R, T, F]; computed in fp32, or in fp64 where it has that."""
    if wave.device.type == "cpu" and len(wave) > 1:  # one row's frames fit the cache, those of all do not
        return torch.cat([fbank(row[None], mels, rate, low) for row in wave])
    size, _ = window_of(rate)
    wave = wave if wave.dtype == torch.float64 else wave.float()
    window = made_once(_window, (size, wave.dtype), wave.device, wave.dtype)
    bank = made_once(mel_bank, (mels, padded_size(rate), rate, low), wave.device, wave.dtype)
    return filter_bank(wave, window, bank, rate)


def padded_size(rate: int) -> int:
    """Return the length to which frames are padded for their spectrum, a power of 2."""
    return 1 << (window_of(rate)[0] - 1).bit_length()


def filter_bank(wave: Tensor, window: Tensor, bank: Tensor, rate: int) -> Tensor:
    """Return what `fbank` does of sound [R, S], with its constants: window [size] and bank [padded/2 + 1, F]."""
    frames = wave.unfold(-1, *window_of(rate))  # [R, T, size]
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], -1).mul_(EMPHASIS)
    frames = frames.sub_(before).mul_(window)
    spectrum = torch.fft.rfft(frames, n=padded_size(rate))
    power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)  # [R, T, padded/2 + 1]
    return (power @ bank).clamp_(min=EPSILON).log_()


def constants_of(mels: int, rate: int, low: float = 20.0) -> tuple[Tensor, Tensor]:
    """Return the window and the bank of `filter_bank`, in fp32 on the host."""
    return _window(window_of(rate)[0], torch.float32), mel_bank(mels, padded_size(rate), rate, low)


def _window(size: int, dtype: torch.dtype) -> Tensor:
    return torch.hann_window(size, periodic=False, dtype=dtype)


def mel_bank(mels: int, padded: int, rate: int, low: float) -> Tensor:
    """Kaldi's triangles, evenly spaced in mel from `low` Hz to half the rate: [padded/2 + 1, mels].

    In fp32 throughout: a few soft low bins differ by 3e-5 of their logarithm between precisions.
    """
    bottom, top = (1127.0 * math.log(1.0 + f / 700.0) for f in (low, rate / 2))
    step, at = (top - bottom) / (mels + 1), torch.arange(mels)
    left, middle, right = (bottom + (at + i) * step for i in range(3))  # each [F]
    bins = mel(torch.arange(padded // 2 + 1) * (rate / padded))[:, None]
    bank = torch.minimum((bins - left) / (middle - left), (right - bins) / (right - middle)).clamp(min=0)
    bank[-1] = 0  # Kaldi leaves the highest frequency out
    return bank


def mel(hertz: Tensor) -> Tensor:
    """Hertz on the mel scale of HTK."""
    return 1127.0 * (1.0 + hertz / 700.0).log()


def spans(size: int, widest: float, draws: Tensor) -> Tensor:
    """SpecAugment's masks along an axis: uniform draws [R, K, 2] to bool [R, size], True in any of K spans.

    A width is the floor of U(0, widest) and a start the floor of U(0, size - width before the floor).
    """
    width = draws[..., 0] * widest  # [R, K]
    start = (draws[..., 1] * (size - width)).floor()[..., None]  # [R, K, 1]
    at = torch.arange(size, device=draws.device)
    return ((at >= start) & (at < start + width.floor()[..., None])).any(1)


def mix(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """log((1 - a) e^x + a e^other): the sound of two log-mels [R, T, F] in shares a [R], BYOL-A's log-mixup-exp."""
    a = share[:, None, None]
    return torch.logaddexp(x + (1 - a).log(), other + a.clamp(min=EPSILON).log())


def stretch_box(draws: Tensor, scale: tuple[float, float]) -> Tensor:
    """Boxes of BYOL-A's random resize crop from uniform draws [R, 4]: (start, length) in time, in frequency, [R, 4].

    In shares of the spectrogram. Time may reach beyond its ends, by 1/4 on each side; frequency never does.
    """
    low, high = scale
    length = low + (high - low) * draws[:, :2]  # [R, 2]: time, frequency
    time, bins = length[:, 0], length[:, 1].clamp(max=1)
    room = (1.5 - time).clamp(min=0)
    return torch.stack([draws[:, 2] * room - 0.25, time, draws[:, 3] * (1 - bins), bins], 1)


def warp_box(draws: Tensor, share: float) -> Tensor:
    """Boxes around the whole sound, longer or shorter and off its middle by up to `share` of it: [R, 4].

    From uniform draws [R, 4]; the same for frequency: the length of the vocal tract moves the bands of a voice so.
    """
    time, bins, when, where = (share * (2 * draws - 1)).unbind(1)  # each [R]
    return torch.stack([(when - time) / 2, 1 + time, (where - bins) / 2, 1 + bins], 1)


def stretch(x: Tensor, box: Tensor, edges: Literal["zeros", "border"] = "zeros") -> Tensor:
    """Spectrograms [R, T, F] cut to boxes [R, 4] and resized to what they were; beyond the ends 0 or what is there."""
    theta = x.new_zeros(x.shape[0], 2, 3)  # x is frequency, y is time, from -1 to 1
    theta[:, 0, 0], theta[:, 1, 1] = box[:, 3], box[:, 1]
    theta[:, 0, 2] = 2 * box[:, 2] + box[:, 3] - 1
    theta[:, 1, 2] = 2 * box[:, 0] + box[:, 1] - 1
    places = F.affine_grid(theta, [x.shape[0], 1, *x.shape[1:]], align_corners=False)
    return F.grid_sample(x[:, None], places, padding_mode=edges, align_corners=False)[:, 0]


def equalize(x: Tensor, decibels: Tensor) -> Tensor:
    """Log-mel [R, T, F] as another microphone has it: K bands louder by `decibels` [R, K], linear between them."""
    curve = F.interpolate(decibels[:, None], size=x.shape[2], mode="linear", align_corners=True)  # [R, 1, F]
    return x + curve * (math.log(10) / 10)


def relative(x: Tensor, decibels: float) -> Tensor:
    """Log-mel [R, T, F] relative to the loudest value of its row, and no softer than so many decibels below it."""
    return (x - x.amax((1, 2), keepdim=True)).clamp(min=-decibels * math.log(10) / 10)


def center(x: Tensor, real: Tensor) -> Tensor:
    """Log-mel [R, T, F] less the mean of each band over its real frames [R, T]; other frames stay as they are."""
    weight = real[:, :, None].to(x.dtype)
    mean = (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)  # [R, 1, F]
    return x - mean * weight


def roll(wave: Tensor, real: Tensor, draw: Tensor) -> Tensor:
    """Sounds [R, S] turned around in a circle within their first `real` [R] samples, by a uniform share [R]."""
    at = torch.arange(wave.shape[1], device=wave.device)  # [S]
    turned = (at + (draw * real).long()[:, None]) % real.clamp(min=1)[:, None]
    return wave.gather(1, torch.where(at < real[:, None], turned, at))


def add_noise(wave: Tensor, noise: Tensor, decibels: Tensor) -> Tensor:
    """Sounds [R, S] with noise [R, S] of power 1 added so many decibels [R] below the sound's own power."""
    power = wave.pow(2).mean(1, keepdim=True)
    return wave + noise * (power * 10 ** (-decibels[:, None] / 10)).sqrt()


def patchify(x: Tensor, patch: tuple[int, int], stride: tuple[int, int] | None = None) -> Tensor:
    """Spectrograms [R, T, F] as the values of their patches [R, N, T'], time first; one every `stride`, or a patch."""
    time, frequency = stride or patch
    cut = x.unfold(1, patch[0], time).unfold(2, patch[1], frequency)  # [R, t, f, p, q]
    return cut.flatten(3).flatten(1, 2)
