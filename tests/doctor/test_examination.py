"""Planted faults that an examination finds, all of them and no others, in data of every modality."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import wave
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from multissl.cli import main
from multissl.doctor.advice import advise
from multissl.doctor.checks import Finding
from multissl.doctor.examination import Examination, examine
from multissl.doctor.guess import pairs_of, part_of
from multissl.doctor.reading import read_split, splits_of
from multissl.modalities.image import files as image_files
from multissl.options import open_recipe


def examination_of(place: Path, part: str = "", *options: str) -> Examination:
    recipe, _ = open_recipe(part or part_of(str(place)), ["--data", str(place), *options])
    return examine(recipe.modality.build())


def finding(examination: Examination, kind: str) -> Finding:
    (only,) = [each for each in examination.findings if each.kind == kind]
    return only


def kinds(examination: Examination) -> list[str]:
    return [each.kind for each in examination.findings]


def picture(seed: int) -> Pillow.Image:
    rng = np.random.default_rng(seed)
    small = Pillow.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    return small.resize((48, 40), Pillow.Resampling.BICUBIC)


def pictures(root: Path, count: int = 60) -> Path:
    for i in range(count):
        folder = root / ("train" if i < count * 2 // 3 else "test") / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / f"{chr(97 + i % 26)}{chr(97 + i // 26)}x.png")
    return root


def sounds(root: Path, count: int = 40, rate: int = 8000) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        tone(root / f"{chr(97 + i % 26)}{chr(97 + i // 26)}.wav", i, rate)
    return root


def tone(path: Path, seed: int, rate: int) -> None:
    values = np.random.default_rng(seed).normal(0, 3000, rate // 4).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(values.tobytes())


def names_of(found: Finding) -> set[str]:
    return {Path(name).name for name in found.names}


def test_clean_data_has_no_findings(tmp_path: Path) -> None:
    assert kinds(examination_of(pictures(tmp_path / "pictures"))) == []
    assert kinds(examination_of(sounds(tmp_path / "sounds"))) == []


def test_faults_of_pictures_are_found_by_name(tmp_path: Path) -> None:
    root = pictures(tmp_path / "all")
    train, test = root / "train" / "class0", root / "test" / "class0"
    first, second, third, *_ = sorted(train.iterdir())
    shutil.copy(first, train / "copy.png")
    picture_of = Pillow.open(second)
    picture_of.resize((96, 80)).save(train / "near.jpg", quality=60)
    third.write_bytes(third.read_bytes()[:60])
    for i, each in enumerate(sorted((root / "train" / "class1").iterdir())[:3]):
        shutil.copy(each, test / f"leak{'abc'[i]}.png")
    result = examination_of(root)
    assert names_of(finding(result, "unreadable")) == {third.name}
    leaks = {f"leak{x}.png" for x in "abc"}
    origins = {p.name for p in sorted((root / "train" / "class1").iterdir())[:3]}
    assert names_of(finding(result, "equal")) == {first.name, "copy.png"} | leaks | origins
    assert names_of(finding(result, "near-equal")) == {second.name, "near.jpg"}
    assert names_of(finding(result, "leaked")) == leaks
    odd = [each for each in result.findings if each.kind == "odd"]
    assert [names_of(each) for each in odd] == [{"near.jpg"}] * 2, "its width and its height"


def test_a_near_copy_of_a_training_picture_in_another_split_is_a_leak(tmp_path: Path) -> None:
    root = pictures(tmp_path / "all")
    source = sorted((root / "train" / "class0").iterdir())[0]
    Pillow.open(source).save(root / "test" / "class1" / "again.jpg", quality=70)
    leak = finding(examination_of(root), "leaked")
    assert names_of(leak) == {"again.jpg"}
    assert "like training images" in leak.text


def test_odd_rates_and_damaged_sounds_are_found(tmp_path: Path) -> None:
    root = sounds(tmp_path / "sounds")
    for i, rate in enumerate((16000, 11025, 16000)):
        tone(root / f"odd{'abc'[i]}.wav", 100 + i, rate)
    (root / "bad.wav").write_bytes(b"RIFF\x00\x00\x00\x00WAVEjunk")
    result = examination_of(root)
    assert names_of(finding(result, "odd")) == {"odda.wav", "oddb.wav", "oddc.wav"}
    assert "16,000 (2), 11,025 (1)" in finding(result, "odd").text
    assert names_of(finding(result, "unreadable")) == {"bad.wav"}
    assert set(kinds(result)) == {"odd", "unreadable"}


def test_copies_of_sounds_are_found_and_unreadable_ones_are_none(tmp_path: Path) -> None:
    sounds(tmp_path / "train", 30)
    sounds(tmp_path / "test", 3)
    for i, name in enumerate(("xa", "xb", "xc")):
        tone(tmp_path / "test" / f"{'abc'[i]}a.wav", 100 + i, 8000)
        shutil.copy(tmp_path / "train" / f"{'pqr'[i]}a.wav", tmp_path / "test" / f"{name}.wav")
        (tmp_path / "train" / f"bad{name}.wav").write_bytes(b"no sound")
    result = examination_of(tmp_path)
    leaks = {"xa.wav", "xb.wav", "xc.wav"}
    assert names_of(finding(result, "leaked")) == leaks
    assert names_of(finding(result, "equal")) == leaks | {"pa.wav", "qa.wav", "ra.wav"}
    assert finding(result, "unreadable").text.startswith("3 of 39 recordings cannot be read: ")
    assert "it: Format not recognised (3)" in finding(result, "unreadable").text, "one reason, counted"


def test_missing_words_of_tables_and_documents_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = tmp_path / "rows.csv"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "kind"])
        for i in range(200):
            writer.writerow([f"{rng.normal():.4f}", "n/a" if i % 19 == 0 else f"{i}.5", "xyz"[i % 3]])
    result = examination_of(table)
    assert finding(result, "missing").names == ["b"]
    assert "b 5" in finding(result, "missing").text, "one in 19"
    documents = tmp_path / "notes.jsonl"
    lines = [{"text": f"a document about the number {i} and a few words more than that"} for i in range(60)]
    lines += [{"text": "nan"}, {"text": None}, lines[3]]
    documents.write_text("\n".join(map(json.dumps, lines)))
    result = examination_of(documents)
    assert finding(result, "unreadable").text.startswith("2 of 63 documents")
    assert finding(result, "equal").text.startswith("2 of 61 documents")
    assert set(kinds(result)) == {"unreadable", "equal"}


def test_damaged_videos_and_odd_clocks_are_found(tmp_path: Path) -> None:
    for i in range(12):
        frames = np.random.default_rng(i).integers(0, 255, (6, 24, 32, 3), dtype=np.uint8)
        np.save(tmp_path / f"clip_{chr(97 + i)}.npy", frames)
    np.save(tmp_path / "tall.npy", np.zeros((6, 48, 32, 3), dtype=np.uint8))
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY\x01\x00")
    result = examination_of(tmp_path, "video")
    assert names_of(finding(result, "unreadable")) == {"bad.npy"}
    assert names_of(finding(result, "odd")) == {"tall.npy"}


def test_videos_that_were_encoded_again_are_found(tmp_path: Path) -> None:
    for i in range(12):
        frames = np.stack([np.array(picture(100 * i + t)) for t in range(6)])
        np.save(tmp_path / f"clip_{chr(97 + i)}.npy", frames)
    frames = np.load(tmp_path / "clip_e.npy")
    np.save(tmp_path / "again.npy", (frames.astype(float) * 0.99).astype(np.uint8))
    result = examination_of(tmp_path, "video")
    assert kinds(result) in (["near-equal"], ["near-equal", "leaked"])
    assert names_of(finding(result, "near-equal")) == {"again.npy", "clip_e.npy"}


def test_uneven_and_unseen_classes_are_said(tmp_path: Path) -> None:
    root = pictures(tmp_path / "all")
    shutil.rmtree(root / "train" / "class1")
    (root / "train" / "class1").mkdir()
    picture(500).save(root / "train" / "class1" / "rare.png")
    (root / "test" / "class9").mkdir()
    picture(510).save(root / "test" / "class9" / "new.png")
    texts = {each.text for each in examination_of(root).findings if each.kind == "classes"}
    assert any(
        re.fullmatch(r"classes are uneven: 1\d training samples of class0, 1 of class1", t) for t in texts
    )
    assert "1 classes of test have no training sample: class9" in texts


def test_names_that_count_within_series_are_pointed_at(tmp_path: Path) -> None:
    for i in range(48):
        folder = tmp_path / f"class{i % 2}"
        folder.mkdir(exist_ok=True)
        picture(i).save(folder / f"patient{chr(97 + i // 8)}_{i:03}.png")
    text = finding(examination_of(tmp_path), "series").text
    assert "6 series of about 8 images" in text
    assert text.endswith("in a table of the files with a column group")


def test_what_names_tell_is_asked_for_by_the_option_of_the_modality(tmp_path: Path) -> None:
    for i in range(20):
        tone(tmp_path / f"speaker{chr(97 + i // 4)}_{i}.wav", i, 8000)
    result = examination_of(tmp_path)
    assert finding(result, "series").text.endswith("by --modality.group_pattern")
    assert dict(result.facts())["classes"].endswith("--modality.label_pattern finds them in names")
    pattern = ("--modality.group_pattern", r"(speaker.)_\d+", "--modality.label_pattern", r"speaker(.)_")
    named = examination_of(tmp_path, "audio", *pattern)
    assert "series" not in kinds(named)
    assert dict(named.facts())["classes"].startswith("4: ")


def test_masks_beside_pictures_are_counted(tmp_path: Path) -> None:
    for i in range(12):
        for folder, image in (("images", picture(i)), ("masks", picture(i).convert("L"))):
            (tmp_path / folder).mkdir(exist_ok=True)
            image.save(tmp_path / folder / f"{chr(97 + i)}x.png")
    assert ("masks", "12 images have one: --evals.add patch_knn") in examination_of(tmp_path).facts()
    assert "masks" not in dict(examination_of(pictures(tmp_path / "without")).facts())


def test_drawn_data_has_nothing_to_find() -> None:
    for part in ("image", "tabular"):
        recipe, _ = open_recipe(part, [])
        assert [f.kind for f in examine(recipe.modality.build(), 20).findings if f.kind != "missing"] == [], (
            part
        )


def test_the_command_leaves_a_page_a_list_and_a_command_that_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = pictures(tmp_path / "mine")
    shutil.copy(sorted((root / "train" / "class0").iterdir())[0], root / "train" / "class0" / "<b>.png")
    assert main(["data", str(root), "--limit", "0"]) == 0
    out = capsys.readouterr().out
    page = (tmp_path / "data-mine.html").read_text()
    assert "<b>.png" not in page
    assert "&lt;b&gt;.png" in page
    assert page.count("<img") == 12
    listed = (tmp_path / "data-mine.csv").read_text().splitlines()
    assert len(listed) == 3
    (advice,) = [line.removeprefix("next: ") for line in out.splitlines() if line.startswith("next: ")]
    command = advice.split()
    recipe, _ = open_recipe(command[2], command[3:])
    assert recipe.modality.build().dataset("train")


def test_a_picture_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, read = pictures(tmp_path / "all", 24), Counter[str]()
    decode = image_files.decode

    def counted(data: bytes, *rest: Any) -> Any:
        read[hashlib.sha256(data).hexdigest()] += 1
        return decode(data, *rest)

    modality = open_recipe("image", ["--data", str(root)])[0].modality.build().fit()
    splits = splits_of(modality)
    monkeypatch.setattr(image_files, "decode", counted)
    readings = [read_split(modality, split, samples, 0) for split, samples in splits.items()]
    assert [len(r.thumbnails) for r in readings] == [len(r.extents) for r in readings] == [15, 1, 8]
    assert {*read.values()} == {1}
    assert len(read) == 24


def test_faults_of_pairs_are_found(tmp_path: Path) -> None:
    rows = [[f"{i}.png", f"a caption that says {i} and more"] for i in range(40)]
    for i in range(40):
        picture(i).save(tmp_path / f"{i}.png")
    clean = examination_of(written(tmp_path / "clean.csv", rows), "image_text")
    assert kinds(clean) == []
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:50])
    shutil.copy(tmp_path / "3.png", tmp_path / "copy.png")
    Pillow.open(tmp_path / "5.png").resize((96, 80)).save(tmp_path / "near.jpg", quality=60)
    rows += [["copy.png", "the copy"], ["near.jpg", "the near one"], ["gone.png", "the lost one"]]
    rows[11][1], rows[12][1] = "nan", ""
    result = examination_of(written(tmp_path / "faults.csv", rows), "image_text")
    assert said_by(finding(result, "unreadable")) == {"a caption that says 7 and more", "the lost one"}
    assert said_by(finding(result, "equal")) == {"a caption that says 3 and more", "the copy"}
    assert said_by(finding(result, "near-equal")) == {"a caption that says 5 and more", "the near one"}
    assert finding(result, "missing").text == "2 of 43 pairs lack text"
    odd = [said_by(each) for each in result.findings if each.kind == "odd"]
    assert odd == [{"the near one"}] * 2, "its width and its height"
    assert {*kinds(result)} <= {"unreadable", "equal", "near-equal", "missing", "leaked", "odd"}


def written(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], *rows])
    return path


def said_by(found: Finding) -> set[str]:
    """The captions in brackets behind the places of samples."""
    return {name.partition("(")[2].rstrip(")") for name in found.names}


def episodes(path: Path, fault: str = "") -> Path:
    """Sixty episodes of eight pictures; planted: two that equal another one, or a number that is none."""
    rng = np.random.default_rng(0)
    numbers = fault == "nan"
    frames = rng.normal(size=(480, 4)) if numbers else rng.integers(0, 255, (480, 16, 16), dtype=np.uint8)
    actions = rng.integers(0, 3, 480)
    if numbers:
        frames[17, 2] = np.nan
    for copy in (40, 72) if fault == "equal" else ():
        frames[copy : copy + 8], actions[copy : copy + 8] = frames[16:24], actions[16:24]
    np.savez(path, observations=frames, actions=actions, terminals=np.arange(480) % 8 == 7)
    return path


def test_faults_of_episodes_are_found(tmp_path: Path) -> None:
    clean = examination_of(episodes(tmp_path / "clean.npz"), "rl")
    assert kinds(clean) == []
    assert clean.facts()[0] == ("train", "48 episodes, 384 samples")
    result = examination_of(episodes(tmp_path / "equal.npz", "equal"), "rl")
    assert kinds(result) == ["equal"], "copies are in one split, so that none leaks"
    assert finding(result, "equal").text == "3 of 60 episodes have an equal one: 1 sets, 2 to leave out"
    assert all(re.fullmatch(r"train \d+ of 48 episodes", name) for name in finding(result, "equal").names)
    with pytest.raises(ValueError, match="state2 is nan at step 1 of episode 2"):
        examination_of(episodes(tmp_path / "nan.npz", "nan"), "rl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no files, which no modality reads"),
        (
            {"a.xyz": b"1", "b.xyz": b"2"},
            r"holds \.xyz \(2\), which no modality reads: say which is meant, as --as image",
        ),
        ({"a.parquet": b"1"}, "holds 1 tables or shards and no plain files: name one"),
    ],
)
def test_places_that_tell_no_modality_are_refused(
    tmp_path: Path, content: dict[str, bytes], message: str
) -> None:
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        part_of(str(tmp_path))


def test_bad_words_of_the_command_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, message in {
        ("data",): "data wants a name first",
        ("data", str(tmp_path / "none")): "no such file or folder",
        ("data", str(tmp_path), "--as", "imag"): "did you mean image",
        ("data", str(tmp_path), "--limit", "-1"): "want 0 for all samples",
    }.items():
        assert main([*words]) == 2
        assert message in capsys.readouterr().err


def test_texts_beside_pictures_of_a_table_are_pointed_at(tmp_path: Path) -> None:
    for name, column in (("with", "caption"), ("without", "width")):
        (tmp_path / f"{name}.csv").write_text(f"image,{column}\na.png,1 cat\nb.png,2 dogs\n")
    assert pairs_of(str(tmp_path / "with.csv"), "image") == "image_text"
    assert pairs_of(str(tmp_path / "without.csv"), "image") == pairs_of(str(tmp_path), "image") == ""
    said = advise("image", "with.csv", examination_of(pictures(tmp_path / "all")), pairs="image_text")
    assert "or:   multissl data with.csv --as image_text" in said


def test_tables_are_of_what_their_columns_hold(tmp_path: Path) -> None:
    names = {"image": "file_name,label\na.png,x\nb.png,y\n", "tabular": "width,name\n1,b\n2,c\n"}
    names["text"] = "text,label\n" + "a sentence that is long enough to be read as one,x\n" * 3
    names["audio"] = "audio_filepath,label\na.wav,x\n"
    for part, content in names.items():
        (tmp_path / f"{part}.csv").write_text(content)
        assert part_of(str(tmp_path / f"{part}.csv")) == part
