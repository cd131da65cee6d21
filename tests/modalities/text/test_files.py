"""Sources of texts: formats, splits, labels, and what cannot be read, which is skipped, counted and told."""

from __future__ import annotations

import json
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from multissl.contract.data import Unreadable
from multissl.contract.plans import ViewPlan
from multissl.engine.batches import StepBatches
from multissl.modalities.text.adapter import Text
from multissl.modalities.text.files import LONGEST, read_texts
from multissl.random import RowRandom
from multissl.sources.rows import Bad

LINES = [f"line number {i} of the text" for i in range(20)]


def reasons(path: Path, **options: Any) -> list[str]:
    return [t.reason for t in read_texts(str(path), "all", **options).texts if isinstance(t, Bad)]


def test_lines_and_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(LINES) + "\n")
    (tmp_path / "blocks.txt").write_bytes("\ufeffone\r\ntwo\r\n \r\n\r\nthree\n".encode())
    assert read_texts(str(tmp_path / "lines.txt"), "all").texts == LINES
    assert read_texts(str(tmp_path / "lines.txt"), "val").texts == [LINES[9], LINES[19]]
    assert read_texts(str(tmp_path / "lines.txt"), "train").texts == LINES[:9] + LINES[10:19]
    assert read_texts(str(tmp_path / "blocks.txt"), "all").texts == ["one\ntwo", "three"]


def test_jsonl_with_labels_and_splits(tmp_path: Path) -> None:
    rows = [
        {"body": t, "class": "xy"[i % 2], "split": "dev" if i > 15 else "train"} for i, t in enumerate(LINES)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_texts(str(tmp_path / "a.jsonl"), "val")
    assert found.texts == LINES[16:]
    assert found.classes == ["x", "y"]
    assert found.labels.tolist() == [0, 1, 0, 1]


def test_csv_of_two_columns_and_a_test_file_beside_it(tmp_path: Path) -> None:
    for name in ("train", "test"):
        rows = "\n".join(f'{i % 3},"{name}, {i}",more' for i in range(12))
        (tmp_path / f"news-{name}.csv").write_text("label,title,description\n" + rows)
    path = str(tmp_path / "news-train.csv")
    assert read_texts(path, "train", "title,description").texts[0] == "train, 0 more"
    assert len(read_texts(path, "train", "title").texts) == 11
    found = read_texts(path, "test", "title")
    assert found.texts[1] == "test, 1"
    assert found.labels.tolist()[:4] == [0, 1, 2, 0]


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `parquet` is not installed")
    texts = [*LINES[:-1], None]
    table = arrow.table({"text": texts, "label": [i % 2 for i in range(20)], "category": ["k"] * 20})
    parquet.write_table(table, tmp_path / "a.parquet")
    found = read_texts(str(tmp_path / "a.parquet"), "all")
    assert found.texts[:-1] == LINES[:-1]
    assert isinstance(found.texts[-1], Bad)
    assert found.labels.tolist()[:3] == [0, 1, 0]
    assert (
        read_texts(str(tmp_path / "a.parquet"), "all", "", "category").labels == -1
    ).all()  # one class says nothing


def test_folders_and_shards(tmp_path: Path) -> None:
    for i, line in enumerate(LINES):
        place = tmp_path / "data" / ("news" if i % 2 else "blog") / f"{i:02}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(line)
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(tmp_path / "data" / "news", "news")
        tar.add(tmp_path / "data" / "blog", "blog")
    for path in (tmp_path / "data", tmp_path / "data.tar"):
        found = read_texts(str(path), "all")
        assert sorted(map(str, found.texts)) == sorted(LINES)
        assert found.classes == ["blog", "news"]
        for text, label in zip(found.texts, found.labels.tolist(), strict=True):
            assert LINES.index(str(text)) % 2 == label


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.txt", None, "no such file or folder"),
        ("empty.txt", b"", "the file holds no text"),
        ("all.txt", b"\xff\xff\n\xff", "no UTF-8 text"),
        ("twice.csv", b"text,text\na,b\n", "two columns are called 'text': rename one"),
        ("other.csv", b"id,words\n1,b\n", "want a column text or sentence"),
        ("image.png", b"x", "a .png file is no source"),
    ],
)
def test_what_stops_a_run_in_one_line(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_texts(str(path), "train")
    assert str(caught.value).startswith("modality.data=")
    assert "\n" not in str(caught.value)


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,1\nb,2\n")
    with pytest.raises(ValueError, match="there is no column 'txt', only text, label"):
        read_texts(str(tmp_path / "a.csv"), "train", "txt")
    with pytest.raises(ValueError, match="there is no column 'topic'"):
        read_texts(str(tmp_path / "a.csv"), "train", "", "topic")


def test_bad_documents_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\nb\xffd\nfine")
    assert reasons(tmp_path / "a.txt") == ["document 1 of a.txt is no UTF-8 text (byte 1)"]
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "good"}\n{"text": \n{"text": "  "}\n[1]\n{"other": "x"}\n{"text": "\xff"}\n'
    )
    said = reasons(tmp_path / "a.jsonl")
    assert len(said) == 5
    for part, words in zip(
        said,
        ("line 2 of a.jsonl is no JSON", "holds no text", "line 4", "no text in 'text'", "line 6"),
        strict=True,
    ):
        assert words in part
    (tmp_path / "a.csv").write_bytes(b'text,label\ngood,1\nb\xffd,0\nmissing\n"",1\nfine,1\n')
    assert reasons(tmp_path / "a.csv") == [
        "line 3 of a.csv is no UTF-8 text", "line 4 of a.csv has 1 cells, the header names 2",
        "row 3 holds no text in 'text'",
    ]  # fmt: skip


def test_a_line_of_ten_million_characters_is_cut(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("word " * 2_000_000 + "\n" + "\n".join(LINES))
    began = time.process_time()
    found = read_texts(str(tmp_path / "long.txt"), "train")
    assert time.process_time() - began < 3
    assert max(len(t) for t in found.texts if isinstance(t, str)) == LONGEST
    assert len(found.texts) == 100 + 18
    assert (found.labels == -1).all()


def test_a_run_skips_counts_and_lists_what_cannot_be_read(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the extra `text` is not installed")
    (tmp_path / "a.jsonl").write_text(
        "\n".join([*(json.dumps({"text": t}) for t in LINES), "{", '{"text": ""}'])
    )
    modality = Text.Config(data=str(tmp_path / "a.jsonl"), vocab=300, length=8, local_length=4).build().fit()
    data: Any = modality.dataset("train")
    assert len(data) == 20
    with pytest.raises(Unreadable, match=r"line 21 of a\.jsonl is no JSON"):
        modality.collate([data[18]], {"text": ViewPlan(num_clean=1)}, RowRandom((0,), 0, 1, 1))
    steps = StepBatches(modality, {"text": ViewPlan(num_global=1)}, 4, 0, 0, 1, final=True)
    skipped = {pair for step in range(5) for pair in steps[step][1]}
    assert {index for index, _ in skipped} == {18, 19}
    assert any("holds no text" in reason for _, reason in skipped)


def test_a_word_without_an_end_is_no_obstacle(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the extra `text` is not installed")
    (tmp_path / "a.txt").write_text("a" * LONGEST + "\n" + "\n".join(LINES))
    modality = Text.Config(data=str(tmp_path / "a.txt"), vocab=300, length=8, local_length=4).build().fit()
    data: Any = modality.dataset("train")
    assert len(data[0].data.own.ids) > 1000
