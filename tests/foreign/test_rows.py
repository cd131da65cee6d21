"""Texts, tables, episodes and pairs that broke other projects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multissl.modalities.rl.recorded import read_replay
from multissl.modalities.rl.replay import Replay
from multissl.modalities.tabular.tables import Table, read_table
from multissl.modalities.text.files import Texts, read_texts
from multissl.sources.rows import Bad
from tests.foreign.cases import CASES, case, folder
from tests.helpers.paired_data import pairs, png


def texts(root: Path, name: str, content: bytes) -> Texts:
    return read_texts(str(Path(folder(root, {name: content}), name)), "all")


def table(root: Path, content: str, name: str = "a.csv", **options: Any) -> Table:
    return read_table(str(Path(folder(root, {name: content.encode()}), name)), **options)


def cells(rows: Table) -> dict[str, list[Any]]:
    return {name: column.tolist() for name, column in rows.columns.items()}


# texts


@case("text", "huggingface/datasets#3729", "U+2029 inside a line of a text", "it parts no documents")
def ends_of_paragraphs_inside_lines(root: Path) -> None:
    assert texts(root, "a.txt", "one\u2029still one\ntwo\n".encode()).texts == ["one\u2029still one", "two"]


@case("text", "huggingface/datasets#622", "carriage returns inside quoted cells", "they part no rows")
def carriage_returns_inside_cells(root: Path) -> None:
    read = texts(root, "a.csv", b'text,label\n"a\rb",1\n"c\nd",0\n')
    assert read.texts == ["a\rb", "c\nd"]
    assert read.labels.tolist() == [1, 0]


@case(
    "text",
    "huggingface/datasets#4467",
    "the word null as a transcript",
    "missing by the rules of pandas, by row",
)
def the_word_null(root: Path) -> None:
    read = texts(root, "a.csv", b"text,label\nnull,1\neent,0\nzwee,0\n").texts
    assert read == [Bad("row 0 holds no text in 'text'"), "eent", "zwee"]


@case(
    "text",
    "artidoro/qlora#143",
    "a JSON array that is called .jsonl, in one line or many",
    "its entries are the rows",
)
def arrays_called_lines(root: Path) -> None:
    rows = [{"text": "one two"}, {"text": "three"}]
    for document, indent in ((rows, None), (rows, 1), ({"data": rows}, 1)):
        read = texts(root, "a.jsonl", json.dumps(document, indent=indent).encode())
        assert read.texts == ["one two", "three"]


@case(
    "text", "google-research-datasets/sentence-compression#1", "JSON objects of several lines, one after the other",
    "refused, with the line",
)  # fmt: skip
def lines_that_are_no_json(root: Path) -> None:
    with pytest.raises(
        ValueError, match=r"none of its rows can be read; the first: line 1 of a\.jsonl is no JSON"
    ):
        texts(root, "a.jsonl", b'{\n"text": "a"\n}\n\n{\n"text": "b"\n}\n')


@case("text", "huggingface/datasets#870", "poems whose lines belong together", "paragraphs keep their lines")
def lines_of_poems(root: Path) -> None:
    assert texts(root, "a.txt", b"a\nb\n\nc\nd\n").texts == ["a\nb", "c\nd"]


# tables


@case(
    "tabular",
    "pandas-dev/pandas#47303",
    "sep=| above the header, as Excel writes it",
    "it says what parts the columns",
)
def a_line_that_says_the_delimiter(root: Path) -> None:
    for first in ("sep=|", '"sep=|"', "SEP=|\r"):
        assert cells(table(root, f"{first}\na|b\nx|1\ny|2\n")) == {"a": ["x", "y"], "b": [1, 2]}
    assert cells(table(root, "sep=;\na;b\n1,5;2\n3,5;4\n")) == {"a": [1.5, 3.5], "b": [2, 4]}


@case(
    "tabular", "pandas-dev/pandas#41304", "rows that end with a delimiter, the header not", "no column moves"
)
def rows_that_end_with_a_delimiter(root: Path) -> None:
    rows = table(
        root, '"day";"T";"Po"\n"04.05.2021 09:00";"9.8";"759.0";\n"04.05.2021 10:00";"9.9";"758.0";\n'
    )
    assert cells(rows) == {
        "day": ["2021-05-04T09:00:00", "2021-05-04T10:00:00"],
        "T": [9.8, 9.9],
        "Po": [759, 758],
    }
    assert cells(table(root, "a,b\nx,1,2\ny,3,4\n")) == {"a": [1, 3], "b": [2, 4]}, "R names its rows"


@case("tabular", "pandas-dev/pandas#48170", "numbers of 19 digits", "they stay what they are, as text")
def long_numbers(root: Path) -> None:
    assert (
        cells(table(root, "id,v\n1234567890123456789,1\n1234567890123456790,2\n"))["id"][1]
        == "1234567890123456790"
    )


@case("tabular", "pandas-dev/pandas#39514", "numbers with many zeros behind the point", "to the last digit")
def small_numbers(root: Path) -> None:
    assert cells(table(root, "k\tA\nx\t-0.00000000000001953\ny\t3.42E-018\n", "a.tsv"))["A"] == [
        -1.953e-14,
        3.42e-18,
    ]


@case("tabular", "sdv-dev/SDV#2780", "codes that begin with 0", "they stay text")
def leading_zeros(root: Path) -> None:
    assert cells(table(root, "zip,v\n02116,1\n10001,2\n"))["zip"] == ["02116", "10001"]


@case("tabular", "JuliaData/CSV.jl#42", "-999 for what is missing", "missing where modality.missing says so")
def words_of_a_survey(root: Path) -> None:
    assert np.isnan(cells(table(root, "v,w\n-999,1\n3,2\n", missing=("-999",)))["v"][0])


@case("tabular", "pandas-dev/pandas#53035", "a table of one column", "one column, whatever its cells hold")
def one_column(root: Path) -> None:
    assert cells(table(root, "value\n1\n2\n3\n")) == {"value": [1, 2, 3]}
    assert cells(table(root, "note\nsome words\nof many, kinds\nand; more\n"))["note"][1] == "of many, kinds"


@case(
    "tabular",
    "JuliaData/CSV.jl#351, wireservice/csvkit#336",
    "lines above the header: empty, comments, a title",
    "left out, or refused",
)
def lines_above_the_header(root: Path) -> None:
    for above in ("\n\n", "# made by X\n# in 2024, twice\n", "#a comment\n\n", "\n# one\nsep=,\n"):
        assert cells(table(root, f"{above}a,b\n1,2\n3,4\n")) == {"a": [1, 3], "b": [2, 4]}, above
    assert cells(table(root, "#id,v\n1,2\n")) == {"#id": [1], "v": [2]}, "names may begin like a comment"
    assert cells(table(root, "# a,b\n1,2\n")) == {"# a": [1], "b": [2]}, "as numpy.savetxt writes them"
    rows = table(root, "# note\na;b\n1;2\n1;2;3\n")
    assert rows.broken == {1: "line 4 of a.csv has 3 cells, the header names 2"}
    for above in ("Report of 2024\n\n", "Report of 2024\nin euros\n"):
        with pytest.raises(
            ValueError, match="'Report of 2024', and lines below it are parted by ';' into 3: take out"
        ):
            table(root, f"{above}a;b;c\nx;1;2\ny;3;4\nz;5;6\n")


@case(
    "tabular",
    "pandas-dev/pandas#12340",
    "columns parted by spaces",
    "refused, with the option",
)
def columns_parted_by_spaces(root: Path) -> None:
    content = "name  height\nx   1\nyy  2\nz   3\n"
    with pytest.raises(
        ValueError, match=r"all lines are of 2 words: if spaces part the columns, say --modality\.delimiter"
    ):
        table(root, content)
    assert cells(table(root, content, delimiter="space")) == {"name": ["x", "yy", "z"], "height": [1, 2, 3]}
    assert cells(table(root, "first name\nJohn Smith\nMary Jane\nBob Ross\n"))["first name"][1] == "Mary Jane"


# episodes

STEPS = 40
ENDS = np.arange(STEPS) % 10 == 9


def replay(root: Path, **arrays: Any) -> Replay:
    given = {"observations": np.random.default_rng(0).normal(size=(STEPS, 4)).astype(np.float32), **arrays}
    np.savez(root / "a.npz", **{"actions": np.zeros(STEPS, np.int64), **given})
    return read_replay(str(root / "a.npz"))


@case("rl", "tinkoff-ai/CORL#43", "a last episode whose end is not marked", "it is an episode as any")
def an_open_episode(root: Path) -> None:
    ends = ENDS.copy()
    ends[-1] = False
    assert replay(root, terminals=ends, timeouts=np.zeros(STEPS, bool)).start.tolist() == [0, 10, 20, 30, 40]


@case("rl", "Farama-Foundation/D4RL#40", "episodes that only timeouts part", "they are parted")
def episodes_parted_by_timeouts(root: Path) -> None:
    read = replay(root, terminals=np.zeros(STEPS, bool), timeouts=ENDS)
    assert read.start.tolist() == [0, 10, 20, 30, 40]
    assert read.truncated is not None
    assert read.truncated.sum() == 4


@case("rl", "takuseno/d3rlpy#127", "episodes of one step", "each stays one")
def episodes_of_one_step(root: Path) -> None:
    ends = ENDS.copy()
    ends[10:12] = True
    assert replay(root, terminals=ends).start.tolist() == [0, 10, 11, 12, 20, 30, 40]


@case("rl", "Farama-Foundation/Minari#199", "one observation more than actions", "refused, with both numbers")
def more_observations_than_actions(root: Path) -> None:
    with pytest.raises(ValueError, match="41 frames and 40 actions: want as many"):
        replay(root, observations=np.zeros((STEPS + 1, 4), np.float32), terminals=ENDS)


@case("rl", "DLR-RM/stable-baselines3#913", "recorded choices that begin at -1", "refused, with the ways out")
def choices_below_zero(root: Path) -> None:
    with pytest.raises(
        ValueError, match=r"actions go from -1 to 1: want choices counted from 0, .*or floats"
    ):
        replay(root, actions=np.arange(STEPS) % 3 - 1, terminals=ENDS)


@case(
    "rl",
    "openai/multiagent-particle-envs#62",
    "choices one-hot, and with an axis of one",
    "numbers, and choices",
)
def choices_written_otherwise(root: Path) -> None:
    assert replay(root, actions=np.eye(3)[np.arange(STEPS) % 3], terminals=ENDS).actions.shape == (STEPS, 3)
    read = replay(root, actions=np.arange(STEPS)[:, None] % 3, terminals=ENDS[:, None])
    assert read.num_actions == 3
    assert read.actions.tolist() == [step % 3 for step in range(STEPS)]


# pairs

COUNT = 20


def album(root: Path, name: str, content: str) -> list[tuple[str, str]]:
    """The pairs of a table that lies beside 20 pictures: names of pictures and captions."""
    folder(root, {f"{i}.png": png(10 * i) for i in range(COUNT)} | {name: content.encode()})
    data = pairs(str(root / name)).dataset("all")
    rows = [data[i].data.parts for i in range(len(data))]
    return [(Path(row["image"]).name, row["text"]) for row in rows if not isinstance(row["image"], Bad)]


EXPECTED = [(f"{i}.png", f"picture {i}, of 20") for i in range(COUNT)]


@case("pairs", "mlfoundations/open_clip#789", "filepath and title, parted by anything", "no option is needed")
def the_columns_of_open_clip(root: Path) -> None:
    for name, mark in (("a.csv", "\t"), ("b.tsv", "\t"), ("c.csv", ";")):
        lines = [f"{image}{mark}{caption}" for image, caption in EXPECTED]
        assert album(root, name, "\n".join([f"filepath{mark}title", *lines])) == EXPECTED


@case("pairs", "moein-shariatnia/OpenAI-CLIP#2", "Flickr's captions.txt, which is a table", "read as one")
def captions_in_a_text(root: Path) -> None:
    lines = [f'{image},"{caption}"' for image, caption in EXPECTED]
    assert album(root, "captions.txt", "\n".join(["image,caption", *lines])) == EXPECTED


@case(
    "pairs",
    "moein-shariatnia/OpenAI-CLIP#2",
    "Flickr's image_name| comment_number| comment",
    "no option is needed",
)
def captions_by_number(root: Path) -> None:
    lines = [f"{i // 5}.png| {i % 5}| picture {i}" for i in range(60)]
    read = album(root, "results.csv", "\n".join(["image_name| comment_number| comment", *lines]))
    assert [(image, text.strip()) for image, text in read] == [
        (f"{i // 5}.png", f"picture {i}") for i in range(60)
    ]


@case("pairs", "cdjkim/audiocaps#23", "a caption that is torn into a row of its own", "left out by line")
def a_torn_caption(root: Path) -> None:
    lines = [f'{image},"{caption}",a' for image, caption in EXPECTED[:-1]]
    read = album(root, "a.csv", "\n".join(["path,caption,label", *lines, "the dog is whimpering"]))
    assert read == EXPECTED[:-1]


@case("pairs", "huggingface/datasets#6849", "a.b.0.jpeg beside a.b.0.txt", "they are pairs")
def pairs_with_dots(root: Path) -> None:
    files = {f"a.b.{i}.jpeg": png(10 * i) for i in range(12)} | {f"a.b.{i}.txt": b"%d" % i for i in range(12)}
    data = pairs(folder(root, files)).dataset("all")
    assert sorted(int(data[i].data.parts["text"]) for i in range(len(data))) == [*range(12)]


@case(
    "pairs",
    "huggingface/datasets#4069",
    "pictures with metadata.jsonl, by their folder",
    "refused, with the way out",
)
def a_table_inside_the_folder(root: Path) -> None:
    lines = "\n".join(json.dumps({"file_name": image, "text": caption}) for image, caption in EXPECTED)
    assert album(root, "metadata.jsonl", lines) == EXPECTED
    with pytest.raises(
        ValueError, match=r"a table of pairs is read where modality\.data names it, not its folder"
    ):
        pairs(str(root)).dataset("all")


@pytest.mark.parametrize(
    "name", [n for n, case in CASES.items() if case.modality in ("text", "tabular", "rl", "pairs")]
)
def test_what_broke_others(name: str, tmp_path: Path) -> None:
    CASES[name].check(tmp_path)
