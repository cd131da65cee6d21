"""Tables: rows of numbers and categories, corrupted by taking cells from other rows.

Views replace a share of a row's cells by values of the same column, drawn in one of three ways that share no name in
print: `marginal`, each cell from the training column (SCARF, Bahri et al., ICLR 2022, arXiv 2106.15147); `permute`,
each column shuffled among the rows of a group (VIME, Yoon et al., NeurIPS 2020); `donor`, all replaced cells from one
other training row (SAINT's CutMix, Somepalli et al., arXiv 2106.01342). `subset` leaves cells out instead: each view
sees a run of columns of an order shuffled once (SubTab, Ucar et al., NeurIPS 2021, arXiv 2110.04361); `hide` leaves out
random ones, in every row others and another number of them. A replaced cell
often gets the value it had; masks of corrupted views therefore tell which cells changed, not which were drawn.
Shapes: B samples of this rank, V views, R = V*B rows, C columns, S training rows.
State: the schema fitted on the training rows, and the classes or cuts of the label.
"""

from __future__ import annotations

import functools
import logging
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from multissl.contract.abilities import HasTargets
from multissl.contract.data import Batch, Raw, Sample, Samples, Unreadable, Views
from multissl.contract.learning import Figure
from multissl.contract.modality import Modality, Need
from multissl.contract.plans import Plans, StreamSpec
from multissl.modalities.tabular import schema as schemas
from multissl.modalities.tabular import views as draws
from multissl.modalities.tabular.labels import Labels
from multissl.modalities.tabular.preparation import TablePreparation, preparation_of
from multissl.modalities.tabular.schema import Scaling, Schema
from multissl.modalities.tabular.source import UNNAMED, TableSource, as_column, read_source, source_of
from multissl.modalities.tabular.tables import Table
from multissl.random import RowRandom
from multissl.sources.payloads import Some
from multissl.sources.tables import say_once

log = logging.getLogger("multissl")
STREAM = "tabular"


class Tabular(HasTargets):
    """Rows of a file, of one of scikit-learn's tables, or of a DataFrame."""

    @dataclass(kw_only=True, slots=True)
    class Config(Modality.Config):
        """Options of tables."""

        data: str = "demo"
        """A .csv, .tsv, .parquet, .feather, .jsonl, .json or .xlsx file, each also with .gz, a folder of them or a
        pattern (`part-*.csv`), whose names may say train, val or test; `sklearn:NAME` for load_NAME of
        sklearn.datasets, what `holding` gives for a DataFrame, or the built-in demo."""
        test: str = ""
        """A file of test rows. Empty: the one beside `data` named test instead of train, else every tenth row."""
        label: str = UNNAMED
        """The column that holds the class or number to predict; left out of the views, as are others that are called
        like a label. Empty: none, and all columns are inputs."""
        inputs: tuple[str, ...] = ()
        """Columns that are inputs though they are called like a label."""
        group: str = ""
        """A column whose equal values (a customer, a patient) stay in one split; left out of the views too."""
        ignore: tuple[str, ...] = ()
        """More columns to leave out: ids, dates, what is known only afterwards."""
        categorical: tuple[str, ...] = ()
        """Columns of numbers that are names."""
        delimiter: str = ""
        """What parts the cells of a .csv file, one character or tab, semicolon, bar; empty: found in the file."""
        missing: tuple[str, ...] = ()
        """More words that stand for a missing cell, beside NA, NaN, null, None and what else pandas takes for one."""
        most_missing: float = 0.5
        """Share of a column's cells that may be missing or unknown; more stops the training."""
        scaling: Scaling = "quantile"
        """quantile: numbers become normal scores; standard: mean 0, deviation 1, cut at 10."""
        rare: int = 2
        """Levels seen in fewer training rows are unknown."""
        max_levels: int = 100
        """Levels a category keeps, the most frequent ones; others are unknown."""
        corrupt_by: Literal["marginal", "permute", "donor", "subset", "hide"] = "marginal"
        """Source of a swapped cell: its column's training values, a shuffle within the group, one other row;
        or columns are cut into subsets or hidden."""
        corruption: tuple[float, ...] = (0.0, 0.6)
        """Share of swapped (or left out; hide: at most) cells in each global view; the last one serves the others."""
        subset_noise: float = 0.0
        """Share of the cells that corrupt_by=subset keeps, swapped for the training column's (SubTab: 0.3)."""
        local_columns: float = 0.5
        """Share of the columns that a local view keeps; the others are swapped."""
        mask_group: int = 4
        """Samples over which mask ratios are spread and permute shuffles; a divisor of a rank's samples counts."""

        def __post_init__(self) -> None:
            shares = {f"corruption.{i}": share for i, share in enumerate(self.corruption)}
            shares |= {
                "local_columns": self.local_columns,
                "subset_noise": self.subset_noise,
                "most_missing": self.most_missing,
            }
            for name, share in shares.items():
                if not 0 <= share <= 1:
                    raise ValueError(f"modality.{name}={share}: want a share from 0 to 1")
            if not self.corruption:
                raise ValueError(
                    "modality.corruption is empty: want a share for each global view, such as 0 0.6"
                )
            if self.corrupt_by in ("subset", "hide") and max(self.corruption) == 1:
                raise ValueError("modality.corruption=1 leaves a view without columns: want less than 1")
            for name, low in {"rare": 1, "max_levels": 2, "mask_group": 1}.items():
                if getattr(self, name) < low:
                    raise ValueError(f"modality.{name}={getattr(self, name)}: want {low} or more")

    needs: ClassVar[frozenset[Need]] = frozenset({"local", "mask", "masks", "drop", "corrupt", "target"})
    suffixes = (".json",)
    payload = "cells"
    plural = "rows"

    cfg: Config

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.labels = Labels()
        self._schema: Schema | None = None
        self._source: TableSource | None = None
        self._cells: Cells | None = None
        self._banks: dict[torch.device, Tensor] = {}
        self._given = self._restored = self._foreign = False

    def fit(self, payloads: Sequence[Any] | None = None) -> Self:
        """Fit the schema and the label to the training rows of `data`, or of the rows that are handed over.

        These are mappings from column to cell, all of them training rows. A schema that was restored stays.
        """
        if self._given or (payloads is None and self._schema is not None):
            return self
        cfg = self.cfg
        if payloads is None:
            self._source = read_source(cfg)
        else:
            self._source, self._given, self._foreign = source_of(payloads, cfg), True, True
        if not self._restored:
            train = self._source.splits["train"]
            try:
                self._schema = schemas.fit(
                    self._source.table.select(train), cfg.scaling, cfg.rare, cfg.max_levels, cfg.categorical
                )
            except ValueError as error:
                raise ValueError(f"modality.data={cfg.data!r}: {error}") from None
            for name, why in self._schema.left_out.items():
                log.warning("modality.data: column %r is left out: %s", name, why)
            self._say_unread(self._schema.unread(self._source.table.select(train)))
            self.labels = Labels.fit(self._source.label, train)
        self._cells, self._banks = self._encode(self._source, log.info), {}
        rates = ", ".join(f"{name} {rate:.0%}" for name, rate in self.effective_rates(1.0).items())
        log.info("modality.data: of the cells drawn anew, these change by column: %s", rates)
        return self

    def _say_unread(self, shares: Mapping[str, float]) -> None:
        """Say how many cells of each column are missing or unknown; raise a ValueError where they are too many."""
        if shares:
            rates = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
            say_once(self.cfg.data, f"modality.data: cells that are missing or unknown, by column: {rates}")
        worst = max(shares, key=lambda name: shares[name], default="")
        if worst and shares[worst] > self.cfg.most_missing:
            more = min(1.0, math.ceil(100 * shares[worst]) / 100)
            raise ValueError(
                f"modality.data={self.cfg.data!r}: {shares[worst]:.0%} of column {worst!r} are read as missing or "
                f"unknown, the limit is modality.most_missing={self.cfg.most_missing:g}: leave it out by "
                f"--modality.ignore "
                f"{shlex.quote(worst)}, or take it as it is by --modality.most_missing {more:g}"
            )

    @property
    def schema(self) -> Schema:
        """What a column is, as fitted to the training rows or restored."""
        if self._schema is None:
            raise self.not_fitted()
        return self._schema

    def rows(self) -> Cells:
        """Return all rows as cells; a modality that was restored reads its table here for the first time."""
        if self._cells is None:
            if self._schema is None:
                raise self.not_fitted()
            self._source = self._source or read_source(self.cfg)
            self._cells = self._encode(self._source, log.warning)
        return self._cells

    def _encode(self, source: TableSource, say: Callable[..., None]) -> Cells:
        """Return all rows of a source as cells by the schema."""
        try:
            cells, broken, strange = self.schema.encode(source.table)
        except ValueError as error:
            raise ValueError(f"modality.data={self.cfg.data!r}: {error}") from None
        for name, what in strange.items():
            say("modality.data: column %r has %s", name, what)
        classes, values = self.labels.apply(source.label, len(source.table))
        return Cells(
            cells=cells,
            broken=broken,
            classes=classes,
            values=values,
            splits=source.splits,
            groups=source.groups,
            copies=source.copies.tolist(),
        )

    def bank(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the readable training rows [S, C] on a device: what corruption draws from."""
        device = torch.device(device)
        if device not in self._banks:
            self._banks[device] = self._training_rows().to(device)
        return self._banks[device]

    def _training_rows(self) -> Tensor:
        if self._foreign and not self._given:  # the schema is not of this source; rows come by `fit`
            return torch.zeros(0, len(self.schema.columns))
        rows = self.rows()
        good = [row for row in rows.splits["train"].tolist() if row not in rows.broken]
        if not good:
            raise ValueError(f"modality.data={self.cfg.data!r}: no training row can be read")
        return rows.cells[good]

    def streams(self) -> dict[str, StreamSpec]:
        """One stream of columns."""
        columns = len(self.schema.columns)
        return {
            STREAM: StreamSpec(
                kind="columns", shape=(columns,), num_tokens=columns, cardinalities=self.schema.cardinalities,
                target_dim=1, target_kind="cells", channels=tuple(c.name for c in self.schema.columns),
            )
        }  # fmt: skip

    def dataset(self, split: str) -> Samples:
        """Return the rows of a split: "train", "val" or "test"."""
        rows = self.fit().rows()
        return Rows(rows, rows.splits[split])

    def contents(self, split: str) -> list[Sequence[Any]]:
        """Return numbers that are equal for rows whose columns, without the label, are equal."""
        rows = self.fit().rows()
        return [[None if row in rows.broken else rows.copies[row] for row in rows.splits[split].tolist()]]

    def known_by(self, split: str) -> list[Sequence[Any]]:
        """Return the columns of the table as they were read, that of the label among them."""
        rows = self.fit().rows().splits[split]
        source = self._source or read_source(self.cfg)
        label = [] if source.label is None else [source.label]
        return [Some(column, rows) for column in (*source.table.columns.values(), *label)]

    def missing(self) -> dict[str, float]:
        """Return the share of training rows whose cell is missing or unknown, by column, where there are some."""
        rows = self.fit().rows().splits["train"]
        source = self._source or read_source(self.cfg)
        return dict(self.schema.unread(source.table.select(rows)))

    def targets(self, split: str) -> Tensor | None:
        """The numbers to predict, float32 [S of the split], NaN where unknown; None where the label is a class."""
        rows = self.rows()
        return None if rows.values is None else rows.values[rows.splits[split]]

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        """Rows as cells [B, C]; a sample holds encoded cells, or a row as a mapping from column to cell."""
        found = {i: s.data for i, s in enumerate(samples) if isinstance(s.data, Tensor)}
        alike: dict[tuple[str, ...], list[int]] = {}
        for i, sample in enumerate(samples):
            if i not in found:
                alike.setdefault(_names(sample), []).append(i)
        for places in alike.values():
            found |= zip(places, self._read([samples[i] for i in places]), strict=True)
        rows = [found[i] for i in range(len(samples))]
        ids, groups = (torch.tensor([getattr(s, n) for s in samples]) for n in ("index", "group"))
        return {
            "rows": torch.stack(rows),
            "sample_id": ids,
            **({"group_id": groups} if self.cfg.group else {}),
        }

    def _read(self, samples: list[Sample]) -> Iterable[Tensor]:
        """The cells [C] of rows with the same columns."""
        frame = {name: as_column([s.data[name] for s in samples]) for name in samples[0].data}
        try:
            cells, broken, _ = self.schema.encode(Table(frame))
        except ValueError as error:
            cells, broken = torch.zeros(0), {0: f"row {samples[0].index}: {error}"}
        if broken and len(samples) > 1:  # one by one they say which of them it is
            return [row for s in samples for row in self._read([s])]
        if broken:
            raise Unreadable(samples[0].index, broken[0])
        return cells

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        """Clean rows, and rows with cells of other rows."""
        plan, rows = plans[STREAM], raw["rows"]
        made = [draws.clean(plan, rows)]
        if plan.num_global or plan.num_local:  # clean views need no training rows
            bank = self.bank(rows.device)
            made.append(draws.global_views(plan, rows, bank, self.cfg, rng.fork("global")))
            made.append(draws.local_views(plan, rows, bank, self.cfg, rng.fork("local")))
        ids = {n: raw[n] for n in ("sample_id", "group_id") if n in raw}
        return Batch(Views(stream=STREAM, **fields, **ids) for fields in made if fields)

    def effective_rates(self, share: float) -> dict[str, float]:
        """By column, the share of cells that really change where `share` of them is drawn anew from the column."""
        bank, found = self.bank(), {}
        for place, column in enumerate(self.schema.columns):
            _, counts = bank[:, place].unique(return_counts=True)
            found[column.name] = share * (1 - float((counts / len(bank)).square().sum()))
        return found

    def preparation(self, stream: str) -> TablePreparation:
        """Return how rows of numbers become clean views."""
        return preparation_of(self.schema)

    def baselines(self) -> dict[str, Any]:
        """The cells, categories one-hot."""
        return {"raw": functools.partial(draws.one_hot, cardinalities=self.schema.cardinalities)}

    def figures(self, batch: Batch) -> list[Figure]:
        """The table with its corrupted and hidden cells."""
        from multissl.modalities.tabular.figures import cell_panel

        views = [v for v in batch if v.stream == STREAM]
        return cell_panel(views, self.schema.columns, self.effective_rates(1.0), self.cfg.corrupt_by)

    def state(self) -> dict[str, Any]:
        """Return the fitted schema and what was fitted to the label; `given` says that they are not of `data`."""
        state = {"schema": self.schema.to_json(), "label": self.labels.to_json()}
        return {**state, "given": True} if self._foreign else state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Read rows by the schema of the training data; the table itself is read when it is asked for."""
        self._schema, self.labels = Schema.from_json(state["schema"]), Labels(**state["label"])
        self._restored, self._cells, self._banks = True, None, {}
        self._foreign = self._foreign or bool(state.get("given"))


@dataclass(kw_only=True, slots=True)
class Cells:
    """All rows of a table as the schema reads them."""

    cells: Tensor
    """float32 [S, C]"""
    broken: dict[int, str]
    """Rows that cannot be read, and why."""
    classes: np.ndarray
    """int64 [S], -1 where unknown."""
    values: Tensor | None
    """The label's numbers, float32 [S], NaN where unknown; None where it is a class."""
    splits: dict[str, np.ndarray]
    groups: list[int]
    copies: list[int]
    """Equal for rows that are equal in all columns."""


class Broken(NamedTuple):
    """What stands in a sample for a row that cannot be read."""

    reason: str


class Rows(Samples):
    """Some rows of a table."""

    def __init__(self, table: Cells, rows: np.ndarray) -> None:
        self.table, self.rows = table, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> Sample:
        row, table = int(self.rows[item]), self.table
        data = Broken(table.broken[row]) if row in table.broken else table.cells[row]
        return Sample(data, item, int(table.classes[row]), table.groups[row])


def _names(sample: Sample) -> tuple[str, ...]:
    """The columns of a row that is a mapping."""
    if isinstance(sample.data, Broken):
        raise Unreadable(sample.index, sample.data.reason)
    if not isinstance(sample.data, Mapping):
        raise Unreadable(sample.index, f"row {sample.index}: want a mapping from column to cell")
    return tuple(sample.data)
