"""Sound files: formats, rates, channels, seeking, names as labels and groups, and broken recordings."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multissl.contract.data import Sample, Unreadable
from multissl.contract.plans import ViewPlan
from multissl.engine.batches import StepBatches
from multissl.modalities.audio.adapter import Audio
from multissl.modalities.audio.files import Clip, measure, resample
from multissl.random import RowRandom

soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
RATE = 16_000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def write(path: Path, wave: np.ndarray = TONE, rate: int = RATE, **options: Any) -> str:
    soundfile.write(path, wave, rate, **options)
    return str(path)


def read(path: str, rate: int = RATE) -> torch.Tensor:
    return Clip(Sample(path, 0), rate).cut(0, 10**9)


@pytest.mark.parametrize(
    ("name", "subtype", "error"),
    [("a.wav", "PCM_U8", 0.01), ("a.wav", "PCM_16", 1e-4), ("a.wav", "PCM_24", 1e-6), ("a.wav", "FLOAT", 0.0),
     ("a.flac", "PCM_16", 1e-4), ("a.ogg", "VORBIS", 0.05)],
)  # fmt: skip
def test_every_width_and_format_gives_amplitudes_of_one(
    tmp_path: Path, name: str, subtype: str, error: float
) -> None:
    wave = read(write(tmp_path / name, subtype=subtype))
    assert wave.dtype == torch.float32
    torch.testing.assert_close(wave, torch.from_numpy(TONE), atol=error, rtol=0)


def test_mp3_is_read(tmp_path: Path) -> None:
    wave = read(write(tmp_path / "a.mp3"))
    spectrum = torch.fft.rfft(wave[:RATE]).abs()
    assert int(spectrum.argmax()) == 440


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.stack([TONE, -0.5 * TONE], 1)
    torch.testing.assert_close(
        read(write(tmp_path / "a.wav", stereo, subtype="FLOAT")), torch.from_numpy(TONE * 0.25)
    )


@pytest.mark.parametrize(
    ("channel", "share"),
    [("mean", 0.25), ("left", 1.0), ("first", 1.0), ("0", 1.0), ("right", -0.5), ("1", -0.5)],
)
def test_one_channel_is_heard_where_that_is_asked(tmp_path: Path, channel: str, share: float) -> None:
    stereo = np.stack([TONE, -0.5 * TONE], 1)
    path = write(tmp_path / "a.wav", stereo, subtype="FLOAT")
    wave = Clip(Sample(path, 0), RATE, channel=channel).cut(0, RATE)
    torch.testing.assert_close(wave, torch.from_numpy(TONE * np.float32(share)))
    modality = Audio.Config(data=str(tmp_path), channel=channel, frames=64, local_frames=32, std=1.0).build()
    raw = modality.collate([Sample(path, 0)], {"audio": ViewPlan(num_clean=1)}, RowRandom((0, 0), 0, 1, 1))
    middle = (RATE - raw["audio"]["clean"].shape[1] + 1) // 2
    heard = wave[middle : middle + raw["audio"]["clean"].shape[1]]
    torch.testing.assert_close(raw["audio"]["clean"][0], heard - heard.mean(), atol=1e-3, rtol=0)


def test_a_channel_that_is_not_there_is_named(tmp_path: Path) -> None:
    mono = write(tmp_path / "a.wav")
    assert len(Clip(Sample(mono, 0), RATE, channel="right").cut(0, RATE)) == RATE, (
        "both ears hear one channel"
    )
    with pytest.raises(Unreadable, match=r"has 1 channel, modality.channel=1 is number 2: mean hears all"):
        Clip(Sample(mono, 0), RATE, channel="1")
    with pytest.raises(
        ValueError, match=r"modality.channel='center': want mean, left, right, first, or a number"
    ):
        Audio.Config(channel="center")


def test_other_rates_are_resampled_and_keep_their_pitch(tmp_path: Path) -> None:
    pytest.importorskip("torchaudio", reason="the extra `audio` is not installed")
    for native in (8000, 44_100):
        tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(native) / native)).astype(np.float32)
        wave = read(write(tmp_path / "a.wav", tone, native, subtype="FLOAT"))
        assert len(wave) == RATE
        torch.testing.assert_close(wave[500:-500], torch.from_numpy(TONE)[500:-500], atol=2e-3, rtol=0)


def test_long_recordings_are_read_by_seeking_and_give_the_same_sound(tmp_path: Path) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 61 * RATE).astype(np.float32)
    clip = Clip(Sample(write(tmp_path / "a.wav", wave, subtype="FLOAT"), 0), RATE)
    assert clip._array is None, "it was decoded whole"
    assert clip.length == 61 * RATE
    np.testing.assert_array_equal(clip.cut(40 * RATE + 7, 4000), wave[40 * RATE + 7 :][:4000])
    assert len(clip.cut(61 * RATE - 600, 4000)) == 600


def test_bytes_and_members_of_archives_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac")
    content = Path(path).read_bytes()
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for i in range(4):
            for name, part in ((f"{i}.flac", content), (f"{i}.cls", str(i % 2).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(part)
                tar.addfile(info, io.BytesIO(part))
    data: Any = Audio(Audio.Config(data=str(tmp_path / "shard.tar"))).dataset("all")
    assert len(data) == 4
    assert torch.equal(Clip(data[1], RATE).cut(0, 10**9), read(path))
    assert torch.equal(Clip(Sample(content, 0), RATE).cut(0, 10**9), read(path))
    assert [data[i].label for i in range(4)] == [0, 1, 0, 1]


def digits(folder: Path, speakers: str = "abc", takes: int = 4) -> Audio:
    for speaker in speakers:
        for digit in range(3):
            for take in range(takes):
                noise = np.random.default_rng(take).normal(0, 0.1, 6000).astype(np.float32)
                write(folder / f"{digit}_{speaker}_{take}.wav", noise)
    options: Any = {"label_pattern": r"(\d)_\w_\d", "group_pattern": r"\d_(\w)_\d", "hold_out": "b"}
    return Audio(Audio.Config(data=str(folder), frames=32, local_frames=16, mels=32, **options))


def test_names_give_labels_and_speakers_and_one_speaker_is_held_out(tmp_path: Path) -> None:
    modality = digits(tmp_path)
    val, train = (modality.dataset(s) for s in ("val", "train"))
    assert (len(val), len(train)) == (12, 24)
    assert {val[i].group for i in range(12)} == {1}
    assert {train[i].group for i in range(24)} == {0, 2}
    assert {val[i].label for i in range(12)} == {0, 1, 2}
    assert all("_b_" in str(val[i].data) for i in range(12))


def test_patterns_and_groups_that_do_not_exist_are_named(tmp_path: Path) -> None:
    modality = digits(tmp_path)
    for options, words in (
        ({"hold_out": "z"}, r"hold_out='z': no sample is of this group; there are a, b, c"),
        ({"group_pattern": "", "hold_out": "b"}, r"no groups: set modality.group_pattern"),
        ({"label_pattern": "(x+)y"}, r"modality.label_pattern='\(x\+\)y' fits no name, such as .*0_a_0.wav"),
    ):
        with pytest.raises(ValueError, match=words):
            modality.cfg.replace(**options).build().dataset("val")


def broken(folder: Path) -> dict[str, str]:
    """Recordings that cannot be used, and the words they must be listed with."""
    write(folder / "silent.wav", np.zeros(RATE, np.float32))
    write(folder / "short.wav", TONE[:48])
    write(folder / "nan.wav", np.where(np.arange(RATE) == 9000, np.nan, TONE), subtype="FLOAT")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.flac").write_text("this is no sound")
    whole = Path(write(folder / "cut.flac", np.random.default_rng(0).normal(0, 0.1, RATE))).read_bytes()
    (folder / "cut.flac").write_bytes(whole[:60])
    return {
        "silent.wav": "is silent, every sample is 0",
        "short.wav": "3 ms of sound, a frame alone takes 25 ms",
        "nan.wav": "holds values that are no numbers",
        "empty.wav": "the file is empty",
        "text.flac": "Format not recognised|unknown format|Error opening",
        "cut.flac": "",
    }


def test_broken_recordings_are_told_in_one_line_that_names_the_file(tmp_path: Path) -> None:
    for name, words in broken(tmp_path).items():
        with pytest.raises(Unreadable, match=words or None) as caught:
            read(str(tmp_path / name))
        assert name in caught.value.reason
        assert "\n" not in caught.value.reason


def test_broken_recordings_are_skipped_and_listed_and_the_rest_trains(tmp_path: Path) -> None:
    count = len(broken(tmp_path))
    for i in range(12):
        write(tmp_path / f"good{i}.wav", np.random.default_rng(i).normal(0, 0.1, 6000))
    modality = Audio(Audio.Config(data=str(tmp_path), frames=32, local_frames=16, mels=32, patch=(8, 8)))
    steps = StepBatches(modality, {"audio": ViewPlan(num_global=2)}, 8, 0, 0, 1, final=True)
    listed: set[str] = set()
    for step in range(6):
        batch, skipped = steps[step]
        listed |= {reason for _, reason in skipped}
        assert torch.isfinite(batch[0].x).all()
    held_out = [Path(modality.dataset("val")[i].data).name for i in range(len(modality.dataset("val")))]
    assert len(listed) >= count - len(held_out)
    assert np.isfinite(modality.statistics()).all()


def test_a_truncated_wav_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write(path, subtype="PCM_16")
    path.write_bytes(path.read_bytes()[: 44 + 2 * 5000])
    assert len(read(str(path))) == 5000


def test_a_folder_without_sound_and_one_of_silence_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds no recordings, found 1 files \(.jpg\); looked for .wav"):
        Audio(Audio.Config(data=str(tmp_path))).dataset("train")
    for i in range(3):
        write(tmp_path / f"{i}.wav", np.zeros(RATE, np.float32))
    data = Audio(Audio.Config(data=str(tmp_path))).dataset("train")
    with pytest.raises(ValueError, match="none of the sounds can be read"):
        measure(data, RATE, 32)


def test_resampling_to_the_same_rate_is_the_same() -> None:
    wave = torch.randn(100)
    assert resample(wave, RATE, RATE) is wave
