"""A file of features as data: what `multissl encode` wrote, with the labels, groups and splits that stand beside it.

`.npy` and `.safetensors` have a table of their rows, `FILE.rows.csv`; `.parquet` and `.csv` hold columns `f0`, `f1` and
so on beside those. Any such file will do, whoever wrote it: a split and features are needed, label and group are not.
Protocols that read pooled features see it as a modality whose samples are rows, encoded by leaving them as they are.
Shapes: S rows, D width.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from multissl.contract.data import Batch, Raw, Sample, Samples, Views
from multissl.contract.encoder import Encoder
from multissl.contract.learning import Features
from multissl.contract.modality import Baseline, Modality
from multissl.contract.plans import Masking, Plans, StreamSpec
from multissl.random import RowRandom
from multissl.registry import require
from multissl.run.feature_files import ARRAYS, TABLES, kind_of, rows_file
from multissl.sources.splits import SplitSamples, classes_of, numbered
from multissl.weights.files import read_weights

STREAM = "features"
LONGEST_HEADER = 1 << 20
"""Bytes of a header of safetensors that is looked at to tell features from weights."""


class Rows:
    """What a file of features holds."""

    def __init__(self, features: np.ndarray, words: dict[str, list[str]]) -> None:
        self.features, self.words = features, words


class Row(NamedTuple):
    """One row of a file."""

    number: int
    values: np.ndarray
    """float32 [D]"""


class Numbered(Sequence[Any]):
    """The rows of a file, each with its number."""

    def __init__(self, features: np.ndarray) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, number: Any) -> Any:
        return Row(int(number), self.features[number])


class FeatureRows(Modality):
    """Rows of a file of features."""

    plural = "rows of features"

    @dataclass(kw_only=True, slots=True)
    class Config(Modality.Config):
        """Options of a file of features."""

        data: str = ""
        """The file."""
        label: str = "label"
        """The column that holds the class."""

    cfg: Config

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self._rows: Rows | None = None

    @property
    def rows(self) -> Rows:
        """Return what the file holds, read once."""
        if self._rows is None:
            self._rows = read_rows(Path(self.cfg.data))
        return self._rows

    def streams(self) -> dict[str, StreamSpec]:
        """One row of numbers."""
        width = self.rows.features.shape[1]
        return {STREAM: StreamSpec(kind="columns", shape=(width,), num_tokens=1)}

    def dataset(self, split: str) -> Samples:
        """Return the rows of a split, by the column of that name."""
        rows, count = self.rows, len(self.rows.features)
        tags = rows.words.get("split", [""] * count)
        places = np.array([i for i, tag in enumerate(tags) if tag == split], dtype=np.int64)
        if not len(places):
            has = ", ".join(sorted(filter(None, set(tags)))) or "none: its column split is missing"
            raise ValueError(
                f"{self.cfg.data} has no {split} split; it has {has}. multissl encode without --split writes all"
            )
        if self.cfg.label != "label" and self.cfg.label not in rows.words:
            raise ValueError(
                f"--label {self.cfg.label}: {self.cfg.data} has no such column; it has {', '.join(rows.words)}"
            )
        labels, classes = classes_of(rows.words.get(self.cfg.label, [""] * count))
        groups = numbered(rows.words["group"])[0] if "group" in rows.words else np.full(count, -1)
        return SplitSamples(
            data=Numbered(rows.features), labels=labels, groups=groups, classes=classes, rows=places
        )

    def known_by(self, split: str) -> list[Sequence[Any]]:
        """Return the bytes of each row, and its label."""
        samples = self.dataset(split)
        rows = [samples[i].data.values.tobytes() for i in range(len(samples))]
        return [rows, samples.class_numbers()]

    def contents(self, split: str) -> list[Sequence[Any]]:
        """Return the bytes of each row: equal features are taken for those of one sample."""
        return self.known_by(split)[:1]

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        """Stack rows."""
        return {"x": torch.from_numpy(np.stack([s.data.values for s in samples]))}

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        """Return the rows as they are."""
        return Batch([Views(x=raw["x"], stream=STREAM, role="clean")])

    def baselines(self) -> dict[str, Baseline]:
        """Return none: the input that features were made of is not in the file."""
        return {}

    def describe(self, sample: Sample) -> dict[str, str]:
        """Return the file that a row is of, or its number."""
        names = self.rows.words.get("file")
        return {"row": str(sample.data.number)} if names is None else {"file": names[sample.data.number]}


class AsTheyAre(Encoder):
    """Features that are the input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Return every row as it is."""
        return [Features(pooled=v.x.float(), tokens=v.x.float()[:, None]) for v in views]


def holds_features(path: Path) -> bool:
    """Return whether a file is one of features, and not of weights."""
    if kind_of(path) in (*TABLES, ".npy"):
        return path.is_file()
    if kind_of(path) != ".safetensors" or not path.is_file():
        return False
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(size) if size <= LONGEST_HEADER else b""
    try:
        names = json.loads(header).keys() - {"__metadata__"} if header else set()
    except (ValueError, AttributeError):
        return False
    return names == {"features"}


def read_rows(path: Path) -> Rows:
    """Return features float32 [S, D] of a file and the words beside them; a ValueError says what is wrong with it."""
    try:
        if kind_of(path) in ARRAYS:
            features = np.load(path, allow_pickle=False) if kind_of(path) == ".npy" else _tensor(path)
            words = _read_words(rows_file(path), path)
        else:
            features, words = _read_table(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as features ({' '.join(str(error).split())[:200]})"
        ) from None
    if features.ndim == 3:
        raise ValueError(
            f"{path} holds every token {features.shape}: protocols on a file read pooled features, which multissl "
            "encode writes without --tokens"
        )
    if features.ndim != 2 or not features.size or features.dtype.kind not in "fiu":
        raise ValueError(f"{path} holds an array {features.shape} of {features.dtype}: want numbers [S, D]")
    lengths = {len(values) for values in words.values()}
    if lengths - {len(features)}:
        raise ValueError(f"{path} has {len(features):,} rows, the table of its rows {max(lengths):,}")
    return Rows(np.ascontiguousarray(features, dtype=np.float32), words)


def _tensor(path: Path) -> np.ndarray:
    return read_weights(path)["features"].float().numpy()


def _read_words(table: Path, path: Path) -> dict[str, list[str]]:
    if not table.is_file():
        raise ValueError(
            f"{table.name} is not beside it, which says split and label of each row of {path.name}"
        )
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        lines = [*reader]
        return {name: [line[name] or "" for line in lines] for name in reader.fieldnames or ()}


def _read_table(path: Path) -> tuple[np.ndarray, dict[str, list[str]]]:
    columns = _parquet_columns(path) if kind_of(path) == ".parquet" else _csv_columns(path)
    numbers = [name for name in columns if re.fullmatch(r"f\d+", name)]
    if not numbers:
        raise ValueError(f"no columns f0, f1, ... of features; it has {', '.join([*columns][:8])}")
    features = np.stack([np.asarray(columns[name], dtype=np.float32) for name in numbers], axis=1)
    words = {
        name: ["" if value is None else str(value) for value in values]
        for name, values in columns.items()
        if name not in numbers
    }
    return features, words


def _parquet_columns(path: Path) -> dict[str, Any]:
    table = require("pyarrow.parquet").read_table(path)
    return {
        name: table[name].to_numpy() if re.fullmatch(r"f\d+", name) else table[name].to_pylist()
        for name in table.column_names
    }


def _csv_columns(path: Path) -> dict[str, Any]:
    with path.open(newline="", encoding="utf-8") as file:
        names, *lines = [*csv.reader(file)] or [[]]
    for number, line in enumerate(lines, start=2):
        if len(line) != len(names):
            raise ValueError(f"line {number} has {len(line)} cells, the first one {len(names)}")
    return {name: [line[i] for line in lines] for i, name in enumerate(names)}
