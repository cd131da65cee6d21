"""Nearest neighbors by cosine, as numbers and as a picture for the report.

Shapes: S samples in the bank, Q queries, F features, k neighbors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Figure
from multissl.contract.modality import Modality
from multissl.inference import (
    Pooled,
    drawn,
    featurize_places,
    readable_views,
    stream_of,
)

SAME, OTHER, PLAIN = (0, 114, 178), (213, 94, 0), (150, 150, 150)
"""Frames in colors that the color-blind tell apart: same class, another class, no labels."""


def check_temperature(temperature: float) -> None:
    """Raise a ValueError for a temperature of votes that is too low, or no number."""
    if not temperature >= 0.01:
        raise ValueError(f"temperature={temperature}: want 0.01 or more, 0.07 is usual")


def centered(bank: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Both [*, F] minus the bank's mean, then l2-normalized."""
    mean = bank.double().mean(0).to(bank.dtype)
    return F.normalize(bank - mean, dim=1), F.normalize(queries - mean, dim=1)


def normalized(bank: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Both [*, F], l2-normalized alone."""
    return F.normalize(bank, dim=1), F.normalize(queries, dim=1)


WIDEST, SMALLEST = 2048, 1e-6
"""Of features that are wider, and more samples, so many random projections are whitened; components whose variance is
a smaller part of the largest one hold rounding alone."""


def whitened(bank: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Both [*, F] on the bank's principal components, each of unit variance there, then l2-normalized: [*, F']."""
    center = bank.double().mean(0)
    bank, queries = bank.double() - center, queries.double() - center  # both on the CPU, where float64 is
    if min(bank.shape) > WIDEST:
        draw = torch.randn(
            bank.shape[1], WIDEST, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        bank, queries = bank @ draw, queries @ draw
    if len(bank) < bank.shape[1]:
        _, singular, rows = torch.linalg.svd(bank, full_matrices=False)
        variances, axes = singular.square() / len(bank), rows.T  # [S], [F, S]
    else:
        variances, axes = torch.linalg.eigh(bank.T @ bank / len(bank))  # [F], [F, F]
    kept = variances > SMALLEST * variances.max().clamp(min=torch.finfo(variances.dtype).tiny)
    scaled = axes[:, kept] * variances[kept].rsqrt()
    return F.normalize((bank @ scaled).float(), dim=1), F.normalize((queries @ scaled).float(), dim=1)


def nearest(bank: Tensor, queries: Tensor, k: int, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Similarity and index [Q, k] of the k nearest bank rows, nearest first, `chunk` queries at a time."""
    k = min(k, len(bank))
    found = [(part @ bank.T).topk(k, dim=1) for part in queries.split(chunk)]  # [chunk, S] -> [chunk, k]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def neighbor_strip(
    encoders: FrozenEncoders,
    modality: Modality,
    split: str,
    bank: int = 2000,
    queries: int = 6,
    k: int = 5,
    stream: str = "",
) -> Figure | None:
    """Some queries of `split`, each with its k nearest of `bank` training samples; None for no pictures."""
    stream = stream_of(modality, stream)
    train: Any = modality.dataset("train")
    asked: Any = modality.dataset(split)
    places = drawn(len(asked), queries)
    if _pictures(modality, split, places[:1], stream) is None:
        return None
    device = encoders.device
    featurize = Pooled(encoders)
    stored, classes, kept = featurize_places(
        featurize, modality, "train", drawn(len(train), bank), device=device, stream=stream
    )
    x, truth, places = featurize_places(featurize, modality, split, places, device=device, stream=stream)
    _, index = nearest(*centered(stored, x), k)  # [Q, k]
    rows = []
    for query, found in enumerate(index):
        left = _pictures(modality, split, [places[query]], stream)
        right = _pictures(modality, "train", [kept[i] for i in found], stream)
        assert left is not None
        assert right is not None
        label = int(truth[query])
        frames = [PLAIN if label < 0 else SAME if int(classes[i]) == label else OTHER for i in found]
        tiles = [framed(left[0], PLAIN), *(framed(*pair) for pair in zip(right, frames, strict=True))]
        gap = np.full((len(tiles[0]), 12, 3), 255, np.uint8)
        rows.append(np.concatenate([tiles[0], gap, *tiles[1:]], axis=1))
    caption = (
        f"Left: samples of {split}. Right: the {k} nearest of {len(kept)} training samples, nearest first."
    )
    if bool((truth >= 0).any()):
        caption += " Blue frame: same class; orange: another class."
    return Figure("Nearest neighbors", np.concatenate(rows), caption)


def _pictures(modality: Modality, split: str, places: list[int], stream: str) -> np.ndarray | None:
    """Pictures uint8 [R, H, W, 3] of some samples as the encoder sees them."""
    data = modality.dataset(split)
    views, _ = readable_views(modality, [data[i] for i in places], stream)
    return modality.pictures(views)


def framed(picture: np.ndarray, color: tuple[int, int, int], width: int = 3) -> np.ndarray:
    """A picture [H, W, 3], enlarged to 64 pixels or more, in a frame of a color and a white margin."""
    times = max(1, -(-64 // min(picture.shape[:2])))
    picture = picture.repeat(times, axis=0).repeat(times, axis=1)
    h, w, _ = picture.shape
    tile = np.full((h + 4 * width, w + 4 * width, 3), 255, np.uint8)
    tile[width:-width, width:-width] = color
    tile[2 * width : -2 * width, 2 * width : -2 * width] = picture
    return tile
