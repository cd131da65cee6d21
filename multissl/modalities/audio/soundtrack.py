"""The sound of a video file, by PyAV, laid on the clock of its pictures.

A container may start its sound before or after its pictures, and end it earlier or later. Here both last as long: the
first sample is heard when the first picture is shown, the last one when the last picture ends; where the file has no
sound there is silence, what it has beyond is left out. So the middle of the one is the middle of the other. Where the
clock of the pictures cannot be believed (`video_clock`), that of the sound is not read either: its parts are joined.
Shapes: S samples at the rate of the file.  State: none.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from multissl import registry
from multissl.limits import SOUND_VALUES
from multissl.modalities.audio.channels import channel_of
from multissl.modalities.audio.resampling import check_rate
from multissl.modalities.video.clock import PAUSE, read_clock


def is_film(data: bytes | bytearray) -> bool:
    """Whether the bytes of a file begin as those of mp4, webm, mkv or avi."""
    head = bytes(data[:12])
    return head[4:8] == b"ftyp" or head[:4] == b"\x1aE\xdf\xa3" or (head[:4], head[8:]) == (b"RIFF", b"AVI ")


class Track:
    """The sound of a video, decoded whole, of one channel or their mean; read like a `soundfile.SoundFile`."""

    def __init__(self, data: Any, channel: str = "mean") -> None:
        """`data`: the path or the bytes of a file. Raises a ValueError where it holds no sound, or no such channel."""
        av = registry.require("av")

        def opened() -> Any:
            return av.open(io.BytesIO(data) if isinstance(data, bytes) else str(data))

        with opened() as container:
            if not container.streams.audio:
                raise ValueError("no sound in it")
            begin, length = _pictures(container)
        with opened() as container:
            stream = container.streams.audio[0]
            check_rate(stream.rate)
            parts, values = [], 0
            for f in _frames(av, stream):
                parts.append((f.time, f.to_ndarray(), f.format.is_planar, f.layout.nb_channels))
                values += parts[-1][1].size
                SOUND_VALUES.check(values, "its sound has at least")
            self.samplerate, self.channels = int(stream.rate), 1
        if not parts:
            raise ValueError("its sound cannot be decoded")
        if length is not None:
            SOUND_VALUES.check(round(length * self.samplerate), "its pictures last")
        waves = [_heard(a if planar else a.reshape(-1, n).T, channel) for _, a, planar, n in parts]
        counted = begin is None and length is not None
        begin = next((t for t, *_ in parts if t is not None), 0.0) if begin is None else begin
        offsets = [None if counted or t is None else t - begin for t, *_ in parts]
        places = _places(offsets, waves, self.samplerate, PAUSE + (length or 0.0))
        end = places[-1] + len(waves[-1])
        self.wave = np.zeros(end if length is None else round(length * self.samplerate), np.float32)
        for place, wave in zip(places, waves, strict=True):
            low, high = max(place, 0), min(place + len(wave), len(self.wave))
            if low < high:
                self.wave[low:high] = wave[low - place : high - place]
        self.frames, self._at = len(self.wave), 0

    def seek(self, at: int) -> None:
        """Go to a sample."""
        self._at = at

    def read(self, count: int, dtype: str = "float32", always_2d: bool = True) -> np.ndarray:
        """The next samples, fewer at the end: float32 [S, 1]."""
        found = self.wave[self._at : self._at + count]
        self._at += len(found)
        return found[:, None]


def _heard(sound: np.ndarray, channel: str) -> np.ndarray:
    """Return the channel of sound [C, S] that is heard, or the mean of all: [S]."""
    place = channel_of(channel, len(sound))
    return sound.mean(0) if place is None else sound[place]


def _pictures(container: Any) -> tuple[float | None, float | None]:
    """When the first picture is shown, and for how many seconds pictures are; None for what is not known."""
    if not container.streams.video:
        return None, None
    stream = container.streams.video[0]
    times, stamps = read_clock(stream)
    if len(times) < 2:
        return None, None
    if stamps is None:
        return None, float(times[-1] + times[1])
    gap = (stamps[-1] - stamps[0]) / (len(stamps) - 1)
    base = float(stream.time_base)
    return float(stamps[0]) * base, float(stamps[-1] - stamps[0] + gap) * base


def _places(
    times: Sequence[float | None], waves: Sequence[np.ndarray], rate: int, farthest: float
) -> list[int]:
    """Return the first sample of each part of the sound, by the second when it is heard.

    A part that has no time, or lies farther than so many seconds from the end of the part before it, follows that part.
    """
    places, end = [], 0
    for time, wave in zip(times, waves, strict=True):
        place = end if time is None else round(time * rate)
        places.append(place if abs(place - end) <= farthest * rate else end)
        end = places[-1] + len(wave)
    return places


def _frames(av: Any, stream: Any) -> Any:
    """Decoded frames as floats, one after the other."""
    resampler = av.AudioResampler(format="flt")
    for packet in stream.container.demux(stream):
        for frame in packet.decode():
            yield from resampler.resample(frame)
    yield from resampler.resample(None)
