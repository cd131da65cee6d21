"""Untrained models of every modality, made small, and their samples as tensors."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from multissl.contract.encoder import Encoder, build_encoders
from multissl.contract.modality import Modality
from multissl.encoders.transformer import TransformerEncoder
from multissl.modalities.audio.adapter import Audio
from multissl.modalities.image.adapter import Image
from multissl.modalities.rl.adapter import RL
from multissl.modalities.tabular.adapter import Tabular
from multissl.modalities.tabular.tables import holding
from multissl.modalities.text.adapter import Text
from multissl.modalities.video.adapter import Video
from multissl.run.model import Model
from tests.helpers import stubs

ENCODER = TransformerEncoder.Config(dim=16, depth=2, heads=2)
ROWS = 5


def model_of(modality: Modality, encoder: Encoder.Config = ENCODER) -> Model:
    """Return an untrained model of a fitted modality, with the same encoder for all streams."""
    streams = modality.streams()
    torch.manual_seed(0)
    encoders = build_encoders(dict.fromkeys(streams, encoder), streams).eval().requires_grad_(False)
    for parameter in encoders.parameters():  # biases, tokens and scales that begin at 0 would hide a slip
        if parameter.ndim < 3:
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Model(stubs.recipe(), modality, encoders, torch.device("cpu"))


def pictures(rows: int = ROWS, channels: int = 3, side: int = 16) -> np.ndarray:
    """Return bytes [B, C, side, side]."""
    return np.random.default_rng(0).integers(0, 256, (rows, channels, side, side), np.uint8)


def waves(rows: int, length: int) -> np.ndarray:
    """Return sound that is softer at its ends, float32 [B, S]."""
    rng, at = np.random.default_rng(0), np.arange(length)
    tones = np.sin(at * rng.uniform(0.05, 0.6, (rows, 1))) * np.sin(np.pi * at / length) ** 4
    return (0.3 * tones + 0.0005 * rng.standard_normal((rows, length)) + 0.05).astype(np.float32)


def table(rows: int = 60) -> list[dict[str, Any]]:
    """Return rows with numbers, ties, missing cells, categories and dates."""
    rng = np.random.default_rng(0)
    return [
        {
            "size": float(rng.normal()) * 1e6,
            "count": int(rng.integers(0, 4)),
            "gaps": None if rng.random() < 0.3 else float(rng.random()),
            "color": [None, "red", "green", "blue"][rng.integers(0, 4)],
            "when": f"20{rng.integers(10, 25)}-0{rng.integers(1, 10)}-1{rng.integers(0, 10)}",
        }
        for _ in range(rows)
    ]


@functools.cache
def image() -> Modality:
    return Image.Config(size=16, local_size=8, patch=4, mask_group=4).build().fit()


@functools.cache
def video() -> Modality:
    return Video.Config(frames=4, size=16, local_size=8, patch=4, stride=1, mask_group=4).build().fit()


@functools.cache
def rl() -> Modality:
    return RL.Config(episodes=10, steps=12, size=24, frame=28, local_size=12, patch=12).build().fit()


@functools.cache
def text() -> Modality:
    return Text.Config(length=16, local_length=8, vocab=300).build().fit(["a text of some words"] * 9)


@functools.cache
def tabular(scaling: str = "quantile") -> Modality:
    data = holding(pd.DataFrame(table()))
    return Tabular.Config(data=data, label="", scaling=scaling, rare=1).build().fit()  # type: ignore[arg-type]


@functools.cache
def audio(**options: Any) -> Modality:
    usual = {"frames": 32, "local_frames": 16, "mels": 32, "patch": (8, 8), "mean": -8.0, "std": 4.0}
    return Audio.Config(**{**usual, **options}).build().fit()


def ids_of(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Return what the vocabulary makes of texts, int64 [B, L], and which ids are real."""
    modality = text()
    assert isinstance(modality, Text)
    rows = [torch.from_numpy(t.ids)[:16].long() for t in modality.vocabulary().encode(texts)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=modality.vocabulary().pad)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(r) for r in rows])[:, None]
    return ids, mask
