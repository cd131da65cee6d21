"""Sound at another rate: torchaudio's band-limited interpolation at a bounded cost for any pair of rates.

torchaudio keeps a filter for every phase between two rates, rate/g of them with native/g taps and more, g being the
greatest common divisor: 160 x 477 from 44,100 to 16,000 Hz, but 16,000 x 44,135 from 44,101, which take 24 GiB to make.
Where they would be many, the same windowed sinc is worked out around every sample instead, so the sound is the same for
any rate: nothing is rounded to a ratio nearby, memory is that of a block, and time goes with the length of the sound.
Source: J. O. Smith, Digital Audio Resampling; torchaudio's `resample` with its defaults.
Shapes: S' samples at the native rate, S at the wanted rate, N samples of a block, K taps.  State: none.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl import registry

SLOWEST, FASTEST = 100, 10_000_000
"""Samples per second that the header of a recording is believed to mean."""
LOBES, ROLLOFF = 6, 0.99
"""Half the zero crossings of the sinc, and its cut-off in shares of the lower Nyquist frequency: torchaudio's."""
BLOCK = 1 << 20
"""Taps held at once, of a kernel that is kept (4 MiB each, 16 of them) or of a block that is worked out."""


def check_rate(native: int) -> None:
    """Raise a ValueError where no recording has so many samples per second."""
    if not SLOWEST <= native <= FASTEST:
        raise ValueError(
            f"its header says {native:,} samples per second: want {SLOWEST} to {FASTEST:,}; write the rate at which it"
            " was recorded into the header"
        )


def resample(wave: Tensor, native: int, rate: int) -> Tensor:
    """Return sound [S'] at another rate, band-limited: [S], S = ceil(S' * rate / native)."""
    return wave if native == rate else _resampler(native, rate)(wave)


@functools.lru_cache(maxsize=16)
def _resampler(native: int, rate: int) -> Callable[[Tensor], Tensor]:
    divisor = math.gcd(native, rate)
    taps = native // divisor + 2 * _reach(native, rate)
    if rate // divisor * taps <= BLOCK:
        return registry.require("torchaudio").transforms.Resample(native, rate)
    return functools.partial(interpolate, native=native, rate=rate)


def _reach(native: int, rate: int) -> int:
    """Return how many native samples to either side a sample at the wanted rate is made of."""
    return math.ceil(LOBES * max(1.0, native / rate) / ROLLOFF)


def interpolate(wave: Tensor, native: int, rate: int) -> Tensor:
    """Return sound [S'] at another rate, the filter worked out around each sample: fp32 [S]."""
    scale, reach = ROLLOFF * min(1.0, rate / native), _reach(native, rate)
    around = F.pad(wave, (reach, reach)).unfold(0, 2 * reach + 1, 1)  # [S', K], a view
    places = torch.arange(-reach, reach + 1, dtype=torch.float64)
    count, size = -(-len(wave) * rate // native), max(BLOCK // len(places), 1)
    parts = [wave.new_empty(0)]
    for first in range(0, count, size):
        at = (
            torch.arange(first, min(first + size, count)) * native
        )  # [N], in shares 1/rate of a native sample
        phase = (at % rate)[:, None].double() / rate
        t = ((places - phase) * scale).clamp(-LOBES, LOBES).float()  # [N, K], in zero crossings
        taps = torch.sinc(t) * torch.cos(t * (math.pi / 2 / LOBES)).square() * scale
        parts.append((around[at // rate] * taps).sum(1))
    return torch.cat(parts)
