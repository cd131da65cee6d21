"""Windows of an accelerometer: a modality of a package of its own, in one file with its recipe.

A recording is a window of three axes in g, longer than a view; a view is a crop of it at a random time, made stronger
or weaker as a whole, with noise. Tokens are stretches of `patch` readings.
Shapes: B samples of this rank, V views, R = V*B rows stacked view-major, S readings of a recording, T of a view, N
tokens.  State: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multissl.configs.shared.common import watched
from multissl.contract.data import Batch, Raw, Sample, Samples, Unreadable, Views
from multissl.contract.modality import Modality
from multissl.contract.plans import Plans, StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.optim.adamw import AdamW
from multissl.layers.heads import MLPHead
from multissl.modalities.masks import draw_masks
from multissl.objectives.infonce import InfoNCE
from multissl.random import RowRandom
from multissl.recipe import Recipe

STREAM = "accelerometer"
RATE = 50
"""Readings a second of the demo."""


class Accelerometer(Modality):
    """Windows of three axes."""

    @dataclass(kw_only=True, slots=True)
    class Config(Modality.Config):
        """Options of windows."""

        data: str = ""
        """An .npz with `windows` [n, 3, S] in g and `labels` [n]; empty: a synthetic demo of four activities."""
        length: int = 96
        """Readings of a view."""
        patch: int = 8
        """Readings of a token."""
        noise: float = 0.05
        """Deviation of the noise of a view, in g."""
        scale: float = 0.2
        """A view is stronger or weaker by up to this share."""
        mask_group: int = 8
        """Samples over which mask ratios are spread evenly; a rank owns whole groups."""

        def __post_init__(self) -> None:
            if self.patch < 1 or self.length % self.patch:
                raise ValueError(
                    f"modality.length={self.length}: want a multiple of patch={self.patch}, such as"
                    f" {max(self.length // max(self.patch, 1), 1) * max(self.patch, 1)}"
                )

    needs = frozenset({"mask", "drop", "target"})

    def streams(self) -> dict[str, StreamSpec]:
        """One grid of time with three channels."""
        cfg = self.cfg
        spec = StreamSpec(
            kind="grid", shape=(3, cfg.length), patch=(cfg.patch,), num_tokens=cfg.length // cfg.patch,
            target_dim=3 * cfg.patch, channels=("x", "y", "z"),
        )  # fmt: skip
        return {STREAM: spec}

    def dataset(self, split: str) -> Samples:
        """Every tenth recording validates."""
        return Recordings(*(read(self.cfg.data) if self.cfg.data else demo()), split)

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        """Crops [V*B, 3, T] by role: the middle for clean views, a random place for global ones."""
        plan, length = plans[STREAM], self.cfg.length
        for sample in samples:
            if sample.data.shape[-1] < length or not np.isfinite(sample.data).all():
                found = f"recording {sample.index} is {sample.data.shape}"
                raise Unreadable(sample.index, f"{found}: want finite numbers [3, {length} or more]")
        windows = [s.data for s in samples]
        raw: dict[str, Tensor] = {"sample_id": torch.tensor([s.index for s in samples])}
        if plan.num_clean:
            raw["clean"] = _crops(windows, [[0.5] * len(windows)] * plan.num_clean, length)
        if plan.num_global:
            raw["global"] = _crops(windows, rng.rand(plan.num_global).T.tolist(), length)
        return {STREAM: raw}

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        """Strength and noise, on the device of the crops; masks and what they hide."""
        given, plan, cfg = raw[STREAM], plans[STREAM], self.cfg
        made: list[Views] = []
        if "clean" in given:
            made.append(Views(x=given["clean"], stream=STREAM, role="clean", sample_id=given["sample_id"]))
        if "global" in given:
            count, x = plan.num_global, given["global"]
            strength = 1 + cfg.scale * (2 * rng.rand(count) - 1)  # [B, V]
            noise = cfg.noise * rng.randn(count, 3, cfg.length)  # [B, V, 3, T]
            x = x * strength.T.reshape(-1, 1, 1) + noise.transpose(0, 1).flatten(0, 1)
            views = Views(x=x, stream=STREAM, role="global", num_views=count, sample_id=given["sample_id"])
            if plan.mask_ratio is not None:
                grid = (1, cfg.length // cfg.patch)
                masks = draw_masks(plan, "random", grid, cfg.mask_group, rng.fork("masks"))
                views.masks = tuple(m.to(x.device) for m in masks)
            if plan.target:
                views.target = x.unflatten(2, (-1, cfg.patch)).transpose(1, 2).flatten(2)  # [R, N, 3 * patch]
            made.append(views)
        return Batch(made)


class Recordings(Samples):
    """Recordings of a split."""

    def __init__(self, windows: np.ndarray, labels: np.ndarray, split: str) -> None:
        validation = np.arange(len(windows)) % 10 == 9
        self.rows = np.flatnonzero(validation if split == "val" else ~validation)
        self.windows, self.labels = windows, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = int(self.rows[index])
        return Sample(self.windows[row], index, int(self.labels[row]))


def read(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Windows and labels of an .npz."""
    if not Path(path).is_file():
        raise ValueError(f"modality.data={path!r}: no such file")
    with np.load(path, allow_pickle=False) as file:
        return file["windows"].astype(np.float32), file["labels"]


def demo(count: int = 240, seconds: float = 2.6) -> tuple[np.ndarray, np.ndarray]:
    """Rest, steps, running and a ride over bumps, worn at any angle; synthetic."""
    rng, at = np.random.default_rng(0), np.arange(int(seconds * RATE)) / RATE
    labels = np.arange(count) % 4
    windows = []
    for label in labels:
        hertz, strength = ((0.0, 0.0), (1.8, 0.3), (2.8, 0.9), (7.0, 0.15))[label]
        beat = strength * np.sin(2 * np.pi * (hertz * rng.uniform(0.9, 1.1) * at + rng.random()))
        down, along = rng.normal(size=(2, 3, 1))
        window = down / np.linalg.norm(down) + beat * along / np.linalg.norm(along)
        windows.append(window + 0.05 * rng.normal(size=window.shape))
    return np.stack(windows).astype(np.float32), labels


def _crops(windows: list[np.ndarray], places: list[list[float]], length: int) -> Tensor:
    """`length` readings of every window at places [V][B] from 0 to 1: [V*B, 3, T]."""
    cut = []
    for view in places:
        for window, place in zip(windows, view, strict=True):
            start = int(place * (window.shape[-1] - length + 1))
            cut.append(window[:, start : start + length])
    return torch.from_numpy(np.stack(cut))


def default() -> Recipe:
    """InfoNCE between two crops of a recording."""
    encoder: Any = TransformerEncoder.Config(dim=32, depth=2, heads=2, pooling="mean", init_std=0.0)
    return Recipe(
        modality=Accelerometer.Config(),
        encoders={STREAM: encoder},
        objective=InfoNCE.Config(temperature=0.2, projector=MLPHead.Config(hidden=64, out=32, layers=2)),
        optim=AdamW.Config(lr=2e-3, warmup=10),
        batch_size=32,
        steps=200,
        evals=watched(every=100),
    )
