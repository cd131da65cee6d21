"""Sound in memory as clean views: what `Audio.collate` and `views` make of recordings, all rows of a tensor at once.

Rows of different lengths are padded by the caller; a mask says how much of each is sound.
Shapes: B recordings, S samples of the tensor, s of a view, T frames, F mel bins, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from multissl.contract.preparation import Constants, FreeAxis, Preparation
from multissl.modalities.audio import spectrogram as ops
from multissl.modalities.audio.files import WHOLE
from multissl.modalities.audio.views import silence

LOUDEST_SHORT = 32768


@dataclass(kw_only=True)
class WavePreparation(Preparation):
    """Sound [B, S] at one rate, of which the middle is read."""

    rate: int
    frames: int
    grid: tuple[int, int]
    """Tokens along time and frequency."""
    patch: int
    """Frames of a token."""
    step: int
    """Frames from one token to the next."""
    short: Literal["pad", "repeat", "fit"]
    trim: float
    whole: int
    """Samples of the longest recording that is trimmed."""
    dynamics: float
    silence: float
    center: bool

    def __call__(self, x: Tensor, mask: Tensor | None, constants: Constants) -> tuple[Tensor, Tensor | None]:
        """Cut the middle, and turn it into a spectrogram [B, 1, T, F]."""
        size, _ = ops.window_of(self.rate)
        if x.ndim != 2 or x.shape[1] < size:
            raise ValueError(f"a tensor of shape {tuple(x.shape)}: this module reads {self.reads}")
        x = x.float() / LOUDEST_SHORT if x.dtype == torch.int16 else x.float()
        real = torch.full_like(x[:, 0], x.shape[1], dtype=torch.int64) if mask is None else mask.sum(1)  # [B]
        start = torch.zeros_like(real)
        if self.trim:
            start, real = self._trimmed(x, real)
        wave, real = self._cut(x, start, real)
        spectrum = ops.filter_bank(wave, constants["window"], constants["bank"], self.rate)  # [B, T, F]
        spectrum = ops.relative(spectrum, self.dynamics) if self.dynamics else spectrum
        past = self._past(real, spectrum)
        spectrum = (spectrum.masked_fill(past[:, :, None], self.silence) - constants["mean"]) / (
            2 * constants["std"]
        )
        if self.short == "fit":
            spectrum, past = self._fitted(spectrum, real), torch.zeros_like(past)
        if self.center:
            spectrum = ops.center(spectrum, ~past)
        return spectrum[:, None], self._valid(real) if self.short == "pad" else None

    def _trimmed(self, x: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the sound of every recording begins and how long it is, each [B], as `files.Clip` trims it."""
        size, hop = ops.window_of(self.rate)
        at = torch.arange(x.shape[1], device=x.device)
        mean = (x * (at < real[:, None])).sum(1) / real
        power = (x - mean[:, None]).unfold(1, size, hop).square().sum(2)  # [B, T]
        number = torch.arange(power.shape[1], device=x.device)
        inside = number * hop + size <= real[:, None]
        power = power.masked_fill(~inside, 0.0)
        loud = inside & (power >= power.amax(1, keepdim=True) * 10 ** (-self.trim / 10))
        first = torch.where(loud, number, power.shape[1]).amin(1) * hop
        last = torch.where(loud, number, -1).amax(1) * hop + size
        trimmed = real <= self.whole
        return torch.where(trimmed, first, 0), torch.where(trimmed, last - first, real)

    def _cut(self, x: Tensor, start: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return the middle of every recording [B, s] without its mean, and how much of it is sound, [B]."""
        length = ops.num_samples(self.frames, self.rate)
        at = torch.arange(length, device=x.device)
        room = (real - length).clamp(min=0)
        begin = start + (room + 1) // 2
        have = real.clamp(min=1, max=length)
        place = at % have[:, None] if self.short == "repeat" else at.expand(x.shape[0], -1)
        wave = x.gather(1, (begin[:, None] + place).clamp(max=x.shape[1] - 1))
        have = torch.full_like(have, length) if self.short == "repeat" else have
        sound = at < have[:, None]
        mean = (wave * sound).sum(1, keepdim=True) / have[:, None]
        return (wave - mean) * sound, have

    def _past(self, real: Tensor, spectrum: Tensor) -> Tensor:
        """Return which frames reach past the sound, bool [B, T]."""
        size, hop = ops.window_of(self.rate)
        return torch.arange(spectrum.shape[1], device=real.device) * hop + size > real[:, None]

    def _fitted(self, spectrum: Tensor, real: Tensor) -> Tensor:
        """Return spectrograms [B, T, F] whose sound is stretched over all frames."""
        size, hop = ops.window_of(self.rate)
        share = (((real - size) // hop + 1) / spectrum.shape[1]).clamp(max=1)  # [B]
        nothing, all_of_it = torch.zeros_like(share), torch.ones_like(share)
        return ops.stretch(spectrum, torch.stack([nothing, share, nothing, all_of_it], 1), "border")

    def _valid(self, real: Tensor) -> Tensor:
        """Return the tokens whose middle is sound, bool [B, N], of each row at least those of one column."""
        size, hop = ops.window_of(self.rate)
        frames = (real - size) // hop + 1
        columns = ((frames + self.step - self.patch // 2 - 1) // self.step).clamp(1, self.grid[0])
        at = torch.arange(self.grid[0], device=real.device) < columns[:, None]
        return at.repeat_interleave(self.grid[1], 1)

    def example(self, rows: int, other: bool = False) -> tuple[Tensor, ...]:
        """Return tones as long as a view, or half as long; every second one ends at three quarters."""
        length = ops.num_samples(self.frames, self.rate)
        length = max(length // 2, ops.window_of(self.rate)[0]) if other else length
        at = torch.arange(length) / self.rate
        pitch = 100 * torch.arange(1, rows + 1)[:, None]
        slow = torch.sin(6.28 * 3 * at) + 0.1 * torch.sin(at * self.rate * 1.7)
        wave = 0.3 * torch.sin(6.28 * pitch * at) * slow
        mask = torch.ones(rows, length, dtype=torch.bool)
        mask[1::2, max(length * 3 // 4, ops.window_of(self.rate)[0]) :] = False
        return wave * mask, mask


def preparation_of(cfg: Any, statistics: tuple[float, float]) -> WavePreparation:
    """Return the preparation of sound under the options of `Audio`, by the mean and deviation of the training data."""
    (size, hop), (window, bank) = ops.window_of(cfg.rate), ops.constants_of(cfg.mels, cfg.rate)
    mean, std = (torch.tensor(value) for value in statistics)
    return WavePreparation(
        reads=f"sound [B, S] at {cfg.rate} Hz, int16 or values -1 to 1, and a mask [B, S] that says what is sound",
        constants={"window": window, "bank": bank, "mean": mean, "std": std},
        # a recording of one frame alone has nothing to trim, which is another program
        free_axes=(FreeAxis(axis=1, name="samples", least=size + (hop if cfg.trim else 0)),),
        one_size=True,
        takes_mask=True,
        rate=cfg.rate,
        frames=cfg.frames,
        grid=cfg.grid(cfg.frames),
        patch=cfg.patch[0],
        step=cfg.steps()[0],
        short=cfg.short,
        trim=cfg.trim,
        whole=WHOLE * cfg.rate,
        dynamics=cfg.dynamics,
        silence=silence(cfg.dynamics),
        center=cfg.center,
    )
