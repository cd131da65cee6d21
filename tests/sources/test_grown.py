"""Data that has grown or changed is seen in the same process, and what has not changed is listed once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multissl import registry
from multissl.modalities.image.adapter import Image
from multissl.modalities.image.files import SUFFIXES
from multissl.modalities.paired.files import read_pairs
from multissl.modalities.paired.parts import Options, Wanted
from multissl.modalities.tabular.tables import read_table
from multissl.modalities.text.files import read_texts
from multissl.modalities.video.files import open_videos
from multissl.sources import opening
from multissl.sources.base import Request, Source
from multissl.sources.opening import find_source, list_source, open_source
from tests.sources.test_opening import encoded, parquet, put, tar


def grow_folder(root: Path, count: int) -> str:
    for i in range(count):
        put(root / "ab"[i % 2] / f"{i}.png")
    return str(root)


def grow_list(root: Path, count: int) -> str:
    return str(put(root / "list.txt", "".join(f"{i}.png\n" for i in range(count)).encode()))


def grow_table(root: Path, count: int) -> str:
    return str(
        put(root / "t.csv", ("path,label\n" + "".join(f"{i}.png,{i}\n" for i in range(count))).encode())
    )


def grow_tar(root: Path, count: int) -> str:
    return str(tar(root / "a.tar", {f"{i}.png": encoded() for i in range(count)}))


def grow_parquet(root: Path, count: int) -> str:
    return str(parquet(root / "a.parquet", count))


def grow_test_shard(root: Path, count: int) -> str:
    tar(root / "test.tar", {f"{i}.png": encoded() for i in range(count - 1)})
    return str(tar(root / "train.tar", {"one.png": encoded()}))


def grow_pattern(root: Path, count: int) -> str:
    for i in range(count):
        tar(root / f"s{i}.tar", {f"{i}.png": encoded()})
    return str(root / "s*.tar")


def grow_folder_of_shards(root: Path, count: int) -> str:
    tar(root / "a.tar", {f"{i}.png": encoded() for i in range(count)})
    return str(root)


def grow_torchvision_folder(root: Path, count: int) -> str:
    pytest.importorskip("torchvision")
    return f"torchvision:ImageFolder?root={grow_folder(root, count)}"


def grow_hugging_face(root: Path, count: int) -> str:
    datasets = pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    rows = datasets.Dataset.from_dict({"image": [f"{i}.png" for i in range(count)]})
    shutil.rmtree(root / "d", ignore_errors=True)
    rows.save_to_disk(root / "d")
    return f"hf:{root / 'd'}"


KINDS: dict[str, tuple[str, Callable[[Path, int], str]]] = {
    "a folder": ("folder", grow_folder),
    "a folder of shards": ("folder", grow_folder_of_shards),
    "a list": ("table", grow_list),
    "a table": ("table", grow_table),
    "a tar shard": ("tar", grow_tar),
    "a parquet shard": ("parquet", grow_parquet),
    "the test shard beside a train shard": ("tar", grow_test_shard),
    "a pattern": ("shards", grow_pattern),
    "a folder of torchvision's": ("torchvision", grow_torchvision_folder),
    "a dataset on disk": ("hugging_face", grow_hugging_face),
}


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What was listed anew, by any of our sources."""
    made: list[Request] = []
    for name in registry.names("sources"):
        cls: type[Source] = registry.resolve(name, "sources")

        def counted(self: Source, request: Request, original: Any = cls.list_samples) -> Any:
            made.append(request)
            return original(self, request)

        monkeypatch.setattr(cls, "list_samples", counted)
    return made


def test_every_source_of_ours_is_tried_here() -> None:
    assert {name for name, _ in KINDS.values()} == set(registry.GROUPS["sources"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_has_grown_is_listed_anew_and_one_that_has_not_is_kept(
    kind: str, tmp_path: Path, listings: list[Request]
) -> None:
    name, grow = KINDS[kind]
    path = grow(tmp_path, 12)
    request = Request(path, SUFFIXES, "image")
    assert type(find_source(request)) is registry.resolve(name, "sources")
    assert len(list_source(request).tags) == 12
    for split in ("train", "val") if "beside" not in kind else ("train", "test"):
        open_source(path, split, SUFFIXES)
    assert len(listings) == 1
    assert grow(tmp_path, 20) == path
    assert len(list_source(request).tags) == 20
    assert list_source(request) is list_source(request)
    assert len(listings) == 2


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "torchvision" not in kind])
def test_a_file_of_the_same_size_with_another_time_is_listed_anew(
    kind: str, tmp_path: Path, listings: list[Request]
) -> None:
    request = Request(KINDS[kind][1](tmp_path, 12), SUFFIXES, "image")
    list_source(request)
    for file in tmp_path.rglob("*"):
        stat = file.stat()
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    list_source(request)
    # of a folder of pictures only the names are listed, which are the same
    assert len(listings) == (1 if kind == "a folder" else 2)


def test_a_file_that_was_renamed_or_removed_is_seen(tmp_path: Path) -> None:
    grow_folder(tmp_path, 12)
    names = {sample.data for sample in open_source(str(tmp_path), "all", SUFFIXES)}
    (tmp_path / "a" / "0.png").rename(tmp_path / "a" / "00.png")
    renamed = {sample.data for sample in open_source(str(tmp_path), "all", SUFFIXES)}
    assert renamed ^ names == {str(tmp_path / "a" / "0.png"), str(tmp_path / "a" / "00.png")}
    (tmp_path / "a" / "00.png").unlink()
    assert len(open_source(str(tmp_path), "all", SUFFIXES)) == 11


def test_a_torchvision_dataset_is_built_anew_when_its_root_folder_has_changed(
    tmp_path: Path, listings: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    class Letters(datasets.FakeData):
        def __init__(self, root: str) -> None:
            super().__init__(size=len(os.listdir(root)))

    monkeypatch.setattr(datasets, "FakeData", Letters)
    for count in (1, 1, 2, 2, 3):
        put(tmp_path / f"part{count}", b"0") if count > len(os.listdir(tmp_path)) else None
        request = Request(f"torchvision:FakeData?root={tmp_path}", SUFFIXES, "image")
        assert len(list_source(request).tags) == count
    assert len(listings) == 3


def test_only_the_listings_used_last_are_kept(
    tmp_path: Path, listings: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "KEPT", 2)
    requests = [Request(grow_list(tmp_path / name, 12), SUFFIXES, "image") for name in "abc"]
    for turn, number in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):
        list_source(requests[turn])
        assert len(listings) == number


# what a user sees: a new modality object in the same process


def test_a_new_image_modality_sees_new_pictures(tmp_path: Path) -> None:
    config = Image.Config(data=str(tmp_path), size=32, local_size=16, patch=4)
    for count in (12, 20):
        grow_folder(tmp_path, count)
        assert len(config.build().dataset("all")) == count


def test_new_videos_and_new_folders_of_frames_are_seen(tmp_path: Path) -> None:
    for count in (12, 20):
        for i in range(count):
            put(tmp_path / "files" / f"{i}.mp4", b"0")
            put(tmp_path / "frames" / str(i) / "0.png", b"0")
        assert len(open_videos(str(tmp_path / "files"), "all")) == count
        assert len(open_videos(str(tmp_path / "frames"), "all")) == count


@pytest.mark.parametrize("form", ["lines.txt", "rows.jsonl", "rows.csv", "folder"])
def test_new_documents_are_seen(form: str, tmp_path: Path) -> None:
    for count in (12, 20):
        texts = [f"document {i}" for i in range(count)]
        if form == "folder":
            for i, text in enumerate(texts):
                put(tmp_path / form / f"{i}.txt", text.encode())
        elif form == "rows.jsonl":
            put(tmp_path / form, "\n".join(json.dumps({"text": text}) for text in texts).encode())
        else:
            put(tmp_path / form, "\n".join([*(["text"] if form == "rows.csv" else []), *texts]).encode())
        assert len(read_texts(str(tmp_path / form), "all").texts) == count


def test_a_document_that_was_rewritten_is_read_anew(tmp_path: Path) -> None:
    for word in ("first", "other"):
        put(tmp_path / "a.txt", word.encode())
        put(tmp_path / "b.txt", b"same")
        assert read_texts(str(tmp_path), "all").texts == [word, "same"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_new_rows_of_a_table_are_seen(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t{suffix}"
    for count in (12, 20):
        if suffix == ".csv":
            path.write_text("a,b\n" + "1,2\n" * count)
        else:
            pa = pytest.importorskip("pyarrow")
            pytest.importorskip("pyarrow.parquet").write_table(pa.table({"a": np.arange(count)}), path)
        assert len(read_table(str(path))) == count


@pytest.mark.parametrize("form", ["folder", "a.tar", "rows.csv"])
def test_new_pairs_are_seen(form: str, tmp_path: Path) -> None:
    streams = {
        "image": Wanted("Image", SUFFIXES, ("image",), "file"),
        "text": Wanted("Text", (".txt",), ("text",), "text"),
    }
    for count in (12, 20):
        members = {f"{i}.png": encoded() for i in range(count)} | {
            f"{i}.txt": f"caption {i}".encode() for i in range(count)
        }
        if form == "folder":
            for name, content in members.items():
                put(tmp_path / form / name, content)
        elif form == "a.tar":
            tar(tmp_path / form, members)
        else:
            rows = "".join(f"{i}.png,caption {i}\n" for i in range(count))
            put(tmp_path / form, f"image,text\n{rows}".encode())
        assert len(read_pairs(str(tmp_path / form), Options(streams)).tags) == count
