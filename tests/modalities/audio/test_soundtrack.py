"""Sound out of a video file: on the clock of its pictures, whatever the container says of its own begin and end."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multissl.contract.data import Sample, Unreadable
from multissl.contract.plans import CLEAN, ViewPlan
from multissl.modalities.audio import soundtrack
from multissl.modalities.audio.adapter import Audio
from multissl.modalities.audio.soundtrack import Track
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.video.adapter import Video
from multissl.random import RowRandom

av: Any = pytest.importorskip("av", reason="the extra `video` is not installed")
pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
RATE, FPS = 16_000, 20


def film(path: Path, seconds: float, event: float, begin: float = 0.0, sound: float | None = None) -> Path:
    """Dark frames with a flash, a hum with a click, both at `event`; the sound lasts from `begin` for `sound`."""
    length = seconds if sound is None else sound
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=FPS)
        pictures.width = pictures.height = 32
        pictures.pix_fmt, pictures.bit_rate = "yuv420p", 2_000_000
        voice = container.add_stream("aac", rate=RATE)
        voice.layout = "mono"
        for n in range(round(seconds * FPS)):
            level = 250 if n == round(event * FPS) else 10
            container.mux(
                pictures.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), "rgb24"))
            )
        t = begin + np.arange(round(length * RATE)) / RATE
        wave = 0.01 * np.sin(2 * np.pi * 300 * t)
        near = np.abs(t - event) < 0.01
        wave[near] += 0.9 * np.sin(2 * np.pi * 2000 * t[near])
        frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, round(begin * RATE), Fraction(1, RATE)
        container.mux(voice.encode(frame))
        for each in (pictures, voice):
            container.mux(each.encode())
    return path


def click(wave: np.ndarray) -> float:
    """The second of the loudest 10 ms."""
    power = np.convolve(wave**2, np.ones(160), "same")
    return float(power.argmax()) / RATE


@pytest.mark.parametrize(("begin", "sound"), [(0.0, None), (0.0, 1.5), (0.3, 1.2), (0.0, 3.0)])
def test_sound_lies_on_the_clock_of_the_pictures(tmp_path: Path, begin: float, sound: float | None) -> None:
    path = film(tmp_path / "a.mp4", 2.0, 1.1, begin, sound)
    for data in (str(path), path.read_bytes()):
        track = Track(data)
        assert track.samplerate == RATE
        assert track.frames == pytest.approx(2 * RATE, abs=2), "sound and pictures do not last as long"
        assert click(track.wave) == pytest.approx(1.1, abs=0.03)
    quiet = track.wave[: round((begin - 0.1) * RATE)] if begin else track.wave[:0]
    assert not quiet.any(), "there is sound before it begins"


def member(seconds: float) -> dict[str, Any]:
    return {
        "audio": Audio.Config(
            frames=round(100 * seconds), local_frames=16, mels=32, patch=(4, 8), mean=-8.0, std=4.0
        ),
        "video": Video.Config(frames=16, size=16, local_size=16, patch=16, tubelet=2, seconds=seconds),
    }


@pytest.mark.parametrize(("begin", "sound"), [(0.0, None), (0.2, 1.1), (0.0, 3.0)])
def test_flash_and_click_of_one_file_meet_in_the_clean_views(
    tmp_path: Path, begin: float, sound: float | None
) -> None:
    (tmp_path / "clips").mkdir()
    for n, event in enumerate((0.8, 1.0, 1.2)):
        film(tmp_path / "clips" / f"{n}.mp4", 2.0, event, begin, sound)
    made = Paired.Config(members=member(0.8), data=(str(tmp_path / "clips"),)).build()
    data: Any = made.dataset("all")
    plans, rng = {"audio": CLEAN, "video": CLEAN}, RowRandom((0, 0), 0, 3, 3)
    sounds, clips = made.views(made.collate([data[n] for n in range(3)], plans, rng), plans, rng)
    heard = sounds.x[:, 0, :, 16:].mean(2).argmax(1) / 100  # the loudest frame of 10 ms
    seen = clips.x.mean((1, 3, 4)).argmax(1) * 0.8 / 16  # the lightest frame of 50 ms
    torch.testing.assert_close(heard, seen, atol=0.06, rtol=0)
    torch.testing.assert_close(seen, torch.tensor([0.2, 0.4, 0.6]), atol=0.051, rtol=0)


def test_flash_and_click_meet_in_global_views_wherever_these_lie(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for n, event in enumerate((0.8, 1.0, 1.2)):
        film(tmp_path / "clips" / f"{n}.mp4", 2.0, event)
    made = member(1.6)
    made["audio"] = made["audio"].replace(gain=0.0, noise=0.0, time_mask=0.0, frequency_mask=0.0)
    made["video"] = made["video"].replace(frames=32, jitter=0.0, grayscale=0.0, global_scale=(1.0, 1.0))
    paired = Paired.Config(members=made, data=(str(tmp_path / "clips"),)).build()
    data: Any = paired.dataset("all")
    plans = dict.fromkeys(made, ViewPlan(num_global=1))
    times = []
    for step in range(3):
        rng = RowRandom((0, step), 0, 3, 3)
        sounds, clips = paired.views(paired.collate([data[n] for n in range(3)], plans, rng), plans, rng)
        heard = sounds.x[:, 0, :, 16:].mean(2).argmax(1) / 100
        seen = clips.x.mean((1, 3, 4)).argmax(1) * 1.6 / 32
        # a frame of the clip lasts 0.05 s, one of the spectrogram 0.01 s
        torch.testing.assert_close(heard, seen, atol=0.061, rtol=0)
        times.append(seen)
    assert torch.stack(times).std(0).min() > 0, "views lie at one place"


def test_a_film_without_sound_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mute.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for n in range(30):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), n, np.uint8), "rgb24"))
            )
        container.mux(stream.encode())
    made, rng = member(0.8)["audio"].build(), RowRandom((0, 0), 0, 1, 1)
    with pytest.raises(Unreadable, match=r"mute.mp4: no sound in it"):
        made.collate([Sample(str(path), 0)], {"audio": CLEAN}, rng)


def test_a_film_whose_sound_has_no_possible_rate_is_told(tmp_path: Path) -> None:
    path = tmp_path / "slow.mkv"
    with av.open(str(path), "w") as container:
        voice = container.add_stream("pcm_s16le", rate=50)
        voice.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.ones((1, 500), np.int16), "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 50, 0, Fraction(1, 50)
        container.mux(voice.encode(frame))
    with pytest.raises(ValueError, match="its header says 50 samples per second: want 100 to 10,000,000"):
        Track(str(path))


def test_sound_of_films_put_together_follows_their_pictures(tmp_path: Path) -> None:
    path = film(tmp_path / "a.ts", 2.0, 1.1)
    one = Track(str(path))
    path.write_bytes(path.read_bytes() * 2)
    two = Track(str(path))
    assert two.frames == pytest.approx(2 * one.frames, abs=2)
    half = two.frames // 2
    for part in (two.wave[:half], two.wave[half:]):
        assert click(part) == pytest.approx(1.1, abs=0.2)  # the codec adds a tenth of a second to each film


@pytest.mark.parametrize("wrong", [None, -1e14, 1e14])
def test_parts_of_the_sound_without_a_possible_time_follow_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float | None
) -> None:
    path = str(film(tmp_path / "a.mp4", 2.0, 1.1))
    right = Track(path).wave
    decoded = soundtrack._frames

    def damaged(av: Any, stream: Any) -> Any:
        for number, frame in enumerate(decoded(av, stream)):
            if number in (0, 5, 6):
                frame.pts = None if wrong is None else round(wrong / frame.time_base)
            yield frame

    monkeypatch.setattr(soundtrack, "_frames", damaged)
    wave = Track(path).wave
    assert len(wave) == len(right)
    np.testing.assert_array_equal(
        wave[2048:], right[2048:]
    )  # the first parts are those the codec begins with
    monkeypatch.setattr(soundtrack, "_pictures", lambda _: (None, None))
    assert len(Track(path).wave) <= len(right) + 4096, "sound alone lasts longer than its parts"
