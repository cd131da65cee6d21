"""Tables: the same content through every door gives the same samples, and what is unusual in one is read or said."""

# long file: the doors and dialects share their table and helpers

from __future__ import annotations

import datetime
import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multissl.contract.data import Sample
from multissl.modalities.image.adapter import Image
from multissl.modalities.image.files import SUFFIXES
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.tabular.adapter import Tabular
from multissl.modalities.tabular.tables import holding
from multissl.modalities.text.adapter import Text
from multissl.modalities.text.files import read_texts
from multissl.random import RowRandom
from multissl.sources import delimited
from multissl.sources.base import TableOptions
from multissl.sources.opening import open_source
from multissl.sources.tables import open_table

pandas = pytest.importorskip("pandas", reason="the extra `tabular` is not installed")
COUNT = 60


def frame() -> Any:
    """A table with what tables hold: numbers, missing ones, names, truths, dates, texts, files."""
    rng = np.random.default_rng(0)
    start = datetime.datetime(2024, 1, 30, 6)
    return pandas.DataFrame(
        {
            "age": rng.integers(20, 60, COUNT),
            "dose": [None if i % 7 == 0 else round(float(rng.normal()), 4) for i in range(COUNT)],
            "large": [round(1234.5 * (i + 1), 2) for i in range(COUNT)],
            "color": [None if i % 9 == 0 else ("rød", "blue", "a, b")[i % 3] for i in range(COUNT)],
            "smoker": [i % 3 == 0 for i in range(COUNT)],
            "seen": [None if i % 13 == 5 else start + datetime.timedelta(hours=31 * i) for i in range(COUNT)],
            "text": [None if i % 11 == 0 else f"note {i}, of; many | kinds" for i in range(COUNT)],
            "image": [f"{i}.png" for i in range(COUNT)],
            "label": [f"kind {i % 2}" for i in range(COUNT)],
        }
    )


def csv(path: Path, table: Any, **options: Any) -> None:
    table.to_csv(path, **{"index": False, **options})


def records(table: Any) -> list[dict[str, Any]]:
    return json.loads(table.to_json(orient="records", date_format="iso"))


def write_lines(path: Path, table: Any) -> None:
    path.write_text("\n".join(json.dumps(row) for row in records(table)))


DOORS: dict[str, Callable[[Path, Any], Any]] = {
    "plain.csv": csv,
    "semicolon.csv": lambda path, table: csv(path, table, sep=";"),
    "decimal.csv": lambda path, table: csv(path, table, sep=";", decimal=","),
    "tab.tsv": lambda path, table: csv(path, table, sep="\t"),
    "bar.csv": lambda path, table: csv(path, table, sep="|"),
    "words.csv": lambda path, table: csv(path, table, na_rep="#N/A"),
    "index.csv": lambda path, table: csv(path, table, index=True),
    "mark.csv": lambda path, table: csv(path, table, encoding="utf-8-sig"),
    "wide.csv": lambda path, table: csv(path, table, encoding="utf-16"),
    "latin.csv": lambda path, table: csv(path, table, encoding="latin-1"),
    "dates.csv": lambda path, table: csv(path, table, date_format="%d.%m.%Y %H:%M"),
    "packed.csv.gz": csv,
    "a.parquet": lambda path, table: table.to_parquet(path),
    "a.feather": lambda path, table: table.to_feather(path),
    "a.jsonl": write_lines,
    "b.jsonl.gz": lambda path, table: path.write_bytes(gzip.compress(_lines(table))),
    "a.json": lambda path, table: path.write_text(json.dumps(records(table))),
    "columns.json": lambda path, table: table.to_json(path, date_format="iso"),
    "split.json": lambda path, table: table.to_json(path, orient="split", date_format="iso"),
    "a.xlsx": lambda path, table: _sheet(path, table),
}


def _lines(table: Any) -> bytes:
    return "\n".join(json.dumps(row) for row in records(table)).encode()


def _sheet(path: Path, table: Any) -> None:
    pytest.importorskip("openpyxl", reason="reads .xlsx, and is not installed")
    table.to_excel(path, index=False)


@pytest.fixture(params=[*DOORS])
def door(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    DOORS[request.param](path, frame())
    return path


def rows(data: str) -> Tabular:
    return Tabular(Tabular.Config(data=data, ignore=("text", "image"))).fit()


def test_every_door_gives_the_same_rows_and_schema(door: Path) -> None:
    expected, read = rows(holding(frame())), rows(str(door))
    assert read.schema == expected.schema
    assert torch.equal(read.rows().cells, expected.rows().cells)
    assert read.rows().classes.tolist() == expected.rows().classes.tolist() == [i % 2 for i in range(COUNT)]
    assert [c.kind for c in read.schema.columns if c.source == "dose"] == ["number", "flag"]


def test_every_door_gives_the_same_texts(door: Path) -> None:
    texts = read_texts(str(door), "all")
    assert [t if isinstance(t, str) else None for t in texts.texts] == [
        None if i % 11 == 0 else f"note {i}, of; many | kinds" for i in range(COUNT)
    ]
    assert texts.labels.tolist() == [i % 2 for i in range(COUNT)]


def test_every_door_lists_the_same_files(door: Path) -> None:
    data = open_source(str(door), "all", SUFFIXES)
    assert [Path(sample.data).name for sample in data] == [f"{i}.png" for i in range(COUNT)]
    assert [sample.label for sample in data] == [i % 2 for i in range(COUNT)]


def test_every_door_gives_the_same_pairs(door: Path) -> None:
    members: dict[str, Any] = {"image": Image.Config(size=32, local_size=16, patch=16), "text": Text.Config()}
    pairs: Any = Paired(Paired.Config(members=members, data=(str(door),))).dataset("all")
    parts = [pairs[i].data.parts for i in range(len(pairs))]
    assert [p["text"] for p in parts] == [
        None if i % 11 == 0 else f"note {i}, of; many | kinds" for i in range(COUNT)
    ]
    assert [Path(p["image"]).name for p in parts] == [f"{i}.png" for i in range(COUNT)]


def test_the_reader_by_row_gives_the_cells_of_the_fast_one(
    door: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = open_table(door)
    monkeypatch.setattr(delimited, "_by_arrow", lambda *args: None)
    slow = open_table(door)
    assert list(slow.columns) == list(fast.columns)
    for name in fast.columns:
        assert slow.cells(name).tolist() == fast.cells(name).tolist()


# dialects


def put(tmp_path: Path, content: str | bytes, name: str = "a.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def cells(path: Path, **options: Any) -> dict[str, list[Any]]:
    table = open_table(path, **options)
    return {name: table.cells(name).tolist() for name in table.columns}


def schema(tmp_path: Path, content: str, **options: Any) -> dict[str, str]:
    data = str(put(tmp_path, content))
    return {c.name: c.kind for c in Tabular(Tabular.Config(data=data, **options)).fit().schema.columns}


def test_semicolons_part_columns_and_commas_fractions(tmp_path: Path) -> None:
    semicolons = "age;sex\n" + "\n".join(f"{20 + i % 5};{i % 2}" for i in range(50))
    assert schema(tmp_path, semicolons, label="") == {"age": "number", "sex": "number"}
    heights = "height;weight\n" + "\n".join(f"1,{50 + i};{50 + i}" for i in range(50))
    modality = Tabular(Tabular.Config(data=str(put(tmp_path, heights)), label="")).fit()
    assert modality.schema.columns[0].knots[0] == pytest.approx(1.52)


def test_commas_in_a_text_part_nothing(tmp_path: Path) -> None:
    assert cells(put(tmp_path, "text\nhello, world\nbye; then\n")) == {"text": ["hello, world", "bye; then"]}
    assert cells(put(tmp_path, 'a;"b, c"\n1;x, y\n')) == {"a": ["1"], "b, c": ["x, y"]}
    assert cells(put(tmp_path, "income, yearly\tage\n1\t2\n")) == {"income, yearly": ["1"], "age": ["2"]}


@pytest.mark.parametrize(
    ("content", "delimiter"),
    [("a;b,c\n1;2,5\n", ""), ("a,b;c\n1,2\n", ""), ("a;b\n1;2\n", ","), ("a|b\tc\n1|2\t3\n", "")],
)
def test_a_header_that_holds_another_delimiter_is_refused_with_a_way_out(
    tmp_path: Path, content: str, delimiter: str
) -> None:
    with pytest.raises(ValueError, match=r"still holds '.+': say .*--modality\.delimiter") as error:
        open_table(put(tmp_path, content), delimiter=delimiter)
    choice = str(error.value).rpartition("--modality.delimiter ")[2].split(" or ")[0].strip("'")
    assert len(open_table(put(tmp_path, content), delimiter=choice).columns) == 2


def test_a_delimiter_is_said_by_its_sign_or_its_name(tmp_path: Path) -> None:
    path = put(tmp_path, "a b\n1 2\n")
    assert cells(path, delimiter=" ") == cells(path, delimiter="space") == {"a": ["1"], "b": ["2"]}
    with pytest.raises(ValueError, match=r"modality\.delimiter='xy': want one character, or tab"):
        open_table(path, delimiter="xy")


def test_an_index_is_left_out_and_a_nameless_column_is_not(tmp_path: Path) -> None:
    for content in (",a,b\n0,1,x\n1,2,y\n", "Unnamed: 0,a,b\n0,1,x\n1,2,y\n", "a,b\nr1,1,x\nr2,2,y\n"):
        assert cells(put(tmp_path, content)) == {"a": ["1", "2"], "b": ["x", "y"]}
    assert cells(put(tmp_path, "a,b,\n1,2,\n")) == {"a": ["1"], "b": ["2"]}
    with pytest.raises(ValueError, match="column 3 has no name"):
        open_table(put(tmp_path, "a,b,\n1,2,3\n"))


def test_what_is_no_utf8_is_latin_1_or_named(tmp_path: Path) -> None:
    assert cells(put(tmp_path, "a,b\ncafé,1\nthé noir,2\n".encode("latin-1"))) == {
        "a": ["café", "thé noir"], "b": ["1", "2"],
    }  # fmt: skip
    table = open_table(put(tmp_path, "a,b\ncafé,1\n".encode() + b"b\xe4d,2\nx,3\n"))
    assert table.broken == {1: "line 3 of a.csv is no UTF-8 text"}
    russian = open_table(put(tmp_path, b"a,b\n\xef\xf0\xe8\xe2\xe5\xf2,1\n\xef\xee\xea\xe0,2\n"))
    assert set(russian.broken) == {0, 1}
    assert cells(put(tmp_path, "a,b\nx,1\n".encode("utf-16-le"))) == {"a": ["x"], "b": ["1"]}


def test_missing_words_are_those_of_pandas_and_those_of_an_option(tmp_path: Path) -> None:
    path = put(
        tmp_path, "a,b\n" + "\n".join(f"{w},1" for w in ("NA", "n/a", "<NA>", "NULL", " nan ", "gone"))
    )
    assert cells(path)["a"] == [None] * 5 + ["gone"]
    assert cells(path, missing=("gone",))["a"] == [None] * 6
    lines = put(tmp_path, '{"a": NaN}\n{"a": "n/a"}\n{"a": 0}\n', "a.jsonl")
    assert cells(lines) == {"a": [None, None, 0]}


# numbers, dates and what is missing


@pytest.mark.parametrize(
    ("written", "values"),
    [
        (["1,5", "2,75", "3"], [1.5, 2.75, 3]),
        (["1.234,5", "2.000", "7"], [1234.5, 2000, 7]),
        (["1,234.5", "2,000", "7"], [1234.5, 2000, 7]),
        (["1 234", "12 500,5", "3"], [1234, 12500.5, 3]),
        (["1'234.50", "2", "3"], [1234.5, 2, 3]),
        (["$1,200", "$5.50", "-$3"], [1200, 5.5, -3]),
        (["1.200,00 €", "5,50 €", "3 €"], [1200, 5.5, 3]),
        (["5 %", "12.5%", "7%"], [0.05, 0.125, 0.07]),
        (["(1,500)", "200.25", "3"], [-1500, 200.25, 3]),
        (["\u22124", "1e3", "+2"], [-4, 1000, 2]),
    ],
)
def test_numbers_are_read_as_people_write_them(
    tmp_path: Path, written: list[str], values: list[float]
) -> None:
    given = "x\ty\n" + "\n".join(f"{w}\t{i}" for i, w in enumerate(written * 5))
    modality = Tabular(Tabular.Config(data=str(put(tmp_path, given)), label="")).fit()
    column = modality.schema.columns[0]
    assert column.kind == "number"
    assert (column.knots[0], column.knots[-1]) == (min(values), max(values))


def test_codes_and_long_numbers_keep_their_digits(tmp_path: Path) -> None:
    content = "zip,number,b\n" + "\n".join(f"0{i % 3}123,{2**60 + i % 2},{i}" for i in range(40))
    path = str(put(tmp_path, content))
    modality = Tabular(Tabular.Config(data=path, label="", categorical=("zip", "number"))).fit()
    assert modality.schema.columns[0].levels == ["(unknown)", "00123", "01123", "02123"]
    assert modality.schema.columns[1].levels == ["(unknown)", str(2**60), str(2**60 + 1)]


@pytest.mark.parametrize("word", ["n/a", "unknown", "-", "not measured"])
def test_a_few_words_among_numbers_are_missing_ones(tmp_path: Path, word: str) -> None:
    content = "dose,v\n" + "\n".join(f"{word if i % 20 == 3 else i / 7},{i / 3}" for i in range(400))
    kinds = schema(tmp_path, content, label="")
    assert kinds == {"dose": "number", "dose is missing": "flag", "v": "number"}


def test_shares_of_missing_cells_are_said_and_too_many_stop_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        logging.getLogger("multissl"), "warning", lambda text, *args: said.append(text % args)
    )
    schema(tmp_path, "dose,v\n" + "\n".join(f"{'' if i % 4 == 0 else i},{i}" for i in range(400)), label="")
    assert any("missing or unknown, by column: dose 2" in text for text in said)
    content = "dose,v\n" + "\n".join(f"{'NA' if i % 5 else i},{i}" for i in range(400))
    with pytest.raises(
        ValueError, match=r"8\d% of column 'dose' .*--modality\.ignore dose, .*most_missing 0\.8\d?"
    ):
        schema(tmp_path, content, label="")
    assert schema(tmp_path, content, label="", ignore=("dose",)) == {"v": "number"}
    assert "dose" in schema(tmp_path, content, label="", most_missing=0.9)
    names = "name,v\n" + "\n".join(f"{'n' + str(i % 250)},{i}" for i in range(400))
    with pytest.raises(ValueError, match=r"of column 'name' are read as missing or unknown"):
        schema(tmp_path, names, label="", max_levels=20)


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d %b %Y", "%Y/%m/%d"])
def test_dates_become_the_time_and_places_in_its_cycles(tmp_path: Path, form: str) -> None:
    days = [datetime.date(2024, 1, 1) + datetime.timedelta(days=5 * i) for i in range(60)]
    content = "day;v\n" + "\n".join(f"{d.strftime(form)};{i}" for i, d in enumerate(days))
    expected = rows(holding(pandas.DataFrame({"day": days, "v": range(60), "text": "x", "image": "y"})))
    path = str(put(tmp_path, content))
    modality = Tabular(Tabular.Config(data=path)).fit()
    assert [c.name for c in modality.schema.columns] == [
        "day", "day (year, sine)", "day (year, cosine)", "day (week, sine)", "day (week, cosine)", "v",
    ]  # fmt: skip
    assert torch.equal(modality.rows().cells, expected.rows().cells)
    assert modality.schema.columns[0].decode(float(modality.rows().cells[30, 0]))[:7] in (
        "2024-05",
        "2024-06",
    )
    circle = modality.rows().cells[:, 1:3].square().sum(1)
    torch.testing.assert_close(circle, torch.ones(60))


# columns


def test_columns_are_named_by_option_or_known_by_usual_spellings(tmp_path: Path) -> None:
    usual = open_source(str(put(tmp_path, "FilePath,Title\na.png,x\nb.png,y\n")), "all", SUFFIXES)
    assert [Path(s.data).name for s in usual] == ["a.png", "b.png"]
    path = put(tmp_path, "where;what\na.png;x\nb.png;y\n")
    with pytest.raises(ValueError, match=r"found where, what: name yours by --modality\.column"):
        open_source(str(path), "all", SUFFIXES)
    own = open_source(str(path), "all", SUFFIXES, table=TableOptions("where", "what"))
    assert [(Path(s.data).name, s.label) for s in own] == [("a.png", 0), ("b.png", 1)]
    with pytest.raises(ValueError, match="there is no column 'here', only where, what"):
        open_source(str(path), "all", SUFFIXES, table=TableOptions("here"))
    nested = put(tmp_path, "\n".join(json.dumps({"data": {"text": f"t{i}"}}) for i in range(12)), "a.jsonl")
    assert read_texts(str(nested), "all", "data.text").texts == [f"t{i}" for i in range(12)]


def test_columns_that_look_like_labels_are_named_and_no_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        logging.getLogger("multissl"), "warning", lambda text, *args: said.append(text % args)
    )
    content = "a,Class,target_name\n" + "\n".join(f"{i},{i % 2},n{i % 2}" for i in range(40))
    assert schema(tmp_path, content) == {"a": "number"}
    assert any("'Class' is the label; 'target_name' look like labels" in text for text in said)
    assert set(schema(tmp_path, content, label="")) == {"a", "Class", "target_name"}
    assert set(schema(tmp_path, content, inputs=("target_name",))) == {"a", "target_name"}
    # answers of well-known tables, where no column is called like a label; income elsewhere may be asked for
    for header, inputs in {
        "age,Income": {"age"}, "Survived,age": {"age"}, "income,age": {"income", "age"}, "species,label": {"species"},
    }.items():  # fmt: skip
        rows = f"{header}\n" + "\n".join(f"{i},{i % 7}" for i in range(40))
        assert set(schema(tmp_path, rows)) == inputs, header
    assert any("column 'Income' is the label and no input: --modality.label NAME" in text for text in said)


def test_coco_and_llava_are_tables_of_pictures_and_texts(tmp_path: Path) -> None:
    coco = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}],
        "annotations": [
            {"image_id": 7, "caption": "one", "category_id": 1}, {"image_id": 7, "caption": "two", "category_id": 1},
            {"image_id": 8, "caption": "three", "category_id": 2}, {"image_id": 8, "category_id": 1},
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    }  # fmt: skip
    table = cells(put(tmp_path, json.dumps(coco), "coco.json"))
    assert table["caption"] == [["one", "two"], ["three"]]
    assert table["label"] == ["dog", None]
    assert len(open_source(str(tmp_path / "coco.json"), "all", SUFFIXES)) == 2
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog."}]
    llava = [{"id": str(i), "image": f"{i}.png", "conversations": turns} for i in range(12)]
    path = put(tmp_path, json.dumps(llava), "llava.json")
    assert read_texts(str(path), "all").texts == ["What is it?\nA dog."] * 12
    llava = [
        {**row, "conversations": [turns[0], {"from": "gpt", "value": f"It is {i}."}]}
        for i, row in enumerate(llava)
    ]
    path = put(tmp_path, json.dumps(llava), "llava.json")
    members: dict[str, Any] = {"image": Image.Config(size=32, local_size=16, patch=16), "text": Text.Config()}
    pairs: Any = Paired(Paired.Config(members=members, data=(str(path),))).dataset("all")
    assert pairs[3].data.parts["text"] == "It is 3."
    with pytest.raises(ValueError, match="a JSON file that holds no table: want a list of objects"):
        open_table(put(tmp_path, '{"a": 1}', "b.json"))


def test_broken_and_packed_tables_are_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.csv\.gz cannot be unpacked"):
        open_table(put(tmp_path, b"no gzip", "a.csv.gz"))
    with pytest.raises(ValueError, match=r"cannot be read as parquet"):
        open_table(put(tmp_path, gzip.compress(b"no parquet"), "a.parquet.gz"))
    with pytest.raises(ValueError, match=r"the limit is 200"):
        open_table(put(tmp_path, gzip.compress(b"a\n" + b"0" * (1 << 27)), "bomb.csv.gz"))


def test_cells_of_pairs_are_read_as_those_of_a_table(tmp_path: Path) -> None:
    lines = [f"{i}.png;1,{i:02};{'n/a' if i % 5 == 3 else f'{i % 28 + 1:02}.03.2024'}" for i in range(40)]
    path = put(tmp_path, "image;height;day\n" + "\n".join(lines))
    alone = Tabular(Tabular.Config(data=str(path), ignore=("image",))).fit()
    members: dict[str, Any] = {
        "image": Image.Config(size=32, local_size=16, patch=16), "tabular": Tabular.Config(),
    }  # fmt: skip
    pairs = Paired(Paired.Config(members=members, data=(str(path),)))
    rows = pairs.dataset("all")
    member: Any = Tabular(Tabular.Config())
    member.fit([rows[i].data.parts["tabular"] for i in alone.rows().splits["train"].tolist()])
    assert member.schema.columns == alone.schema.columns
    assert {c.kind for c in member.schema.columns} == {"number", "flag"}
    read = member.collate(
        [Sample(rows[i].data.parts["tabular"], i) for i in range(40)], {}, RowRandom((0,), 0, 40, 40)
    )
    assert torch.equal(read["rows"], alone.rows().cells)
