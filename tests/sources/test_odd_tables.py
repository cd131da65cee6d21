"""Tables that nobody would write on purpose: each is read, or refused in one line, and none takes long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multissl.modalities.tabular.adapter import Tabular
from multissl.modalities.tabular.tables import read_table
from multissl.sources import numerals
from multissl.sources.columns import objects
from multissl.sources.tables import open_table


def put(folder: Path, content: str, name: str = "t.csv") -> str:
    (folder / name).write_text(content)
    return str(folder / name)


@pytest.mark.parametrize(
    "part",
    [
        {"images": [{"id": [1]}], "annotations": [{"image_id": 1, "caption": "x"}]},
        {"annotations": [{"image_id": {"a": 1}, "caption": "x"}]},
        {"annotations": [{"image_id": 1, "category_id": [1]}]},
        {"categories": [{"id": [1]}]},
        {"categories": [{"id": 1, "name": ["cat"]}]},
    ],
)
def test_a_coco_file_with_lists_for_numbers_is_refused(tmp_path: Path, part: dict[str, Any]) -> None:
    document = {"images": [{"id": 1}], "annotations": [], **part}
    with pytest.raises(ValueError, match="want a number or a text"):
        open_table(put(tmp_path, json.dumps(document), "coco.json"))


def test_a_coco_file_whose_categories_are_no_list_keeps_the_numbers_of_classes(tmp_path: Path) -> None:
    document = {
        "images": [{"id": 1}],
        "annotations": [{"image_id": 1, "category_id": 7}],
        "categories": 3,
    }
    assert open_table(put(tmp_path, json.dumps(document), "coco.json")).cells("label").tolist() == [7]


def test_a_date_that_no_year_holds_in_utc_stays_text(tmp_path: Path) -> None:
    path = put(tmp_path, "when,x\n" + "0001-01-01T00:00:00+05:00,1\n" * 3)
    assert set(read_table(path).columns["when"].tolist()) == {"0001-01-01T00:00:00+05:00"}


def test_times_of_parquet_beyond_the_calendar_are_refused(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="the extra `tabular` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `tabular` is not installed")
    parquet.write_table(
        arrow.table({"when": arrow.array([10**15], arrow.timestamp("s"))}), tmp_path / "t.parquet"
    )
    with pytest.raises(ValueError, match=r"timestamp.* holds what is no time of the years 1 to 9999"):
        read_table(str(tmp_path / "t.parquet"))


def test_a_table_of_broken_rows_says_what_breaks_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of its rows can be read; the first: line 2 .* has 3 cells"):
        read_table(put(tmp_path, "a,b\n" + "1,2,3\n4,5,6,7\n" * 9))


def test_a_table_of_a_label_alone_or_of_too_few_rows_is_refused(tmp_path: Path) -> None:
    alone = put(tmp_path, "target\n" + "1\n2\n" * 20, "alone.csv")
    with pytest.raises(ValueError, match="no column is left to be an input beside 'target'"):
        Tabular(Tabular.Config(data=alone)).fit()
    few = put(tmp_path, "a,b\n1,2\n3,4\n", "few.csv")
    with pytest.raises(ValueError, match="of 2 rows none is left to train on"):
        Tabular(Tabular.Config(data=few, label="")).fit()


def test_more_columns_than_anyone_trains_on_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTISSL_MAX_COLUMNS", "3")
    with pytest.raises(ValueError, match=r"4 columns, the limit is 3: .* MULTISSL_MAX_COLUMNS=4"):
        open_table(put(tmp_path, "a,b,c,d\n1,2,3,4\n"))
    with pytest.raises(ValueError, match="4 columns, the limit is 3"):
        open_table(put(tmp_path, '{"a": 1, "b": 2, "c": 3, "d": 4}\n', "t.jsonl"))
    assert len(open_table(put(tmp_path, "a,b,c\n1,2,3\n"))) == 1


def test_a_header_with_a_long_name_is_parted_as_any(tmp_path: Path) -> None:
    name = "b" * 200_000
    assert list(open_table(put(tmp_path, f"a,{name}\n1,2\n")).columns) == ["a", name]


def test_a_sheet_with_a_cell_far_away_is_no_larger_than_its_cells(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="the extra `tabular` is not installed")
    book = openpyxl.Workbook()
    for row in (["a", "b"], [1, 2], [3, 4]):
        book.active.append(row)
    book.active.cell(500_000, 2, 5)
    book.active.cell(1, 16_000, "far")
    book.save(tmp_path / "t.xlsx")
    table = open_table(tmp_path / "t.xlsx")
    assert table.cells("b").tolist() == [2, 4, 5]
    assert table.cells("far").tolist() == [None, None, None]


def test_numbers_with_an_exponent_are_measured_and_no_codes(tmp_path: Path) -> None:
    path = put(tmp_path, "x,y\n" + "\n".join(f"{i}.5e20,{2**60 + i}" for i in range(40)))
    columns = read_table(path).columns
    assert columns["x"].tolist() == [float(f"{i}.5e20") for i in range(40)]
    assert columns["y"].tolist() == [str(2**60 + i) for i in range(40)]


@pytest.mark.parametrize("power", [-320, 305])
def test_the_smallest_and_largest_numbers_get_the_scores_of_any(tmp_path: Path, power: int) -> None:
    scores = []
    for exponent in (0, power):
        content = "x\n" + "\n".join(f"{i * 7 % 90}e{exponent}" for i in range(90))
        modality = Tabular(Tabular.Config(data=put(tmp_path, content, f"{exponent}.csv"), label="")).fit()
        scores.append(modality.rows().cells.numpy())
    assert np.isfinite(scores[1]).all()
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-2)


def test_formulas_that_nobody_has_calculated_are_no_missing_cells(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="reads .xlsx, and is not installed")
    book = openpyxl.Workbook()
    book.active.append(["a", "b"])
    for row in range(3):
        book.active.append([row, f"=A{row + 2}*2"])
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(
        ValueError, match=r"3 cells of a\.xlsx are formulas that nobody has calculated: open it in"
    ):
        read_table(str(tmp_path / "a.xlsx"))


def test_numbers_are_read_alike_whatever_decides_their_mark() -> None:
    """A column of plain numbers has a decimal point for sure where one of them can have no decimal comma."""
    for cells in (
        ["1.5", "2"],
        ["1.234", "2.345"],
        ["0.123"],
        ["1", "2"],
        ["-1.234", "+3.45"],
        ["1e5", ".5"],
    ):
        column = objects(cells)
        assert numerals._plain(column) is not None
        assert numerals._point(column) == numerals._mark(column), cells
