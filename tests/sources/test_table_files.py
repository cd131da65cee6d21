"""Several tables under one name: patterns and folders, with the splits that their names say."""

import json
from pathlib import Path

import pytest

from multissl.modalities.tabular.adapter import Tabular
from multissl.modalities.text.files import read_texts
from multissl.sources.table_files import table_files


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    for name, first, count in (("train-2", 0, 20), ("train-10", 20, 20), ("dev", 40, 8), ("test", 48, 6)):
        lines = [f"{n},{n * n % 7},{'ab'[n % 2]}" for n in range(first, first + count)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["first,second,target", *lines]))
    (tmp_path / "README.md").write_text("not a table")
    return tmp_path


def test_files_come_in_natural_order_with_the_split_in_their_names(rows: Path) -> None:
    found = [(Path(path).name, split) for path, split in table_files(str(rows))]
    assert found == [
        ("dev.csv", "val"),
        ("test.csv", "test"),
        ("train-2.csv", "train"),
        ("train-10.csv", "train"),
    ]
    assert table_files(f"{rows}/train-*.csv") == [(f"{rows}/train-2.csv", ""), (f"{rows}/train-10.csv", "")]


def test_a_pattern_that_names_another_kind_of_file_is_refused(rows: Path) -> None:
    with pytest.raises(ValueError, match=r"README\.md, which is no table"):
        table_files(f"{rows}/*")


def test_files_for_validation_alone_are_refused(rows: Path) -> None:
    with pytest.raises(ValueError, match="give one to train on"):
        table_files(f"{rows}/{{dev,test}}.csv")


@pytest.mark.parametrize("place", ["", "/*.csv", "/{train-2,train-10,dev,test}.csv"])
def test_rows_of_a_folder_or_pattern_keep_their_splits(rows: Path, place: str) -> None:
    modality = Tabular.Config(data=f"{rows}{place}").build().fit()
    counts = {split: len(modality.dataset(split)) for split in ("train", "val", "test")}
    assert counts == {"train": 40, "val": 8, "test": 6}


def test_without_a_file_for_it_every_tenth_row_validates(rows: Path) -> None:
    (rows / "dev.csv").unlink()
    modality = Tabular.Config(data=str(rows)).build().fit()
    assert [len(modality.dataset(split)) for split in ("train", "val", "test")] == [36, 4, 6]


def test_a_column_that_lacks_in_one_of_the_files_is_named_with_it(rows: Path) -> None:
    (rows / "train-10.csv").write_text("first,target\n1,a\n")
    with pytest.raises(ValueError, match=r"train-10\.csv'.*'second' is missing"):
        Tabular.Config(data=str(rows)).build().fit()


@pytest.mark.parametrize("place", ["", "/*.jsonl"])
def test_documents_of_a_folder_or_pattern_keep_their_splits(tmp_path: Path, place: str) -> None:
    for name, count in (("part-1-train", 5), ("part-2-train", 4), ("x-dev", 3)):
        lines = [json.dumps({"text": f"{name} says {n}", "label": n % 2}) for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    found = {split: len(read_texts(f"{tmp_path}{place}", split).texts) for split in ("train", "val")}
    assert found == {"train": 9, "val": 3}
