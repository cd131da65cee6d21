"""Tables of other packages, written in every dialect: each gives the schema of the plain file, and trains unasked."""

from __future__ import annotations

import gzip
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multissl import cli
from multissl.modalities.tabular.adapter import Tabular

pandas = pytest.importorskip("pandas", reason="the extra `tabular` is not installed")
DATA = os.environ.get("MULTISSL_DATA", "")
ROWS = 600
"""Rows of a table that are written."""


def of_scikit_learn(name: str) -> Any:
    datasets = pytest.importorskip("sklearn.datasets")
    return getattr(datasets, f"load_{name}")(as_frame=True).frame


def of_statsmodels(name: str) -> Any:
    pytest.importorskip("statsmodels", reason="brings tables for tests, and is not installed")
    frame = importlib.import_module(f"statsmodels.datasets.{name}").load_pandas().data
    return frame if frame.index.name is None else frame.reset_index()


def adult(name: str) -> Any:
    return pandas.read_csv(Path(DATA, "tabular", f"{name}-train.csv"))


def california(name: str) -> Any:
    return pandas.read_parquet(Path(DATA, "tabular", f"{name}-train.parquet"))


TABLES: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("iris", "wine", "breast_cancer", "diabetes", "digits", "linnerud"), of_scikit_learn),
    **dict.fromkeys(("anes96", "fair", "grunfeld", "star98", "statecrime", "macrodata"), of_statsmodels),
    "adult": adult,
    "california": california,
}


def records(frame: Any) -> list[dict[str, Any]]:
    """The rows as JSON holds them: a missing cell is none, no number loses a digit."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def lines(frame: Any) -> str:
    return "\n".join(map(json.dumps, records(frame)))


def sheet(path: Path, frame: Any) -> None:
    pytest.importorskip("openpyxl", reason="reads .xlsx, and is not installed")
    frame.to_excel(path, index=False)


DIALECTS: dict[str, Callable[[Path, Any], Any]] = {
    "a.csv": lambda path, frame: frame.to_csv(path, index=False),
    "a.tsv": lambda path, frame: frame.to_csv(path, index=False, sep="\t"),
    "decimal.csv": lambda path, frame: frame.to_csv(path, index=False, sep=";", decimal=","),
    "bar.csv": lambda path, frame: frame.to_csv(path, index=False, sep="|"),
    "a.parquet": lambda path, frame: frame.to_parquet(path, index=False),
    "a.feather": lambda path, frame: frame.reset_index(drop=True).to_feather(path),
    "a.jsonl": lambda path, frame: path.write_text(lines(frame)),
    "a.json": lambda path, frame: path.write_text(json.dumps(records(frame))),
    "a.xlsx": sheet,
    "a.csv.gz": lambda path, frame: path.write_bytes(gzip.compress(frame.to_csv(index=False).encode())),
}


def table(name: str) -> Any:
    if name in REAL and not DATA:
        pytest.skip("MULTISSL_DATA names no folder of real data")
    return TABLES[name](name).head(ROWS)


def schema(path: Path) -> dict[str, Any]:
    return Tabular(Tabular.Config(data=str(path))).fit().schema.to_json()


REAL = ("adult", "california")


def parameters(fast: tuple[str, ...] = ()) -> list[Any]:
    marks = {name: [] if name in fast else [pytest.mark.slow] for name in TABLES}
    real = {name: [pytest.mark.data] if name in REAL else [] for name in TABLES}
    return [pytest.param(name, marks=[*marks[name], *real[name]]) for name in TABLES]


@pytest.mark.parametrize("name", parameters(("iris", "linnerud")))
def test_every_dialect_has_the_schema_of_the_plain_file(name: str, tmp_path: Path) -> None:
    frame = table(name)
    for dialect, write in DIALECTS.items():
        write(tmp_path / dialect, frame)
    expected = schema(tmp_path / "a.csv")
    assert expected["columns"]
    for dialect in DIALECTS:
        found = schema(tmp_path / dialect)
        assert without_knots(found) == without_knots(expected), dialect
        for one, other in zip(found["columns"], expected["columns"], strict=True):
            # a workbook keeps no more digits for sure
            np.testing.assert_allclose(one["knots"], other["knots"], 1e-12, 1e-12, err_msg=dialect)


def without_knots(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "columns": [{**column, "knots": len(column["knots"])} for column in schema["columns"]]}


@pytest.mark.parametrize("name", parameters())
def test_a_table_trains_without_an_option(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each in another dialect, as the schema does not depend on it."""
    dialect = [*DIALECTS][[*TABLES].index(name) % len(DIALECTS)]
    DIALECTS[dialect](tmp_path / dialect, table(name))
    words = ["train", "tabular", "--data", str(tmp_path / dialect), "--steps", "2", "--evals", "none"]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 0, capfd.readouterr().err


def test_there_are_twelve_tables_of_other_packages_and_ten_dialects() -> None:
    assert len(TABLES) == 14
    assert len(DIALECTS) == 10
