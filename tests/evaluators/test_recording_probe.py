"""The recording probe: recordings with a mark of their own are recognized, alike ones are not; silence is left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Features, Progress
from multissl.contract.plans import Masking
from multissl.evaluators.recording_probe import RecordingProbe, recognized
from multissl.modalities.audio.adapter import Audio
from tests.evaluators.clusters import Clusters

END = Progress(step=1, total=1)
soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")


def recordings(folder: Path, marked: bool) -> Audio:
    """24 recordings of noise; with a mark, each has a hum of its own all through; two are silent at the end."""
    rng, t = np.random.default_rng(0), np.arange(16_000) / 16_000
    for i in range(24):
        wave = rng.normal(0, 0.05, 16_000)
        wave = wave + 0.3 * np.sin(2 * np.pi * 400 * 1.12**i * t) if marked else wave
        if i >= 22:
            wave[8000:] = 0
        soundfile.write(folder / f"{i:02}.wav", wave, 16_000)
    return Audio(Audio.Config(data=str(folder), frames=48, local_frames=16, mels=32, mean=-7.0, std=4.0))


def bands(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
    """Return the mean of every band as features."""
    return [Features(pooled=v.x[:, 0].mean(1), tokens=v.x[:, 0]) for v in views]


def fresh_bands() -> FrozenEncoders:
    return FrozenEncoders(bands, torch.device("cpu"))


def test_a_mark_is_recognized_and_noise_is_not(tmp_path: Path) -> None:
    probe = RecordingProbe(RecordingProbe.Config(split="all"))
    for marked, low, high in ((True, 90, 101), (False, -1, 30)):
        folder = tmp_path / str(marked)
        folder.mkdir()
        modality = recordings(folder, marked)
        found = probe.run(fresh_bands(), modality, END)
        assert low < found["same"] < high
        assert found["chance"] == pytest.approx(100 / 22), "silent halves leave a recording out"
        baselines = probe.baselines(modality)
        assert set(baselines) == {"raw", "mean_std"}
        assert low < baselines["mean_std"] < high


def test_parts_are_the_two_halves(tmp_path: Path) -> None:
    wave = np.linspace(-0.5, 0.5, 9001, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    modality = Audio(Audio.Config(data=str(tmp_path)))
    first, second = modality.parts(modality.dataset("all")[0])
    np.testing.assert_array_equal(first.data, wave[:4500])
    np.testing.assert_array_equal(second.data, wave[4501:])


def test_the_nearest_row_after_centering_counts() -> None:
    first = torch.tensor([[10.0, 1.0], [10.0, -1.0], [11.0, 0.0]])
    second = torch.tensor([[10.0, 3.0], [10.0, 2.0], [15.0, 0.0]])
    expected: Tensor = torch.tensor([True, False, True])
    assert recognized(first, second) == pytest.approx(100 * expected.double().mean().item())


def test_data_without_recordings_gives_no_figure_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "multissl.contract.evaluator.log.warning", lambda text, *given: said.append(text % given)
    )
    probe, modality = RecordingProbe(RecordingProbe.Config()), Clusters(Clusters.Config())
    assert probe.run(fresh_bands(), modality, END) == {}
    assert probe.baselines(modality) == {}
    assert said == ["recording_probe: the data is no recordings, nothing to measure"]


def test_one_recording_is_refused() -> None:
    with pytest.raises(ValueError, match=r"recordings=1: want 0 \(all\) or 2 or more"):
        RecordingProbe.Config(recordings=1)
