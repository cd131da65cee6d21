"""Sources: every kind lists the same samples, splits do not overlap, bad paths are told plainly."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from multissl.contract.data import Sample, Unreadable
from multissl.modalities.image.files import SUFFIXES, decode, load
from multissl.sources.names import expand_braces
from multissl.sources.opening import open_source
from multissl.sources.splits import SplitSamples

PIXELS = np.random.default_rng(0).integers(0, 255, (12, 10, 3), dtype=np.uint8)


def encoded(form: str = "PNG", pixels: np.ndarray | Image.Image = PIXELS) -> bytes:
    out = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(out, form)
    return out.getvalue()


def put(path: Path, data: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded() if data is None else data)
    return path


def opened(path: Path | str, split: str = "all") -> SplitSamples:
    return open_source(str(path), split, SUFFIXES)


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as out:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def parquet(path: Path, count: int, form: str = "struct") -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    cells = [
        {"bytes": encoded(), "path": f"{i}.png"} if form == "struct" else encoded() for i in range(count)
    ]
    table = pa.table({"image": cells, "label": [i % 3 for i in range(count)]})
    pq.write_table(table, path, row_group_size=7)
    return path


# folders


def test_class_folders_label_nested_files_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    for name in (
        "dog/a.PNG",
        "dog/deep/b.jpeg",
        "cat/c.png",
        "cat/.hidden.png",
        ".git/d.png",
        "cat/notes.txt",
    ):
        put(tmp_path / name)
    data = opened(tmp_path)
    assert data.classes == ["cat", "dog"]
    assert [(os.path.basename(s.data), s.label) for s in data] == [("c.png", 0), ("a.PNG", 1), ("b.jpeg", 1)]


def test_a_flat_or_mixed_folder_is_unlabeled(tmp_path: Path) -> None:
    put(tmp_path / "flat" / "a.png")
    put(tmp_path / "flat" / "sub" / "b.png")
    put(tmp_path / "single" / "all" / "b.png")
    assert {s.label for s in opened(tmp_path / "flat")} == {-1}
    assert {s.label for s in opened(tmp_path / "single")} == {-1}


def test_links_are_followed_and_loops_of_links_are_not(tmp_path: Path) -> None:
    put(tmp_path / "real" / "a.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "real")
    (root / "loop").symlink_to(root)
    assert len(opened(root)) == 1


def test_split_folders_are_used_and_validation_is_carved_where_it_is_missing(tmp_path: Path) -> None:
    for i in range(20):
        put(tmp_path / "Train" / "ab"[i % 2] / f"{i:02}.png")
    put(tmp_path / "test" / "b" / "x.png")
    put(tmp_path / "test" / "c" / "y.png")
    train, val, test = (opened(tmp_path, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (18, 2, 2)
    assert not {s.data for s in train} & {s.data for s in val}
    assert train.classes == test.classes == ["a", "b", "c"]
    assert [s.label for s in test] == [1, 2]
    put(tmp_path / "more" / "train" / "a.png")
    put(tmp_path / "more" / "valid" / "b.png")
    assert [len(opened(tmp_path / "more", s)) for s in ("train", "val")] == [1, 1]


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        put(tmp_path / name / "a.png")
    assert opened(tmp_path).classes == ["bus", "train"]


def test_every_tenth_sample_is_validation_and_indices_count_within_the_split(tmp_path: Path) -> None:
    for i in range(25):
        put(tmp_path / f"{i:02}.png")
    train, val = opened(tmp_path, "train"), opened(tmp_path, "val")
    assert [os.path.basename(s.data) for s in val] == ["09.png", "19.png"]
    assert [s.index for s in train] == list(range(23))


def test_a_handful_of_samples_leaves_one_for_validation_and_one_sample_none(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    assert len(opened(tmp_path, "train")) == 1
    with pytest.raises(ValueError, match="single sample leaves none for validation"):
        opened(tmp_path, "val")
    put(tmp_path / "two" / "b.png")
    put(tmp_path / "two" / "c.png")
    assert [len(opened(tmp_path / "two", s)) for s in ("train", "val")] == [1, 1]


# lists and tables


def test_a_list_names_files_beside_it(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    listed = put(tmp_path / "list.txt", f"# two of them\na.png\n\n{tmp_path / 'a.png'}\n".encode())
    data = opened(listed)
    assert [load(s, 3).shape for s in data] == [(3, 12, 10)] * 2


def test_a_table_gives_labels_splits_and_groups_that_stay_together(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,{'ab'[i % 2]},g{i // 3}\n" for i in range(60))
    table = put(tmp_path / "t.csv", ("Image,label,group\n" + rows).encode())
    train, val = opened(table, "train"), opened(table, "val")
    assert len(val) == 6
    assert not {s.group for s in train} & {s.group for s in val}
    assert (val.classes, val[0].label) == (["a", "b"], 1)
    split = put(tmp_path / "s.csv", b"file,split\na.png,train\nb.png,test\nc.png,val\n")
    assert [opened(split, s)[0].data[-5:] for s in ("train", "val", "test")] == ["a.png", "c.png", "b.png"]


def test_a_table_without_an_image_column_names_what_it_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"want a column image or path .*found name, label"):
        opened(put(tmp_path / "t.csv", b"name,label\na.png,1\n"))
    with pytest.raises(ValueError, match="names no images"):
        opened(put(tmp_path / "t.txt", b"\n"))


# shards


def test_tar_shards_pair_members_by_key(tmp_path: Path) -> None:
    members = {f"./{i}.jpg": encoded("JPEG") for i in range(3)}
    members |= {f"./{i}.cls": f"{i + 4}".encode() for i in range(3)} | {
        "./0.mask.png": b"",
        "./0.png": b"mask",
    }
    data = opened(tar(tmp_path / "a.tar", members))
    assert [s.label for s in data] == [4, 5, 6]
    assert load(data[1], 3).shape == (3, 12, 10)


def test_tar_labels_come_from_json_or_from_the_first_folder(tmp_path: Path) -> None:
    named = {f"{i}.png": encoded() for i in range(2)}
    named |= {f"{i}.json": json.dumps({"label": "ba"[i], "n": 1}).encode() for i in range(2)}
    assert [s.label for s in opened(tar(tmp_path / "a.tar", named))] == [1, 0]
    plain = {f"{i}.png": encoded() for i in range(2)} | {"0.json": b'{"text": "hi"}'}
    assert [s.label for s in opened(tar(tmp_path / "p.tar", plain))] == [-1, -1]
    folders = opened(tar(tmp_path / "b.tar", {"dog/x.png": encoded(), "cat/x.PNG": encoded()}))
    assert (folders.classes, [s.label for s in folders]) == (["cat", "dog"], [1, 0])


def test_several_shards_by_glob_braces_or_folder_are_one_source(tmp_path: Path) -> None:
    for i in range(3):
        tar(tmp_path / f"s{i:02}.tar", {f"{i}{j}.png": encoded() for j in range(4)})
    for path in (tmp_path / "*.tar", tmp_path / "s{00..02}.tar", tmp_path / "s{00,01,02}.tar", tmp_path):
        data = opened(path)
        assert [s.data.name for s in data][:5] == ["00.png", "01.png", "02.png", "03.png", "10.png"]
        assert len(data) == 12
    assert expand_braces("a{1,2}{x,y}") == ["a1x", "a1y", "a2x", "a2y"]


def test_the_word_in_a_shard_s_name_is_its_split(tmp_path: Path) -> None:
    tar(tmp_path / "x-train-0.tar", {"a/0.png": encoded(), "b/1.png": encoded()})
    tar(tmp_path / "x-test-0.tar", {"b/2.png": encoded()})
    test = opened(tmp_path / "x-train-0.tar", "test")  # beside the train file that was named
    assert (test[0].data.name, test[0].label) == ("b/2.png", 1)
    assert len(opened(tmp_path / "x-train-0.tar", "all")) == 2
    assert len(opened(tmp_path / "x-test-0.tar", "all")) == 1
    assert len(opened(tmp_path / "*.tar", "train")) == 1


def test_a_damaged_or_packed_shard_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no plain tar"):
        opened(put(tmp_path / "a.tar", b"\x1f\x8b" + b"0" * 600))
    with pytest.raises(ValueError, match="no images in"):
        opened(tar(tmp_path / "b.tar", {"a.txt": b""}))


@pytest.mark.parametrize("form", ["struct", "plain"])
def test_parquet_cells_are_read_lazily_by_row_group(tmp_path: Path, form: str) -> None:
    data = opened(parquet(tmp_path / "a.parquet", 20, form))
    assert [s.label for s in data][:4] == [0, 1, 2, 0]
    assert load(data[19], 3).shape == (3, 12, 10)
    again = pickle.loads(pickle.dumps(data))
    assert again[8].data == data[8].data == encoded()


def test_sources_travel_to_workers_small(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    data = opened(parquet(tmp_path / "a.parquet", 20))
    _ = data[0]
    assert len(pickle.dumps(data)) < 3000
    assert pickle.loads(pickle.dumps(opened(tmp_path / "*.parquet")))[3].label == 0


# libraries


def test_torchvision_datasets_are_opened_and_never_downloaded_unasked(tmp_path: Path) -> None:
    fake = opened("torchvision:FakeData?size=20", "train")
    assert len(fake) == 18
    assert load(fake[0], 3).shape == (3, 224, 224)
    with pytest.raises(ValueError, match=r"not found.*download=1"):
        opened(f"torchvision:CIFAR10?root={tmp_path}")
    with pytest.raises(ValueError, match="did you mean CIFAR10"):
        opened("torchvision:CIFAR11")


@pytest.mark.parametrize("labels", [torch.arange(28), list(range(29))])
def test_labels_of_torchvision_datasets_may_be_a_tensor(labels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.FakeData, "targets", labels, raising=False)
    assert [sample.label for sample in opened(f"torchvision:FakeData?size={len(labels)}", "val")] == [9, 19]


def test_hugging_face_datasets_open_from_a_local_path(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"img": [Image.fromarray(PIXELS)] * 4, "label": [0, 1, 1, 0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "d")
    data = opened(f"hf:{tmp_path / 'd'}")
    assert [s.label for s in data] == [0, 1, 1, 0]
    assert load(data[2], 3).shape == (3, 12, 10)
    with pytest.raises(
        ValueError, match=r"modality\.data='hf:x\?trust_remote_code=True': a hub dataset has no option 'trust"
    ):
        opened("hf:x?trust_remote_code=True")
    with pytest.raises(ValueError, match="no option 'revison'; did you mean revision"):
        opened("hf:x?revison=main")


def test_hugging_face_datasets_are_loaded_without_code_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    calls: list[Any] = []

    def load_dataset(*args: Any, **options: Any) -> Any:
        calls.append((args, options))
        return datasets.DatasetDict(
            {"train": datasets.Dataset.from_dict({"image": ["a.png", "b.png"], "label": [0, 1]})}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(opened("hf:someone/pictures?revision=v1", "train")) > 0
    assert calls == [(("someone/pictures",), {"revision": "v1", "trust_remote_code": False})]


# bad paths


def test_bad_paths_name_the_option_what_was_found_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"modality.data='/nowhere': no such file or folder; give a folder"):
        opened("/nowhere")
    with pytest.raises(ValueError, match=r"holds no images, found nothing; looked for \.jpg"):
        opened(tmp_path)
    put(tmp_path / "a.pdf")
    with pytest.raises(ValueError, match=r"found 1 files \(\.pdf\)"):
        opened(tmp_path)
    with pytest.raises(ValueError, match=r"a \.pdf file is no source; known: a folder, \.txt"):
        opened(tmp_path / "a.pdf")
    put(tmp_path / "b" / "a.png")
    with pytest.raises(ValueError, match="has no test split; it has train, val"):
        opened(tmp_path / "b", "test")


# decoding


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_every_format_gives_rgb_bytes(form: str) -> None:
    image = decode(encoded(form), 3)
    assert (image.shape, image.dtype) == ((3, 12, 10), torch.uint8)
    if form in ("PNG", "TIFF", "BMP"):
        assert torch.equal(image, torch.from_numpy(PIXELS).permute(2, 0, 1))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_survive(form: str) -> None:
    deep = (np.arange(120, dtype=np.uint16) * 500).reshape(12, 10)
    image = decode(encoded(form, deep), 1)
    assert (image.shape, image.dtype) == ((1, 12, 10), torch.uint16)
    assert image.int().max() == 59500
    assert decode(encoded(form, deep), 3).shape == (3, 12, 10)


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "CMYK"])
def test_every_color_mode_becomes_three_channels_or_one(mode: str) -> None:
    form = "JPEG" if mode == "CMYK" else "PNG"
    data = encoded(form, Image.fromarray(PIXELS).convert(mode))
    assert decode(data, 3).shape == (3, 12, 10)
    assert decode(data, 1).shape == (1, 12, 10)


def test_n_channels_come_from_arrays_and_from_pages_of_a_tiff() -> None:
    out = io.BytesIO()
    np.save(out, np.zeros((6, 5, 7), np.uint16))
    assert decode(out.getvalue(), 7).shape == (7, 6, 5)
    pages = [Image.fromarray(np.full((6, 5), i, np.uint8)) for i in range(4)]
    out = io.BytesIO()
    pages[0].save(out, "TIFF", save_all=True, append_images=pages[1:])
    image = decode(out.getvalue(), 4)
    assert image[:, 0, 0].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"7 channels, modality.channels=5"):
        decode(np.zeros((6, 5, 7), np.uint8), 5)


def saved(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


BROKEN = {
    "truncated JPEG": encoded("JPEG", np.repeat(np.repeat(PIXELS, 9, 0), 9, 1))[:900],
    "truncated PNG": encoded("PNG", np.repeat(PIXELS, 9, 0))[:200],
    "truncated WebP": encoded("WEBP")[:60],
    "truncated TIFF": encoded("TIFF")[:150],
    "text": b"this is a text file, not a picture",
    "empty": b"",
    "array of objects": saved(np.array([{}], dtype=object)),
    "array of floats": saved(np.zeros((3, 3))),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_or_mislabeled_file_is_unreadable_and_named(tmp_path: Path, kind: str) -> None:
    path = put(tmp_path / "bad.jpg", BROKEN[kind])
    with pytest.raises(Unreadable, match=r"bad\.jpg: .+") as caught:
        load(Sample(str(path), 7), 3)
    assert caught.value.index == 7
    assert "\n" not in caught.value.reason


def test_an_empty_cell_is_unreadable() -> None:
    with pytest.raises(Unreadable, match="sample 4: the cell is empty"):
        load(Sample(None, 4), 3)


def test_no_damage_to_a_tiff_escapes_as_another_error() -> None:
    whole = encoded("TIFF")
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        with contextlib.suppress(Unreadable):
            assert load(Sample(bytes(damaged), 0), 3).shape[0] == 3


def test_a_missing_file_is_unreadable() -> None:
    with pytest.raises(Unreadable, match="No such file"):
        load(Sample("/nowhere/a.png", 3), 3)


def test_a_mislabeled_suffix_is_read_by_content(tmp_path: Path) -> None:
    assert load(Sample(str(put(tmp_path / "a.jpg", encoded("PNG"))), 0), 3).shape == (3, 12, 10)
