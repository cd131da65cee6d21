"""Where pairs come from: rows of every kind of file, what is missing in them, equal, strange or broken."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from multissl.contract.data import Unreadable
from multissl.contract.plans import CLEAN
from multissl.inference import featurize_places
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.tabular.adapter import Tabular
from tests.helpers.paired_data import (
    IMAGE,
    TEXT,
    WORDS,
    clean,
    every,
    ids,
    members,
    pairs,
    png,
    rows,
    shard,
    written,
)

# where rows come from


def table(root: Path, kind: str) -> str:
    captions, labels = [members(i)["txt"] for i in range(20)], [WORDS[i % 10] for i in range(20)]
    for i in range(20):
        (root / f"{i}.png").write_bytes(png(20 * (i % 10)))
    path = root / f"rows.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as f:
            csv.writer(f).writerows(
                [("path", "caption", "label"), *((f"{i}.png", captions[i], labels[i]) for i in range(20))]
            )
    elif kind == "jsonl":
        lines = [{"image": f"{i}.png", "text": captions[i], "class": labels[i]} for i in range(20)]
        path.write_text("\n".join(map(json.dumps, lines)))
    else:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        cells = [{"bytes": png(20 * (i % 10)), "path": None} for i in range(20)]
        columns = {"image": cells, "sentence": captions, "label": labels}
        parquet.write_table(pyarrow.table(columns), path, row_group_size=7)
    return str(path)


@pytest.mark.parametrize("kind", ["tar", "csv", "jsonl", "parquet", "folder"])
def test_rows_of_every_kind_of_file_are_the_same(kind: str, tmp_path: Path) -> None:
    data = shard(tmp_path / "a.tar", rows()) if kind in ("tar", "folder") else table(tmp_path, kind)
    if kind == "folder":
        with tarfile.open(data) as tar:
            tar.extractall(tmp_path / "all", filter="data")
        data = str(tmp_path / "all")
    made = pairs(data, columns={"text": "sentence"} if kind == "parquet" else {})
    samples = every(made)
    assert len(samples) == 20
    assert [made.dataset("all").classes[s.label] for s in samples] == [WORDS[i % 10] for i in range(20)]
    views = clean(made, samples)
    assert written(views["text"], made) == [members(i)["txt"] for i in range(20)]
    assert views["image"].stream == "image"
    assert views["image"].present is None
    brightness = views["image"].x.mean((1, 2, 3))
    assert torch.equal(brightness[:10], brightness[10:])
    assert (brightness[:10].diff() > 0).all(), "pictures and captions are not of one row"
    assert len(set(ids(views["image"]).tolist())) == 20
    assert [len(every(made, s)) for s in ("train", "val")] == [18, 2]


def test_a_split_is_a_word_of_a_column(tmp_path: Path) -> None:
    words = ["train", "Validation", "test", "train", "dev", "train"]
    lines = [{"image": f"{n % 10}.png", "text": f"row {n}", "split": word} for n, word in enumerate(words)]
    for n in range(6):
        (tmp_path / f"{n}.png").write_bytes(png(20 * n))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = pairs(str(tmp_path / "a.jsonl"))
    assert [len(every(made, split)) for split in ("train", "val", "test")] == [3, 2, 1]


def test_a_split_is_a_word_of_the_shard_or_every_tenth_group(tmp_path: Path) -> None:
    data = shard(tmp_path / "pairs-train.tar", rows(20))
    shard(tmp_path / "pairs-test.tar", rows(5))
    made = pairs(data)
    assert [len(every(made, s)) for s in ("train", "val", "test", "all")] == [18, 2, 5, 20]
    grouped = rows(40)
    for i, row in enumerate(grouped):
        row["json"] = json.dumps({"speaker": f"s{i // 4}"})
    made = pairs(shard(tmp_path / "b.tar", grouped), group="speaker")
    held = {s.group for s in every(made, "val")}
    assert len(every(made, "val")) == 4
    assert len(held) == 1
    assert not held & {s.group for s in every(made, "train")}
    groups = clean(made, every(made)[:8])["text"].group_id
    assert groups is not None
    assert len(set(groups.tolist())) == 2


def test_rows_of_one_value_are_read_alone(tmp_path: Path) -> None:
    made = pairs(shard(tmp_path / "a.tar", rows()), only={"label": "three"})
    assert [s.data.parts["text"] for s in every(made)] == ["sample 3 shows three", "sample 13 shows three"]
    with pytest.raises(ValueError, match=r"modality.only: no row has label=eleven"):
        pairs(shard(tmp_path / "b.tar", rows()), only={"label": "eleven"}).dataset("train")
    with pytest.raises(ValueError, match=r"modality.label: there is no column 'labl'; did you mean label"):
        pairs(shard(tmp_path / "c.tar", rows()), label="labl").dataset("train")


# what is missing


def test_a_missing_caption_is_marked_and_filled_with_the_first_of_the_training(
    tmp_path: Path, said: list[str]
) -> None:
    files = rows()
    del files[3]["txt"], files[12]["png"]
    made = pairs(shard(tmp_path / "a.tar", files))
    samples = every(made)
    whole = clean(made, samples)
    assert whole["text"].present is not None
    assert whole["image"].present is not None
    assert (~whole["text"].present).nonzero().flatten().tolist() == [3]
    assert (~whole["image"].present).nonzero().flatten().tolist() == [12]
    assert torch.equal(whole["text"].x[3], whole["text"].x[0])
    line = "took 18 of 20 pairs whole; 1 without image, 1 without text: they serve what does not ask for it"
    assert any(line in each for each in said)
    part = clean(made, samples[:2])  # nobody lacks anything here, and ranks agree that some do
    assert part["text"].present is not None
    assert part["text"].present.all()
    with pytest.raises(Unreadable, match="row 3 has no text"):
        clean(made, samples, {"text": CLEAN})
    assert len(clean(made, samples[:3], {"text": CLEAN})["text"].x) == 3


def test_files_that_are_in_no_pair_are_counted_with_the_way_out(tmp_path: Path, said: list[str]) -> None:
    files = rows()
    files[3]["raw"] = files[3].pop("png")
    files += [{"doc": "read me"}, {"cls": "3"}]
    made = pairs(shard(tmp_path / "a.tar", files))
    assert len(every(made)) == 20
    (line,) = [each for each in said if "pairs whole" in each]
    assert "took 19 of 20 pairs whole; 1 without image: they serve" in line
    assert "files that are in no pair: " in line
    assert ".raw 1" in line
    assert ".doc 1" in line
    assert ".cls 1" in line


def test_a_source_without_captions_serves_beside_one_with(tmp_path: Path) -> None:
    bare = [{"png": png(100 + i)} for i in range(10)]
    first, second = shard(tmp_path / "a.tar", rows()), shard(tmp_path / "b.tar", bare)
    samples = every(pairs((first, second)))
    assert [s.data.parts["text"] is None for s in samples] == [False] * 20 + [True] * 10
    with pytest.raises(
        ValueError, match=r"none of 10 rows has a text, found \.png; name it with modality.columns"
    ):
        pairs(second).dataset("train")


def test_rows_that_never_meet_are_no_pairs(tmp_path: Path) -> None:
    data = shard(tmp_path / "a.tar", [{"png": png(0)}, {"txt": "one"}, {"txt": "two"}])
    with pytest.raises(ValueError, match="no row has two of image, text"):
        pairs(data).dataset("train")


# what is equal or strange


def test_equal_captions_and_equal_files_are_positives_of_each_other(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as f:
        for i in range(4):
            (tmp_path / f"{i}.png").write_bytes(png(i))
        names = [
            ("image", "text"),
            ("0.png", "a"),
            ("1.png", "b"),
            ("2.png", "a"),
            ("3.png", "c"),
            ("3.png", "d"),
        ]
        csv.writer(f).writerows(names)
    made = pairs(str(tmp_path / "a.csv"))
    found = ids(clean(made, every(made))["image"]).tolist()
    assert found[0] == found[2]
    assert found[3] == found[4]
    assert len(set(found)) == 3


def test_equal_captions_of_all_rows_and_names_of_files_are_told(tmp_path: Path, said: list[str]) -> None:
    same = [{**row, "txt": "a photo"} for row in rows()]
    with pytest.raises(ValueError, match=r"every text is 'a photo', nothing tells the pairs apart"):
        pairs(shard(tmp_path / "a.tar", same)).dataset("train")
    assert not said
    named = [{**row, "txt": f"IMG_{i:04d}.jpg"} for i, row in enumerate(rows())]
    assert len(every(pairs(shard(tmp_path / "b.tar", named)))) == 20
    assert any("look like names of files, as 'IMG_0000.jpg'" in line for line in said)


def test_rows_of_unequal_length_and_broken_members_are_skipped_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "a.csv").write_text("image,text\n0.png,zero\n0.png\n0.png,one,two\n0.png,three\n")
    made = pairs(str(tmp_path / "a.csv"))
    data: Any = made.dataset("all")
    assert data[3].data.parts["text"] == "three"
    for line, cells in ((3, 1), (4, 3)):
        with pytest.raises(Unreadable, match=f"line {line} of a.csv has {cells} cells, the header names 2"):
            clean(made, [data[line - 2]])
    files = rows(5)
    files[1]["json"], files[2]["txt"], files[3]["png"] = "{", b"\xff", b"no picture"
    made = pairs(shard(tmp_path / "a.tar", files))
    data = made.dataset("all")
    for row, reason in (
        (1, "00001.json is no JSON"),
        (2, "00002.txt is no UTF-8"),
        (3, "00003.png: not an image"),
    ):
        with pytest.raises(Unreadable, match=reason) as caught:
            clean(made, [data[0], data[row]])
        assert caught.value.index == row
    # what is measured leaves them out
    _, _, kept = featurize_places(lambda views: views.x.flatten(1), made, "all", [*range(5)], stream="image")
    assert kept == [0, 4]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"members": {"image": IMAGE}}, "modality.members holds image: want two or more streams"),
        ({"temperature": 0.5}, "modality.temperature=0.5: want 1 or more"),
        ({"prompts": {"words": ("{}",)}}, "modality.prompts names 'words', no stream; there are image, text"),
        ({"prompts": {"text": ("a photo",)}}, "want texts with {} for the class in them"),
        ({"join": "label", "data": ("a.tar",)}, "modality.join=label reads the members' own data"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        Paired.Config(**options)


def test_sources_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"modality.data='nowhere.tar': no such file or folder"):
        pairs("nowhere.tar").dataset("train")
    with pytest.raises(
        ValueError, match="built-in pairs of pictures and captions only, not of image, tabular"
    ):
        Paired(Paired.Config(members={"image": IMAGE, "tabular": Tabular.Config()})).dataset("train")
    (tmp_path / "a.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match="is no plain tar"):
        pairs(str(tmp_path / "a.tar")).dataset("train")


# several texts in one cell


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tar"])
def test_each_text_of_a_cell_is_a_row_and_all_are_positives_of_each_other(kind: str, tmp_path: Path) -> None:
    texts = [[f"row {i} is lighter", f"nearly {i}", " "][: 1 + i % 3] for i in range(20)]
    texts[5] = []
    if kind == "tar":
        files = [{"png": png(10 * i), "json": json.dumps({"captions": texts[i]})} for i in range(20)]
        data = shard(tmp_path / "a.tar", files)
    elif kind == "jsonl":
        for i in range(20):
            (tmp_path / f"{i}.png").write_bytes(png(10 * i))
        lines = [{"image": f"{i}.png", "captions": texts[i]} for i in range(20)]
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
        data = str(tmp_path / "a.jsonl")
    else:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        cells = [{"bytes": png(10 * i), "path": None} for i in range(20)]
        parquet.write_table(pyarrow.table({"image": cells, "captions": texts}), tmp_path / "a.parquet")
        data = str(tmp_path / "a.parquet")
    made = pairs(data)
    samples = every(made)
    told = [(i, t) for i, row in enumerate(texts) for t in [t for t in row if t.strip()] or [None]]
    assert [s.data.parts["text"] for s in samples] == [t for _, t in told]
    views = clean(made, samples)
    assert views["text"].present is not None
    assert (~views["text"].present).nonzero().flatten().tolist() == [[i for i, _ in told].index(5)]
    rows_of = torch.tensor([i for i, _ in told])
    same = ids(views["image"])
    assert torch.equal(same[:, None] == same, rows_of[:, None] == rows_of)
    lightness = views["image"].x.mean((1, 2, 3))
    assert torch.equal(lightness[:, None] == lightness, rows_of[:, None] == rows_of)


def test_texts_of_two_streams_go_together_and_the_shorter_cell_is_repeated(tmp_path: Path) -> None:
    lines = [{"here": [f"a{i}", f"b{i}", f"c{i}"], "there": [f"A{i}", f"B{i}"]} for i in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    made = Paired(Paired.Config(data=(str(tmp_path / "a.jsonl"),), members={"here": TEXT, "there": TEXT}))
    found = [(s.data.parts["here"], s.data.parts["there"]) for s in every(made)[:3]]
    assert found == [("a0", "A0"), ("b0", "B0"), ("c0", "A0")]


@pytest.mark.parametrize("cells", [True, False])
def test_texts_of_one_file_stay_in_one_split(cells: bool, tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(png(10 * i))
    texts = [[f"{i} a", f"{i} b", f"{i} c"] for i in range(20)]
    lines = [{"image": f"{i}.png", "captions": texts[i]} for i in range(20)]
    if not cells:
        lines = [{"image": f"{i}.png", "text": text} for i in range(20) for text in texts[i]]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    made = pairs(str(tmp_path / "a.jsonl"))
    held = [Path(s.data.parts["image"]).name for s in every(made, "val")]
    assert held == ["9.png"] * 3 + ["19.png"] * 3
    assert len(every(made, "train")) == 54
