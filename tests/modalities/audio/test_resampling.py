"""Resampling: the sound is right, and memory and time are bounded, whatever the rate."""

from __future__ import annotations

import itertools
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from multissl.contract.data import Sample, Unreadable
from multissl.modalities.audio.adapter import Audio
from multissl.modalities.audio.files import Clip
from multissl.modalities.audio.resampling import interpolate, resample

torchaudio = pytest.importorskip("torchaudio", reason="the extra `audio` is not installed")
soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
RATE = 16_000
ORDINARY = (8000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000)
ODD = (101, 4001, 15_999, 22_051, 44_101, 48_001, 999_983)


def tone(rate: int, pitch: float, seconds: float = 1.0) -> torch.Tensor:
    at = torch.arange(math.ceil(seconds * rate), dtype=torch.float64) / rate
    return (0.5 * torch.sin(2 * math.pi * pitch * at)).float()


@pytest.mark.parametrize(("native", "rate"), [*itertools.permutations(ORDINARY, 2)])
def test_ordinary_rates_are_torchaudio_s_to_the_bit(native: int, rate: int) -> None:
    wave = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    expected = torchaudio.transforms.Resample(native, rate)(wave)
    assert torch.equal(resample(wave, native, rate), expected)
    torch.testing.assert_close(
        interpolate(wave, native, rate), expected, atol=2e-4, rtol=0
    )  # its phases are fp32


@pytest.mark.parametrize("native", ODD)
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_odd_rates_keep_pitch_and_length(native: int, rate: int) -> None:
    pitch, seconds = min(440.0, 0.2 * native), 3.0
    wave = resample(tone(native, pitch, seconds), native, rate)
    assert len(wave) == seconds * rate
    inside = slice(rate // 2, -rate // 2)  # sound begins and ends in silence
    torch.testing.assert_close(wave[inside], tone(rate, pitch, seconds)[inside], atol=2e-3, rtol=0)


def test_what_the_wanted_rate_cannot_hold_is_filtered_out() -> None:
    assert resample(tone(44_101, 12_000), 44_101, RATE)[1000:-1000].abs().max() < 1e-3


def test_lengths_are_those_of_torchaudio() -> None:
    for native, length in itertools.product((4001, 15_999), (1, 2, 99, 1000)):
        assert len(resample(torch.zeros(length), native, RATE)) == math.ceil(length * RATE / native)


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_memory_is_bounded_for_every_rate_and_for_many_of_them() -> None:
    code = """
import resource, torch, torchaudio
from multissl.modalities.audio.resampling import resample
wave = torch.randn(4000)
resample(wave, 44_100, 16_000)
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (512 << 20),) * 2)
for native in (4001, 44_101, 22_051, 999_983, 9_999_991, *range(15_900, 16_100), *range(44_000, 44_200)):
    assert torch.isfinite(resample(wave, native, 16_000)).all()
resample(torch.randn(60 * 44_101), 44_101, 16_000)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_stretches_of_a_long_recording_of_an_odd_rate_are_whole(tmp_path: Path) -> None:
    path, native = tmp_path / "a.wav", 8009
    soundfile.write(path, tone(native, 440, 61).numpy(), native, subtype="FLOAT")
    clip = Clip(Sample(str(path), 0), RATE)
    assert clip.length == 61 * RATE
    wave = clip.cut(40 * RATE, 4000)
    assert len(wave) == 4000
    torch.testing.assert_close(wave[500:-500], tone(RATE, 440, 0.25)[500:-500], atol=2e-3, rtol=0)


@pytest.mark.parametrize("native", [0, 1, 99, 10_000_001, 1_000_000_007, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_rate_that_no_recording_has_is_told(tmp_path: Path, native: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(RATE, 440).numpy(), RATE)
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", native)
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=r"a\.wav") as caught:
        Clip(Sample(str(path), 5), RATE)
    if 0 < native < 2**31:  # libsndfile has words of its own for the others
        assert f"a.wav: its header says {native:,} samples per second: want 100 to" in caught.value.reason
    assert caught.value.index == 5


def test_a_run_wants_a_rate_that_recordings_have() -> None:
    for rate in (99, 10_000_001):
        with pytest.raises(ValueError, match=f"modality.rate={rate}: want 100 to 1e"):
            Audio.Config(rate=rate)
