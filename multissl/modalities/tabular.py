"""Tables: rows of numbers and categories, corrupted by taking cells from other rows.

A view replaces a share of a row's cells by values of the same column from other training rows (SCARF, Bahri et al.,
ICLR 2022, arXiv 2106.15147). The schema (column kinds, means, levels) is fitted on the training rows only.
Shapes: B samples of this rank, V views, R = V*B rows, C columns, S rows of the bank.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from multissl import registry
from multissl.modalities.base import Modality, pack_masks
from multissl.modalities.multiblock import as_masks, draw_multiblock, largest_target
from multissl.random import RowRandom
from multissl.types import Batch, Plans, Raw, Sample, StreamSpec, Unreadable, Views

MISSING = {"", "?", "NA", "NaN", "nan", "null", "None"}


class Tabular(Modality):
    """Rows of a csv file or of one of scikit-learn's tables."""

    @dataclass(kw_only=True, slots=True)
    class Config(Modality.Config):
        """Options of tables."""

        data: str = "sklearn:breast_cancer"
        """A csv file with a header, or `sklearn:NAME` for load_NAME of sklearn.datasets."""
        label: str = "target"
        """The column that holds the class; left out of the views. Empty: none."""
        corruption: tuple[float, ...] = (0.0, 0.6)
        """Share of swapped cells in each global view; the last one serves the views beyond."""
        local_columns: float = 0.5
        """Share of the columns that a local view keeps; the others are swapped."""

        def __post_init__(self) -> None:
            for share in (*self.corruption, self.local_columns):
                if not 0 <= share <= 1:
                    raise ValueError(
                        f"modality.corruption or local_columns holds {share}: want shares in 0..1"
                    )

    offers = frozenset({"local", "mask", "masks", "corrupt", "target"})

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.header, rows, labels = read_table(cfg.data, cfg.label)
        self.levels: list[list[str] | None] = []
        self.mean: list[float] = []
        self.std: list[float] = []
        self.splits: dict[str, list[int]] = {"train": [], "val": [], "test": []}
        for i in range(len(rows)):  # every tenth row is for validation, the one after it for the test
            self.splits[{0: "val", 1: "test"}.get(i % 10, "train")].append(i)
        self._fit([rows[i] for i in self.splits["train"]])
        self.rows, self.labels = rows, labels
        self.bank = torch.stack([self.encode(rows[i]) for i in self.splits["train"]])  # [S, C]

    def _fit(self, rows: Sequence[Sequence[str]]) -> None:
        for column in zip(*rows, strict=True):
            known = [cell for cell in column if cell not in MISSING]
            try:
                values = torch.tensor([float(cell) for cell in known], dtype=torch.float64)
                self.levels.append(None)
                self.mean.append(float(values.mean()) if known else 0.0)
                self.std.append(max(float(values.std()), 1e-6) if len(known) > 1 else 1.0)
            except ValueError:
                self.levels.append(["", *sorted(set(known))])  # level 0: missing or never seen
                self.mean.append(0.0)
                self.std.append(1.0)

    def encode(self, row: Sequence[str]) -> Tensor:
        """A row as floats [C]: standardised numbers (missing: the mean), category numbers (missing, unseen: 0)."""
        values = []
        for cell, levels, mean, std in zip(row, self.levels, self.mean, self.std, strict=True):
            if levels is not None:
                values.append(float(levels.index(cell)) if cell in levels else 0.0)
            else:
                values.append(0.0 if cell in MISSING else (float(cell) - mean) / std)
        return torch.tensor(values)

    def streams(self) -> dict[str, StreamSpec]:
        """One stream of columns."""
        columns, levels = len(self.header), tuple(len(v) if v else 0 for v in self.levels)
        return {
            "tabular": StreamSpec(
                kind="columns", shape=(columns,), num_tokens=columns, cardinalities=levels, target_dim=1,
                target_kind="cells", channels=tuple(self.header),
            )
        }  # fmt: skip

    def dataset(self, split: str) -> Dataset[Sample]:
        """Rows of a split."""
        return Rows(self.rows, self.labels, self.splits[split])

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        """Rows as floats [B, C]."""
        rows = []
        for sample in samples:
            try:
                rows.append(self.encode(sample.data))
            except ValueError as error:
                raise Unreadable(sample.index, f"row {sample.index}: {error}") from error
        return {"rows": torch.stack(rows), "sample_id": torch.tensor([s.index for s in samples])}

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        """Clean rows, and rows with cells of other rows."""
        plan, given, rows = plans["tabular"], self.cfg.corruption, raw["rows"]
        bank = self.bank.to(rows.device)
        batch: Batch = []
        if plan.num_clean:
            batch.append(self._views(rows.repeat(plan.num_clean, 1), "clean", plan.num_clean, raw))
        if plan.num_global:
            shares = [given[min(i, len(given) - 1)] for i in range(plan.num_global)]
            views = self._views(
                torch.cat([swap(rows, bank, s, rng)[0] for s in shares]), "global", len(shares), raw
            )
            if plan.target:
                views.target = views.x  # [R, C]
            if plan.context_ratio:
                grid = (1, rows.shape[1])
                drawn = draw_multiblock(plan, "random", grid, rng.fork(1))
                places = [d.to(rows.device) for d in drawn]
                largest = largest_target(plan, "random", grid)
                views.masks = as_masks(places[0], places[1], rows.shape[1], largest)
            elif plan.mask_ratio and plan.num_masks > 1:
                if plan.corrupt:
                    raise ValueError("tables corrupt cells under one mask: ask for num_masks=1")
                share = plan.mask_ratio[1]
                drawn = [[choose(rows.shape[1], share, rng) for _ in shares] for _ in range(plan.num_masks)]
                views.masks = tuple(pack_masks(torch.cat(each)) for each in drawn)
            elif plan.mask_ratio:
                hidden = torch.cat([choose(rows.shape[1], plan.mask_ratio[1], rng) for _ in shares])  # [R, C]
                if plan.corrupt:
                    donors = bank[rng.integers(len(bank), len(shares), rows.shape[1]).transpose(0, 1).flatten(0, 1),
                                  torch.arange(rows.shape[1], device=rows.device)]  # fmt: skip
                    donated = torch.where(hidden, donors, views.x)
                    hidden, views.x = (
                        hidden & (donated != views.x),
                        donated,
                    )  # a cell given its own value is no error
                views.masks = (pack_masks(hidden, None if not plan.corrupt else hidden.numel()),)
            batch.append(views)
        if plan.num_local:
            shares = [1 - self.cfg.local_columns] * plan.num_local
            local = torch.cat([swap(rows, bank, s, rng)[0] for s in shares])
            batch.append(self._views(local, "local", plan.num_local, raw))
        return batch

    @staticmethod
    def _views(x: Tensor, role: Any, count: int, raw: Raw) -> Views:
        return Views(x=x, stream="tabular", role=role, num_views=count, sample_id=raw["sample_id"])

    def state(self) -> dict[str, Any]:
        """The fitted schema."""
        return {"header": self.header, "levels": self.levels, "mean": self.mean, "std": self.std}

    def restore(self, state: dict[str, Any]) -> None:
        """Read new rows by the schema of the training data."""
        if state["header"] != self.header:
            raise ValueError(
                f"modality.data has columns {self.header}, the model was trained on {state['header']}"
            )
        self.levels, self.mean, self.std = state["levels"], state["mean"], state["std"]


class Rows(Dataset[Sample]):
    """Some rows of a table."""

    def __init__(self, rows: list[list[str]], labels: list[int], index: list[int]) -> None:
        self.rows, self.labels, self.index = rows, labels, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> Sample:
        row = self.index[item]
        return Sample(self.rows[row], item, self.labels[row])


def choose(columns: int, share: float, rng: RowRandom) -> Tensor:
    """bool [B, C] with round(share * C) True cells in every row."""
    return rng.rand(columns).argsort(1).argsort(1) < round(share * columns)


def swap(rows: Tensor, bank: Tensor, share: float, rng: RowRandom) -> tuple[Tensor, Tensor]:
    """rows [B, C] with a share of the cells taken from the same column of bank [S, C], and which cells those are."""
    hit = choose(rows.shape[1], share, rng)
    donors = rng.integers(len(bank), rows.shape[1])
    return torch.where(hit, bank.gather(0, donors), rows), hit


def read_table(data: str, label: str) -> tuple[list[str], list[list[str]], list[int]]:
    """Header, cells and class numbers (-1 without labels) of a table."""
    if data.startswith("sklearn:"):
        loader = getattr(registry.require("sklearn.datasets"), f"load_{data.removeprefix('sklearn:')}", None)
        if loader is None:
            raise ValueError(
                f"modality.data={data!r}: scikit-learn has no such table; try sklearn:breast_cancer"
            )
        table = loader()
        header, cells = [*map(str, table.feature_names)], [[*map(str, row)] for row in table.data.tolist()]
        return header, cells, [int(t) for t in table.target]
    path = Path(data)
    if not path.is_file():
        raise ValueError(f"modality.data={data!r}: no such file; give a csv file with a header")
    with path.open(newline="") as file:
        header, *lines = [[cell.strip() for cell in line] for line in csv.reader(file) if line]
    if not lines:
        raise ValueError(f"modality.data={data!r}: the file holds no rows below its header")
    if label not in header:
        return header, lines, [-1] * len(lines)
    place = header.index(label)
    classes = sorted({line[place] for line in lines})
    labels = [classes.index(line[place]) for line in lines]
    drop = lambda line: line[:place] + line[place + 1 :]  # noqa: E731
    return drop(header), [drop(line) for line in lines], labels
