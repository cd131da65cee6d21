"""Lists of classes in the label column of tables and shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from multissl.contract.data import LabelSets, Samples
from multissl.modalities.image.adapter import Image as ImageModality
from multissl.sources import splits
from multissl.sources.splits import classes_of, sets_of

LISTS: list[Any] = [
    ["cat", "dog"],
    ["dog"],
    [],
    None,
    ["bird", "cat", "cat"],
    ["dog"],
    [],
    ["cat"],
    ["bird"],
    ["cat"],
]


def pictures(folder: Path, count: int) -> list[str]:
    names = [f"{i}.png" for i in range(count)]
    for i, name in enumerate(names):
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(folder / name)
    return names


def dataset(path: Path) -> Samples:
    return ImageModality.Config(data=str(path)).build().dataset("all")


def check(samples: Samples) -> None:
    sets = samples.label_sets()
    assert sets is not None
    assert sets.names == ("bird", "cat", "dog")
    expected = [[name in (classes or ()) for name in sets.names] for classes in LISTS]
    assert sets.has.tolist() == expected
    assert sets.known.tolist() == [classes is not None for classes in LISTS]
    assert samples.class_numbers() == [-1] * len(LISTS)
    assert samples[0].label == -1


def test_json_lines_list_the_classes_of_a_sample(tmp_path: Path) -> None:
    names = pictures(tmp_path, len(LISTS))
    rows = [{"image": name, "label": classes} for name, classes in zip(names, LISTS, strict=True)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    check(dataset(tmp_path / "list.jsonl"))


def test_parquet_lists_the_classes_of_a_sample_and_a_split_has_its_own(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    bytes_of = [(tmp_path / name).read_bytes() for name in pictures(tmp_path, len(LISTS))]
    parquet.write_table(arrow.table({"image": bytes_of, "label": LISTS}), tmp_path / "a.parquet")
    check(dataset(tmp_path / "a.parquet"))
    val = ImageModality.Config(data=str(tmp_path / "a.parquet")).build().dataset("val")
    sets = val.label_sets()
    assert sets is not None
    assert sets.has.tolist() == [[False, True, False]] * len(val)
    assert len(sets.names) == 3


def test_lists_of_one_class_are_that_class(tmp_path: Path) -> None:
    names = pictures(tmp_path, 4)
    rows = [{"image": name, "label": [place % 2]} for place, name in enumerate(names)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    samples = dataset(tmp_path / "list.jsonl")
    assert samples.label_sets() is None
    assert samples.class_numbers() == [0, 1, 0, 1]


def test_numbers_are_in_their_order_and_single_classes_stand_beside_lists() -> None:
    sets = sets_of([(10, 9), 9, None, ()])
    assert isinstance(sets, LabelSets)
    assert sets.names == ("9", "10")
    assert sets.has.tolist() == [[True, True], [True, False], [False, False], [False, False]]
    assert sets.known.tolist() == [True, True, False, True]
    assert sets_of([("a",), ("b",), None]) is None
    none_of_it = sets_of([("a",), ()])  # an empty list is no class
    assert none_of_it is not None
    assert none_of_it.known.all()


def test_what_reads_one_class_alone_says_that_lists_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(splits.log, "warning", said.append)
    numbers, classes = classes_of([("a", "b"), ("a",)])
    assert numbers.tolist() == [-1, -1]
    assert classes == []
    assert "labels list several classes for a sample" in said[0]
