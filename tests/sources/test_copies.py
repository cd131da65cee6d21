"""Copies: equal samples are in one split where it is drawn, and counted where it is given."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import multissl
from multissl.configs import tabular
from multissl.contract.modality import Modality
from multissl.modalities.audio.adapter import Audio
from multissl.modalities.image.adapter import Image
from multissl.modalities.image.files import parts_of
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.rl.adapter import RL
from multissl.modalities.tabular import views as draws
from multissl.modalities.tabular.adapter import Tabular
from multissl.modalities.text.adapter import Text
from multissl.recipe import Recipe
from multissl.run.copies import describe_copies
from multissl.run.evaluate import evaluate
from multissl.sources.base import Listing
from multissl.sources.copies import (
    HEAD,
    NEAR,
    Copies,
    equal_contents,
    equal_rows,
    near_duplicates,
    split_together,
)
from multissl.sources.splits import split_rows

COUNT = 100
TWICE = {9: 0, 19: 1, 29: 2, 39: 3, 20: 4, 30: 5}
"""Rows that are copies of others: every tenth row validates, of text and files those that end in 9, of tables in 0."""


def number(row: int) -> int:
    return TWICE.get(row, row)


def picture(seed: int, size: int = 24) -> Pillow.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Pillow.fromarray(pixels).resize((size, size), Pillow.Resampling.BICUBIC)


def encoded(image: Pillow.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def wave(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(1600) * 3000).astype(np.int16)


def a_table(folder: Path) -> Modality:
    lines = ["a,b,target", *(f"{number(i)},{number(i) % 7},{i % 2}" for i in range(COUNT))]
    (folder / "rows.csv").write_text("\n".join(lines))
    return Tabular.Config(data=str(folder / "rows.csv")).build()


def recipe_of(folder: Path) -> Recipe:
    recipe = tabular.default()
    recipe.modality = Tabular.Config(data=str(folder / "rows.csv"))
    recipe.steps, recipe.batch_size, recipe.data.workers = 2, 16, 0
    return recipe


def lines_of_text(folder: Path) -> Modality:
    (folder / "lines.txt").write_text("\n".join(f"line number {number(i)} of a text" for i in range(COUNT)))
    return Text.Config(data=str(folder / "lines.txt"), vocab=300).build()


def files_of_text(folder: Path) -> Modality:
    for i in range(COUNT):
        (folder / f"{i:03}.txt").write_text(f"file number {number(i):03} of a folder")
    return Text.Config(data=str(folder), vocab=300).build()


def a_folder_of_pictures(folder: Path) -> Modality:
    for i in range(COUNT):
        (folder / f"{i:03}.bmp").write_bytes(encoded(picture(number(i)), "BMP"))  # all of one size
    return Image.Config(data=str(folder)).build()


def pictures_in_a_table(folder: Path) -> Modality:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    table = arrow.table({"image": [encoded(picture(number(i))) for i in range(COUNT)]})
    parquet.write_table(table, folder / "all.parquet", row_group_size=30)
    return Image.Config(data=str(folder / "all.parquet")).build()


def sounds(folder: Path) -> Modality:
    soundfile = pytest.importorskip("soundfile")
    for i in range(COUNT):
        soundfile.write(folder / f"{i:03}.wav", wave(number(i)), 16000)
    return Audio.Config(data=str(folder)).build()


def pairs(folder: Path) -> Modality:
    lines = []
    for i in range(COUNT):
        (folder / f"{i:03}.png").write_bytes(encoded(picture(number(i))))
        lines.append(json.dumps({"image": f"{i:03}.png", "text": f"caption number {i}"}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return Paired.Config(data=(str(folder / "pairs.jsonl"),)).build()


def episodes(folder: Path) -> Modality:
    draws = [np.random.default_rng(number(i)) for i in range(COUNT)]
    frames = np.concatenate([draw.integers(0, 256, (4, 8, 8), np.uint8) for draw in draws])
    ends = np.arange(4, 4 * COUNT + 1, 4)
    actions = np.zeros(4 * COUNT, np.int64)
    np.savez(folder / "replay.npz", frames=frames, actions=actions, episode_ends=ends)
    return RL.Config(data=str(folder / "replay.npz"), size=8, local_size=8, patch=4).build()


KINDS: list[Callable[[Path], Modality]] = [
    a_table,
    lines_of_text,
    files_of_text,
    a_folder_of_pictures,
    pictures_in_a_table,
    sounds,
    pairs,
    episodes,
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_copies_are_in_one_split_where_it_is_drawn(kind: Callable[[Path], Modality], tmp_path: Path) -> None:
    modality = kind(tmp_path).fit()
    line = describe_copies(modality)
    assert (
        f"0 of {len(modality.contents('val')[0])} validation {modality.plural} are copies of training" in line
    )
    known = len(modality.contents("val")[0]) + len(modality.contents("train")[0])
    assert f"of all {known} have a copy" in line
    assert 8 <= len(modality.contents("val")[0]) <= 16


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_without_that_they_would_be_in_two(
    kind: Callable[[Path], Modality], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("sources.splits", "modalities.tabular.views", "modalities.rl.replay"):
        monkeypatch.setattr(f"multissl.{module}.split_together", lambda split, keys, copies: split(keys))
    line = describe_copies(kind(tmp_path).fit())
    assert int(line.split()[0]) >= 2


def test_a_split_without_copies_is_every_tenth_sample() -> None:
    listing = Listing([f"text {i}" for i in range(50)], [None] * 50, [""] * 50)
    assert split_rows(listing, "val").tolist() == [9, 19, 29, 39, 49]


def test_only_copies_move_and_nothing_new_is_held_out() -> None:
    texts = [f"text {number(i)}" for i in range(COUNT)]
    held_out = split_rows(Listing(texts, [None] * COUNT, [""] * COUNT), "val").tolist()
    alone = [i for i in range(9, COUNT, 10) if i not in TWICE]
    assert set(alone) <= set(held_out)
    assert {texts[i] for i in held_out} <= {texts[i] for i in range(9, COUNT, 10)}


@pytest.mark.parametrize("times", [2, 3, 5, 10])
def test_data_in_which_every_sample_comes_several_times_in_a_row_is_held_out_evenly(times: int) -> None:
    texts = [f"text {i // times}" for i in range(600)]
    held_out = split_rows(Listing(texts, [None] * 600, [""] * 600), "val")
    train = split_rows(Listing(texts, [None] * 600, [""] * 600), "train")
    assert 30 <= len(held_out) <= 90
    assert not {texts[i] for i in held_out} & {texts[i] for i in train}


def test_few_samples_that_come_often_leave_some_for_validation() -> None:
    texts = [f"text {i % 12}" for i in range(600)]
    held_out = split_rows(Listing(texts, [None] * 600, [""] * 600), "val")
    train = split_rows(Listing(texts, [None] * 600, [""] * 600), "train")
    assert 0 < len(held_out) <= 120
    assert not {texts[i] for i in held_out} & {texts[i] for i in train}


def test_copies_and_groups_hang_together() -> None:
    texts = [f"text {i}" for i in range(40)]
    texts[39] = texts[0]  # of the first and the last of 20 groups
    groups = [i // 2 for i in range(40)]
    held_out = split_rows(Listing(texts, [None] * 40, [""] * 40, groups), "val").tolist()
    assert {0, 1, 38, 39} <= set(held_out) or not {0, 1, 38, 39} & set(held_out)


def test_copies_that_tie_all_groups_together_stay_where_they_are() -> None:
    texts = ["silence" if i % 4 == 0 else f"text {i}" for i in range(40)]
    groups = [i // 4 for i in range(40)]
    listing = Listing(texts, [None] * 40, [""] * 40, groups)
    assert split_rows(listing, "val").tolist() == [36, 37, 38, 39]


def test_the_order_of_samples_does_not_decide_what_is_equal() -> None:
    values = [f"text {number(i)}" for i in range(COUNT)]
    order = np.random.default_rng(0).permutation(COUNT)
    straight, mixed = equal_contents(values), equal_contents([values[i] for i in order])
    together = straight.sets[:, None] == straight.sets
    assert ((mixed.sets[:, None] == mixed.sets) == together[order][:, order]).all()


def test_a_given_split_is_left_alone_and_counted(tmp_path: Path) -> None:
    for split, seeds in (("train", range(30)), ("val", range(27, 33))):
        (tmp_path / split).mkdir()
        for i in seeds:
            (tmp_path / split / f"{i}.png").write_bytes(encoded(picture(i)))
    modality = Image.Config(data=str(tmp_path)).build()
    assert (len(modality.dataset("train")), len(modality.dataset("val"))) == (30, 6)
    line = describe_copies(modality)
    assert line.startswith("3 of 6 validation images are copies of training images; 6 of all 36 have a copy")
    assert "0 of 6 validation images are near-duplicates of one of 30 training images" in line


def test_pictures_encoded_again_or_resized_are_near_duplicates_and_others_are_not(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    for i in range(40):
        (tmp_path / "train" / f"{i}.png").write_bytes(encoded(picture(i, 64)))
    for i in range(36, 44):
        image = picture(i, 64)
        changed = image if i % 2 else image.resize((48, 40))
        (tmp_path / "val" / f"{i}.jpg").write_bytes(encoded(changed, "JPEG", quality=70))
    line = describe_copies(Image.Config(data=str(tmp_path)).build())
    assert line == (
        "no copies among 48 images; 4 of 8 validation images are near-duplicates of one of 40 training images"
    )


def thumbnails(images: Sequence[Pillow.Image]) -> np.ndarray:
    return np.stack([parts_of(torch.from_numpy(np.array(image)).permute(2, 0, 1)) for image in images])


def film(count: int = 30) -> list[Pillow.Image]:
    """What a camera sees that moves by two pixels from frame to frame: neighbors differ little."""
    pixels = np.random.default_rng(3).integers(0, 256, (12, 40, 3), np.uint8)
    scene = Pillow.fromarray(pixels).resize((640, 192), Pillow.Resampling.BICUBIC)
    return [scene.crop((2 * i, 0, 2 * i + 256, 192)) for i in range(count)]


def test_frames_of_a_camera_are_no_near_duplicates_and_a_copy_of_one_is() -> None:
    frames = film()
    pictures = thumbnails(frames)
    apart = np.sqrt(np.square(np.diff(pictures, axis=0)).mean((1, 2, 3)))
    assert (apart < NEAR * pictures.std((1, 2, 3))[1:]).all(), "they look alike"
    assert near_duplicates(pictures) == []
    again = frames[11].resize((171, 128))
    assert near_duplicates(thumbnails([*frames, again])) == [(11, 30)]


def test_up_to_four_versions_of_a_picture_are_near_duplicates_of_each_other() -> None:
    versions = [picture(0, size) for size in (40, 64, 96, 150)]
    others = [picture(seed, 64) for seed in range(1, 20)]
    pairs = near_duplicates(thumbnails([*others, *versions]))
    assert pairs == [(i, j) for i in range(19, 23) for j in range(i + 1, 23)]


def test_pictures_of_one_color_are_no_near_duplicates(tmp_path: Path) -> None:
    for split, level in (("train", 100), ("val", 101)):
        (tmp_path / split).mkdir()
        image = Pillow.new("RGB", (32, 32), (level, level, level))
        (tmp_path / split / "0.png").write_bytes(encoded(image))
    assert "0 of 1 validation images are near" in describe_copies(Image.Config(data=str(tmp_path)).build())


def test_only_files_of_equal_size_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(20):
        (tmp_path / str(i)).write_bytes(b"x" * (i + 1))
    (tmp_path / "copy").write_bytes(b"x" * 7)
    opened: list[str] = []

    def noted(files: list[tuple[str, int, int]], length: int | None) -> bytes:
        opened.extend(path for path, _, _ in files)
        return Path(files[0][0]).read_bytes()

    monkeypatch.setattr("multissl.sources.copies._digest", noted)
    found = equal_contents([str(tmp_path / name) for name in [*map(str, range(20)), "copy"]])
    assert found.sets.tolist() == [*range(20), 6]
    assert sorted(opened) == [str(tmp_path / "6"), str(tmp_path / "copy")]


def test_files_that_differ_behind_their_heads_are_different(tmp_path: Path) -> None:
    for name, last in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).write_bytes(b"x" * HEAD + last)
    assert equal_contents([str(tmp_path / name) for name in "abc"]).sets.tolist() == [0, 1, 0]


def test_beyond_the_bound_nothing_is_read_and_that_is_known(tmp_path: Path) -> None:
    for i in range(10):
        (tmp_path / str(i)).write_bytes(b"same")
    found = equal_contents([str(tmp_path / str(i)) for i in range(10)], limit=8 * HEAD)
    assert found.compared.tolist() == [True] * 4 + [False] * 6
    assert found.sets.tolist() == [0, 0, 0, 0, *range(4, 10)]
    values = equal_contents([b"same" * 100] * 10, limit=1000)
    assert 0 < values.compared.sum() < 10


def test_the_bound_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modality = a_folder_of_pictures(tmp_path)
    monkeypatch.setattr("multissl.run.copies.equal_rows", lambda c: equal_rows(c, limit=20 * HEAD))
    assert "of 100 could be compared; up to 256 MiB are read)" in describe_copies(modality)


def test_broken_samples_equal_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").write_bytes(b"")
    found = equal_contents([str(tmp_path / "a"), str(tmp_path / "b"), None, None])
    assert found.sets.tolist() == [0, 1, 2, 3]
    assert not found.compared.any()


def test_arrays_tensors_and_rows_are_compared_by_value() -> None:
    ones = np.ones(3, np.float32)
    values = [
        ones,
        torch.ones(3),
        np.ones(3),
        {"a": 1, "b": "x"},
        {"b": "x", "a": 1},
        ["ab", "c"],
        ["a", "bc"],
    ]
    assert equal_contents(values).sets.tolist() == [0, 0, 2, 3, 3, 5, 6]


def test_rows_are_copies_by_any_of_several_columns() -> None:
    copies = Copies(["a", "b", "c", "d"], ["x", "y", "y", "z"])
    assert copies.among(np.arange(4)).sets.tolist() == [0, 1, 1, 3]


def test_a_constructor_reads_nothing() -> None:
    class Forbidden(list[str]):
        def __getitem__(self, place: Any) -> Any:
            raise AssertionError("read")

    Copies(Forbidden(["a", "b"]))
    Listing(Forbidden(["a", "b"]), [None, None], ["", ""], None, Copies(Forbidden(["a", "b"])))


def test_samples_without_copies_keep_the_split_that_they_have() -> None:
    keys = list(range(30))
    split = np.array([key % 10 == 0 for key in keys])
    assert split_together(lambda keys: split, keys, np.arange(30)) is split


def test_a_run_whose_split_did_not_keep_copies_together_is_evaluated(tmp_path: Path) -> None:
    a_table(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{draws.__name__}.split_together", lambda split, keys, copies: split(keys))
        multissl.train(recipe_of(tmp_path), tmp_path / "run")
    metrics = evaluate(tmp_path / "run")
    assert 0 <= metrics["knn/top1"] <= 100


def test_the_start_line_the_record_and_the_page_say_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_table(tmp_path)
    multissl.train(recipe_of(tmp_path), tmp_path / "run")
    said = capsys.readouterr().err
    line = next(x for x in said.splitlines() if "validation rows are copies" in x)
    assert line.startswith("0 of ")
    record = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    notes = [x for x in map(json.loads, record) if x["kind"] == "note"]
    assert {"kind": "note", "step": 0, "text": line} in notes
    assert line in (tmp_path / "run/report.html").read_text()
