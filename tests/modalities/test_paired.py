"""Pairs: rows of every kind of file, what is missing, equal or strange, the same bytes everywhere, what is built in."""

from __future__ import annotations

import csv
import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from multissl import cli
from multissl.engine.data import Data, Steps, stream
from multissl.modalities.image import Image
from multissl.modalities.paired import Paired
from multissl.modalities.paired_rows import Record, repeats
from multissl.modalities.tabular import Tabular
from multissl.modalities.text import Text
from multissl.random import RowRandom
from multissl.types import CLEAN, Batch, Plans, Sample, Unreadable, ViewPlan, Views
from tests.paired_data import SMALL, WORDS, members, png, shard

IMAGE = Image.Config(**SMALL[Image.Config])
TEXT = Text.Config(pack=False, **SMALL[Text.Config])
BOTH: Plans = {"image": CLEAN, "text": CLEAN}


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What is logged meanwhile."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    log, handler = logging.getLogger("multissl"), Keep()
    log.addHandler(handler)
    yield lines
    log.removeHandler(handler)


def pairs(data: str | tuple[str, ...], **options: Any) -> Paired:
    given = {"members": {"image": IMAGE, "text": TEXT}, **options}
    return Paired.Config(data=(data,) if isinstance(data, str) else data, **given).build()


def rows(count: int = 20) -> list[dict[str, bytes | str]]:
    return [{k: v for k, v in members(i).items() if k in ("png", "txt", "json")} for i in range(count)]


def clean(made: Paired, samples: list[Sample], plans: Plans = BOTH) -> dict[str, Views]:
    rng = RowRandom((0, 0), 0, len(samples), len(samples))
    return {v.stream: v for v in made.views(made.collate(samples, plans, rng), plans, rng)}


def every(made: Paired, split: str = "all") -> list[Sample]:
    data: Any = made.dataset(split)
    return [data[i] for i in range(len(data))]


def written(views: Views, made: Paired) -> list[str]:
    words = made.members["text"].vocabulary()  # type: ignore[attr-defined]
    return ["".join(words.pieces(row[row != words.pad].tolist())).strip() for row in views.x]


def ids(views: Views) -> Tensor:
    assert views.sample_id is not None
    return views.sample_id


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
    if kind in ("tar", "folder"):
        data = shard(tmp_path / "a.tar", rows())
    else:
        data = table(tmp_path, kind)
    if kind == "folder":
        import tarfile

        with tarfile.open(data) as tar:
            tar.extractall(tmp_path / "all", filter="data")
        data = str(tmp_path / "all")
    made = pairs(data, columns={"text": "sentence"} if kind == "parquet" else {})
    samples = every(made)
    assert len(samples) == 20
    assert [made.dataset("all").classes[s.label] for s in samples] == [WORDS[i % 10] for i in range(20)]  # type: ignore[attr-defined]
    views = clean(made, samples)
    assert written(views["text"], made) == [members(i)["txt"] for i in range(20)]
    assert views["image"].stream == "image"
    assert views["image"].present is None
    brightness = views["image"].x.mean((1, 2, 3))
    assert torch.equal(brightness[:10], brightness[10:])
    assert (brightness[:10].diff() > 0).all(), "pictures and captions are not of one row"
    assert len(set(ids(views["image"]).tolist())) == 20
    assert [len(every(made, s)) for s in ("train", "val")] == [18, 2]


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
    assert any("1 of 20 rows have no text" in line for line in said)
    part = clean(made, samples[:2])  # nobody lacks anything here, and ranks agree that some do
    assert part["text"].present is not None
    assert part["text"].present.all()
    with pytest.raises(Unreadable, match="row 3 has no text"):
        clean(made, samples, {"text": CLEAN})
    assert len(clean(made, samples[:3], {"text": CLEAN})["text"].x) == 3


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
    data: Any = pairs(str(tmp_path / "a.csv")).dataset("all")
    assert data[3].data.parts["text"] == "three"
    for line, cells in ((3, 1), (4, 3)):
        with pytest.raises(Unreadable, match=f"line {line} of a.csv has {cells} cells, the header 2"):
            data[line - 2]
    files = rows(5)
    files[1]["json"], files[2]["txt"], files[3]["png"] = "{", b"\xff", b"no picture"
    made = pairs(shard(tmp_path / "a.tar", files))
    data = made.dataset("all")
    with pytest.raises(Unreadable, match="00001.json is no JSON"):
        data[1]
    with pytest.raises(Unreadable, match="00002.txt is no UTF-8 text"):
        data[2]
    with pytest.raises(Unreadable, match=r"00003.png: not an image") as caught:
        clean(made, [data[0], data[3]])
    assert caught.value.index == 3


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
    with pytest.raises(ValueError, match="modality.data='nowhere.tar': no such file or folder"):
        pairs("nowhere.tar").dataset("train")
    with pytest.raises(
        ValueError, match="built-in pairs of pictures and captions only, not of image, tabular"
    ):
        Paired.Config(members={"image": IMAGE, "tabular": Tabular.Config()}).build().dataset("train")
    (tmp_path / "a.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match="is no plain tar"):
        pairs(str(tmp_path / "a.tar")).dataset("train")


# one modality twice


def test_a_modality_is_paired_with_itself_under_two_names(tmp_path: Path) -> None:
    two = {"photo": IMAGE, "depth": IMAGE}
    files: Any = [{"photo.png": png(10 * i), "depth.png": png(200 - 10 * i)} for i in range(10)]
    made = pairs(shard(tmp_path / "a.tar", files), members=two)
    views = clean(made, every(made), {"photo": CLEAN, "depth": CLEAN})
    assert [*made.streams()] == ["photo", "depth"]
    assert (views["photo"].x.mean((1, 2, 3)).diff() > 0).all()
    assert (views["depth"].x.mean((1, 2, 3)).diff() < 0).all()
    with pytest.raises(
        ValueError, match=r"photo and depth are both Image.*call the files 00000.photo.png and"
    ):
        pairs(shard(tmp_path / "b.tar", rows()), members=two).dataset("train")


# the same bytes


PLANS: Plans = {
    "image": ViewPlan(num_clean=1, num_global=2, num_local=2),
    "text": ViewPlan(num_clean=1, num_global=2),
}


def same(one: Batch, other: Batch) -> None:
    assert [(v.stream, v.role) for v in one] == [(v.stream, v.role) for v in other]
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.x, b.x), f"{a.stream} {a.role}"
        assert torch.equal(ids(a), ids(b))
        assert (a.present is None) == (b.present is None)
        assert a.present is None or b.present is None or torch.equal(a.present, b.present)


def batch(made: Steps, step: int) -> Batch:
    return made.views(made[step][0], step)


def partly(tmp_path: Path) -> Paired:
    files = rows()
    del files[3]["txt"]
    return pairs(shard(tmp_path / "a.tar", files))


def test_workers_a_restart_and_another_process_give_the_same_stream(tmp_path: Path) -> None:
    made = partly(tmp_path)
    steps = Steps(made, PLANS, 8, 5, 0, 1, final=False)
    expected = [batch(steps, s) for s in range(4)]
    for fetched, known in zip(
        stream(steps, 2, 4, Data(workers=2), 1, torch.device("cpu")), expected[2:], strict=True
    ):
        same(fetched.batch, known)
    later = pickle.loads(pickle.dumps(partly(tmp_path)))
    later.restore(json.loads(json.dumps(made.state())))
    same(batch(Steps(later, PLANS, 8, 5, 0, 1, final=False), 3), expected[3])
    assert not torch.equal(expected[0][1].x, expected[1][1].x)
    streams = [(v.stream, v.role) for v in expected[0]]
    assert streams == [
        (s, r) for s in ("image", "text") for r in ("clean", "global", "local") if (s, r) != ("text", "local")
    ]


def test_two_ranks_make_the_views_of_one(tmp_path: Path) -> None:
    made = partly(tmp_path)
    whole = batch(Steps(made, PLANS, 8, 5, 0, 1, final=False), 1)
    halves = [batch(Steps(made, PLANS, 8, 5, rank, 2, final=False), 1) for rank in (0, 1)]
    for views, *parts in zip(whole, *halves, strict=True):
        x = torch.cat([p.x.unflatten(0, (views.num_views, -1)) for p in parts], 1)
        assert torch.equal(x.flatten(0, 1), views.x)
        assert torch.equal(torch.cat([ids(p) for p in parts]), ids(views))


# mixing


def test_small_sources_are_drawn_by_temperature_in_a_fixed_epoch(tmp_path: Path) -> None:
    assert repeats([100, 25, 4], 1) == [100, 25, 4]
    assert repeats([100, 25, 4], 2) == [100, 50, 20]
    files: Any = rows(40)
    more: Any = [{**row, "txt": f"other {i}"} for i, row in enumerate(rows(10))]
    both = shard(tmp_path / "a.tar", files), shard(tmp_path / "b.tar", more)
    plain, mixed = (pairs(both, temperature=t) for t in (1.0, 2.0))
    counts = [
        sum(s.data.parts["text"].startswith("other") for s in every(made, "train")) for made in (plain, mixed)
    ]
    assert counts == [9, 18]
    assert len(every(mixed, "train")) == 36 + 18
    assert len(every(mixed, "val")) == len(every(plain, "val")) == 5
    rowed = [s.data.row for s in every(mixed, "train")]
    assert rowed == [s.data.row for s in every(pairs(both, temperature=2.0), "train")]
    assert {rowed.count(r) for r in rowed if r >= 40} == {2}


# texts made of classes, pairs by class


def test_prompts_make_the_text_of_the_class(tmp_path: Path) -> None:
    files = [{k: v for k, v in row.items() if k != "txt"} for row in rows()]
    templates = ("a photo of a {}.", "{}")
    made = pairs(shard(tmp_path / "a.tar", files), prompts={"text": templates}, names={"three": "trio"})
    samples = every(made)
    assert [s.data.parts["text"] for s in samples[2:4]] == ["a photo of a two.", "trio"]
    found = ids(clean(made, samples)["text"])
    assert torch.equal(found[:10], found[10:])
    assert len(set(found.tolist())) == 10


def by_class(tmp_path: Path, **options: Any) -> Paired:
    from tests.paired_data import class_folders

    left = IMAGE.replace(data=class_folders(tmp_path / "left", "png", 12))
    right = IMAGE.replace(data=class_folders(tmp_path / "right", "png", 5, 2))
    return Paired.Config(**{"members": {"left": left, "right": right}, "join": "label", **options}).build()


def test_partners_are_drawn_among_samples_of_the_same_class(tmp_path: Path) -> None:
    made = by_class(tmp_path)
    data: Any = made.dataset("train")
    assert len(data) == sum(s.label < 2 for s in every(made, "train"))  # the right has no class 2
    steps = Steps(made, {"left": CLEAN, "right": CLEAN}, 16, 0, 0, 1, final=False)
    left, right = batch(steps, 0)
    assert torch.equal(ids(left), ids(right))
    assert set(ids(left).tolist()) == {0, 1}
    for k in (0, 1):  # brightness tells the class
        mine = [v.x[ids(v) == k].mean((1, 2, 3)) for v in (left, right)]
        assert (mine[0].mean() - mine[1].mean()).abs() < 0.1
        assert len(mine[1].unique()) > 1, "the partner is always the same one"
    again = [
        batch(steps, 0)[1],
        batch(Steps(by_class(tmp_path), steps.plans, 16, 0, 0, 1, final=False), 0)[1],
    ]
    assert all(torch.equal(right.x, other.x) for other in again)
    assert not torch.equal(right.x, batch(steps, len(data))[1].x)
    assert left.group_id is None


def test_a_broken_partner_is_told_and_another_taken(tmp_path: Path, said: list[str]) -> None:
    made = by_class(tmp_path)
    for path in sorted((tmp_path / "right" / "0").iterdir())[1:]:
        path.write_bytes(b"no picture")
    data: Any = made.dataset("train")
    some = [data[i] for i in range(len(data)) if data[i].label == 0]
    views = clean(made, some, {"left": CLEAN, "right": CLEAN})
    assert len(views["right"].x.flatten(1).unique(dim=0)) == 1
    assert any("is no partner of others" in line for line in said)
    for path in (tmp_path / "right" / "0").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(Unreadable, match="no right of class 0 can be read"):
        clean(made, some, {"left": CLEAN, "right": CLEAN})


def test_members_without_a_class_in_common_are_refused(tmp_path: Path) -> None:
    made = by_class(tmp_path)
    other = Image.Config(**SMALL[Image.Config])  # the built-in motifs
    both = {**made.cfg.members, "right": other}
    with pytest.raises(ValueError, match=r"no class in common \(left: 0, 1, 2; right: "):
        Paired.Config(members=both, join="label").build().streams()


def test_a_prompt_is_a_third_stream_of_a_join_by_class(tmp_path: Path) -> None:
    made = by_class(tmp_path)
    three = {**made.cfg.members, "text": TEXT}
    names = {"0": "zero", "1": "one"}
    made = Paired.Config(
        members=three, join="label", prompts={"text": ("{}", "number {}")}, names=names
    ).build()
    steps = Steps(made, dict.fromkeys(three, CLEAN), 16, 0, 0, 1, final=False)
    found = {v.stream: v for v in batch(steps, 0)}
    said = written(found["text"], made)
    assert {s.split()[-1] for s in said} == {"zero", "one"}
    assert {s.startswith("number") for s in said} == {True, False}
    assert [names[str(k)] for k in ids(found["left"]).tolist()] == [s.split()[-1] for s in said]


# members that measure


def test_cells_are_a_member_and_measured_on_the_training_rows(tmp_path: Path) -> None:
    data = shard(tmp_path / "a.tar", rows())
    made = pairs(data, members={"tabular": Tabular.Config(), "image": IMAGE})
    spec = made.streams()["tabular"]
    assert spec.channels == ("size", "colour"), "the label is no cell"
    plans: Plans = {"tabular": ViewPlan(num_clean=1, num_global=2), "image": CLEAN}
    expected = batch(Steps(made, plans, 8, 0, 0, 1, final=False), 0)
    state = json.loads(json.dumps(made.state()))
    later = pairs(data, members=made.cfg.members)
    later.restore(state)
    assert later.streams() == made.streams()
    moved = pairs("gone.tar", members=made.cfg.members)  # a run is read where its data is not
    moved.restore(state)
    row = {"size": 0.7, "colour": "one"}
    views = clean(moved, [Sample({"tabular": row}, 0)], {"tabular": CLEAN})["tabular"]
    assert torch.equal(views.x, clean(later, [Sample({"tabular": row}, 0)], {"tabular": CLEAN})["tabular"].x)
    assert expected[0].stream == "tabular"


def test_a_restored_text_member_reads_as_in_training_without_the_data(tmp_path: Path) -> None:
    made = pairs(shard(tmp_path / "a.tar", rows()))
    moved = pairs("gone.tar")
    moved.restore(json.loads(json.dumps(made.state())))
    for asked, data in (({"text": CLEAN}, "sample 3 shows three"), ({"image": CLEAN}, png(40))):
        mine, theirs = (clean(m, [Sample(data, 0)], asked) for m in (made, moved))
        (name,) = asked
        assert torch.equal(mine[name].x, theirs[name].x)
    with pytest.raises(Unreadable, match="want a mapping with image and text, got str"):
        clean(moved, [Sample("sample", 0)])


def test_the_report_shows_samples_side_by_side_and_floors_are_those_that_all_have(tmp_path: Path) -> None:
    made = partly(tmp_path)
    panels = made.panels(batch(Steps(made, PLANS, 8, 5, 0, 1, final=False), 0))
    assert [p.title for p in panels][:2] == ["Pairs", "What the encoder is shown: image"]
    assert panels[0].image.dtype == np.uint8
    assert panels[0].image.std() > 10
    floors = made.floors()
    assert set(floors) == {"raw"}
    for views in clean(made, every(made)[:3]).values():
        assert floors["raw"](views).shape[0] == 3


# what is built in


def test_the_built_in_captions_tell_what_was_drawn() -> None:
    made = Paired.Config().build()
    train, val = made.dataset("train"), every(made, "val")
    assert [len(train), len(val)] == [5000, 1000]  # type: ignore[arg-type]
    first = [train[i].data.parts["text"] for i in range(3)]
    assert first == [
        "medium crosses in light grey on dark turquoise",
        "a picture of fine bricks, light grey before dark grey",
        "dark grey spiral on a light purple ground, coarse",
    ]
    assert isinstance(val[0].data, Record)
    classes = made.dataset("val").classes  # type: ignore[attr-defined]
    assert all(classes[s.label] in s.data.parts["text"] for s in val)
    contents = [s.data.same for s in val]
    assert 800 < len(set(contents)) < 900
    told: dict[int, set[str]] = {}
    for s in val:  # equal contents are equal words, however they are put
        told.setdefault(s.data.same, set()).add(" ".join(sorted(w for w in _words(s.data.parts["text"]))))
    assert all(len(words) == 1 for words in told.values()), [w for w in told.values() if len(w) > 1][:3]


def _words(text: str) -> list[str]:
    filler = {"a", "picture", "of", "in", "on", "ground", "before", "painted", "over"}
    plain = text.replace(",", "").replace(":", "").split()
    return [w for w in plain if w not in filler]


def test_image_text_is_the_name_of_its_first_recipe() -> None:
    assert cli.find("image_text")() == cli.find("image_text/clip")()
    names = [name for name, _ in cli.recipes()]
    assert {"image_text/lit", "audio_video/clip", "image_text_audio/clip"} < set(names)
    assert not any("__" in name for name in names)
