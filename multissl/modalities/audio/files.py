"""Sound files to waveforms: soundfile decodes a stretch of a file, `resampling` brings it to the wanted rate.

Every format of libsndfile is read (wav of any width, flac, ogg, mp3, ...), by seeking, so that a view of an hour's
recording costs no more than one of a short clip; others (m4a, aac, wma) by PyAV where it is installed. Channels are
averaged, or one is heard; amplitudes stay in [-1, 1].
Shapes: S samples at the wanted rate.  State: none.
"""

from __future__ import annotations

import importlib.util
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multissl import registry
from multissl.contract.data import Sample, Samples, Unreadable
from multissl.limits import SOUND_VALUES
from multissl.modalities.audio.channels import channel_of
from multissl.modalities.audio.resampling import check_rate, resample
from multissl.modalities.audio.soundtrack import Track, is_film
from multissl.modalities.audio.spectrogram import fbank, num_frames, relative, window_of
from multissl.sources.base import Listing
from multissl.sources.payloads import Slice
from multissl.sources.reading import check_regular, unreadable_errors
from multissl.waiting import followed

LIBSNDFILE = (
    ".wav", ".flac", ".ogg", ".mp3", ".opus", ".aif", ".aiff", ".au", ".w64", ".caf", ".oga", ".aifc", ".snd", ".rf64",
    ".wave", ".voc", ".sph", ".nist",
)  # fmt: skip
"""What soundfile reads, by seeking."""
FFMPEG = (".m4a", ".aac", ".wma", ".m4b", ".mka", ".amr", ".ac3", ".mp2", ".weba", ".3ga")
"""What PyAV reads, whole."""
SUFFIXES = LIBSNDFILE + (FFMPEG if importlib.util.find_spec("av") else ())
FILMS = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg")
"""Videos, whose sound is read on the clock of their pictures."""
MEASURED = 500
"""Number of sounds that the mean and deviation are measured on, up to `SECONDS` of each."""
SECONDS = 10
WHOLE = 60
"""Seconds up to which a recording is decoded whole, so that whether it is sound does not depend on the draw."""


class Clip:
    """One recording: its length at the wanted rate, and any stretch of it.

    Up to a minute is decoded at once, and then trimmed: what is softer than `trim` decibels below the loudest frame is
    cut off both ends; 0 for none. `channel` is the one that is heard, or mean, see `channels`.
    """

    def __init__(self, sample: Sample, rate: int, trim: float = 0.0, channel: str = "mean") -> None:
        self.index, self.rate, self.name = sample.index, rate, name_of(sample.data, sample.index)
        self.channel: int | None = None
        self._array: Tensor | None = None
        data = sample.data
        if isinstance(data, np.ndarray | Tensor):
            self._array = torch.as_tensor(data)
            if self._array.dim() != 1 or self._array.dtype not in (torch.int16, torch.float32):
                shape = f"{self._array.dtype} array of shape {tuple(self._array.shape)}"
                raise Unreadable(self.index, f"{self.name}: {shape}: want int16 or float32 [S]")
            self.native, self.length = rate, len(self._array)
        else:
            self._file = self._guarded(_open, data, channel)
            self.native = self._file.samplerate
            if not isinstance(self._file, Track):
                self.channel = self._guarded(channel_of, channel, self._file.channels)
            self._guarded(check_rate, self.native)
            self.length = self._file.frames * rate // self.native
        if self.length <= WHOLE * rate:
            self._array = self.cut(0, self.length)
            self.length = len(self._array)
            if bool((self._array == self._array[0]).all()):
                raise Unreadable(self.index, f"{self.name}: is silent, every sample is {self._array[0]:g}")
        if trim and self._array is not None:
            self._trim(trim)

    def _trim(self, decibels: float) -> None:
        (size, hop), wave = window_of(self.rate), self.cut(0, self.length)
        power = (wave - wave.mean()).unfold(0, size, hop).square().sum(1)
        loud = (power >= power.max() * 10 ** (-decibels / 10)).nonzero().flatten()
        self._array = wave[int(loud[0]) * hop : int(loud[-1]) * hop + size]
        self.length = len(self._array)

    def cut(self, start: int, count: int) -> Tensor:
        """Return samples start to start + count at the wanted rate, fewer where the recording ends: fp32 [S]."""
        if self._array is None:
            wave = self._guarded(self._read, start, count)
        else:
            wave = self._array[start : start + count]
            wave = wave.float() / 32768 if wave.dtype == torch.int16 else wave
        # a sum is finite where all are, and quicker; one that is not may be too large
        if not math.isfinite(float(wave.sum())) and not bool(torch.isfinite(wave).all()):
            raise Unreadable(self.index, f"{self.name}: holds values that are no numbers (NaN or infinite)")
        if num_frames(len(wave), self.rate) < 1:
            length = 1000 * len(wave) / self.rate
            raise Unreadable(self.index, f"{self.name}: {length:.0f} ms of sound, a frame alone takes 25 ms")
        return wave

    def _read(self, start: int, count: int) -> Tensor:
        self._file.seek(min(start * self.native // self.rate, self._file.frames))
        want = -(-count * self.native // self.rate)
        SOUND_VALUES.check(
            min(want, self._file.frames) * self._file.channels, f"{want:,} samples at once are"
        )
        sound = torch.from_numpy(self._file.read(want, dtype="float32", always_2d=True))  # [S', C]
        wave = sound.mean(1) if self.channel is None else sound[:, self.channel].contiguous()
        return resample(wave, self.native, self.rate)[:count] if len(wave) else wave

    def _guarded(self, call: Any, *arguments: Any) -> Any:
        with unreadable_errors(self.index, self.name):
            return call(*arguments)


def seconds_of(sample: Sample, rate: int) -> float:
    """Return how long a recording is by the header of its file, or by an array at `rate`."""
    name = name_of(sample.data, sample.index)
    with unreadable_errors(sample.index, name):
        if isinstance(sample.data, np.ndarray | Tensor):
            return len(sample.data) / rate
        file = _open(sample.data)
        check_rate(file.samplerate)
        return file.frames / file.samplerate


def _open(data: Any, channel: str = "mean") -> Any:
    if data is None:
        raise ValueError("the cell is empty")
    if isinstance(data, str | Path) and not check_regular(data):
        raise ValueError("the file is empty")
    name = str(data) if isinstance(data, str | Path) else data.name if isinstance(data, Slice) else ""
    if isinstance(data, Slice):
        data = data.read()
    if name.lower().endswith(FILMS + FFMPEG) or (isinstance(data, bytes | bytearray) and is_film(data)):
        return Track(bytes(data) if isinstance(data, bytearray) else data, channel)
    soundfile = registry.require("soundfile")
    try:
        return soundfile.SoundFile(io.BytesIO(data) if isinstance(data, bytes | bytearray) else str(data))
    except soundfile.LibsndfileError as error:
        return _by_ffmpeg(data, error, channel)


def _by_ffmpeg(data: Any, refused: Exception, channel: str) -> Track:
    """Return the sound of a file by PyAV, whose name may say something else than it holds; raise the first error."""
    try:
        return Track(bytes(data) if isinstance(data, bytearray) else data, channel)
    except Exception:  # PyAV is not installed, or cannot read it either
        raise refused from None


def name_of(data: Any, index: int) -> str:
    """Return the name by which messages call a sample and patterns match it."""
    if isinstance(data, str | Path):
        return str(data)
    return data.name if isinstance(data, Slice) else f"sample {index}"


def relabeled(listing: Listing, label: str, group: str, hold_out: str) -> Listing:
    """Return a listing with labels and groups read from the names of its files, and one group as validation split.

    `label` and `group` are regular expressions whose first parenthesis is the value; "" leaves what the source says.
    """
    names = [name_of(data, i) for i, data in enumerate(listing.data)] if label or group else []
    if label:
        listing = listing._replace(labels=_matches(names, label, "label_pattern"))
    if group:
        listing = listing._replace(groups=_matches(names, group, "group_pattern"))
    if not hold_out:
        return listing
    groups = [str(g) for g in listing.groups or []]
    if hold_out not in groups:
        known = ", ".join(sorted(set(groups))[:10]) or "no groups: set modality.group_pattern"
        raise ValueError(f"modality.hold_out={hold_out!r}: no sample is of this group; there are {known}")
    pairs = zip(groups, listing.tags, strict=True)
    tags = [tag if tag == "test" else "val" if g == hold_out else "train" for g, tag in pairs]
    return listing._replace(tags=tags)


def _matches(names: Sequence[str], pattern: str, option: str) -> list[str]:
    matches = [re.search(pattern, name) for name in names]
    if all(m is None for m in matches):
        raise ValueError(f"modality.{option}={pattern!r} fits no name, such as {names[0]!r}")
    return ["" if m is None else m[1] for m in matches]


def measure(
    data: Samples, rate: int, mels: int, trim: float = 0.0, dynamics: float = 0.0, channel: str = "mean"
) -> tuple[float, float]:
    """Return the mean and deviation of the log-mel values of up to 500 evenly spaced sounds that can be read.

    `trim` and `dynamics` are the decibels by which views are trimmed and limited, 0 for neither; `channel` is heard.
    """
    count, reason = len(data), ""
    sums = []
    for i in followed(range(min(count, MEASURED)), "mean and deviation of sounds", min(count, MEASURED)):
        sample = data[i * count // min(count, MEASURED)]
        try:
            wave = Clip(sample, rate, trim, channel).cut(0, SECONDS * rate)
        except Unreadable as bad:
            reason = reason or bad.reason
            continue
        x = fbank((wave - wave.mean())[None], mels, rate).double()
        x = relative(x, dynamics) if dynamics else x
        sums.append(torch.stack([x.mean(), x.pow(2).mean()]))
    if not sums:
        raise ValueError(
            f"modality.data: none of the sounds can be read, so there is no mean to subtract: {reason}"
        )
    mean, square = torch.stack(sums).mean(0)
    return float(mean), float((square - mean**2).clamp(min=1e-6).sqrt())
