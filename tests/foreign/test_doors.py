"""The same samples with the same classes, whatever door they come through, and each of them accounted for."""

from __future__ import annotations

import csv
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from multissl import registry
from multissl.modalities.audio.files import SUFFIXES as SOUNDS
from multissl.modalities.image.files import SUFFIXES as PICTURES
from multissl.modalities.text.files import read_texts
from multissl.modalities.video.files import SUFFIXES as FILMS
from multissl.sources import remote
from multissl.sources.base import Request
from multissl.sources.folder import FolderSource
from multissl.sources.opening import find_source, list_source, open_source
from multissl.sources.payloads import Slice
from tests.foreign.cases import folder, packed, picture, tar
from tests.helpers.paired_data import frames, tone
from tests.sources.test_archives import packed as compressed
from tests.sources.test_remote import Dropping

SEEN = list[tuple[str, str]]
"""Class and digest of every sample, sorted."""
KINDS: dict[str, tuple[str, tuple[str, ...], Callable[[int], bytes]]] = {
    "image": (".png", PICTURES, lambda i: picture(20 * i, size=(40, 30))),
    "audio": (".wav", SOUNDS, lambda i: tone(i, 0.05)),
    "video": (".npy", FILMS, lambda i: frames(20 * i)),
    "text": (".txt", (".txt",), lambda i: f"document {i}\nof some lines, which are {i}".encode()),
}
COUNT = 12


def members(kind: str) -> dict[str, bytes]:
    suffix, _, content = KINDS[kind]
    return {f"{'xy'[i % 2]}/{i:02}{suffix}": content(i) for i in range(COUNT)}


def as_folder(root: Path, files: dict[str, bytes], kind: str) -> str:
    return folder(root / "folder", files)


def as_list(root: Path, files: dict[str, bytes], kind: str) -> str:
    """A table of names of files; of texts it holds these themselves."""
    folder(root, files)
    with (root / "list.csv").open("w", newline="") as file:
        cells = [content.decode() if kind == "text" else name for name, content in files.items()]
        rows = zip(cells, (name[0] for name in files), strict=True)
        csv.writer(file).writerows([(kind, "label"), *rows])
    return str(root / "list.csv")


def as_parquet(root: Path, files: dict[str, bytes], kind: str) -> str:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cells = [content.decode() if kind == "text" else content for content in files.values()]
    rows = arrow.table({kind: cells, "label": [name[0] for name in files]})
    parquet.write_table(rows, root / "a.parquet", row_group_size=5)
    return str(root / "a.parquet")


def as_archive_in_a_folder(root: Path, files: dict[str, bytes], kind: str) -> str:
    (root / "shards").mkdir()
    tar(root / "shards" / "a.tar", files)
    return str(root / "shards")


def in_memory(root: Path, files: dict[str, bytes], kind: str) -> str:
    store = pytest.importorskip("fsspec").filesystem("memory")
    for name, content in files.items():
        store.pipe(f"/{root.name}/{name}", content)
    return f"memory://{root.name}"


DOORS: dict[str, Callable[[Path, dict[str, bytes], str], str]] = {
    "a tar": lambda root, files, kind: tar(root / "a.tar", files),
    "parquet": as_parquet,
    "a list": as_list,
    "a zip": lambda root, files, kind: packed(root / "a.zip", files),
    "a packed tar": lambda root, files, kind: str(
        compressed(Path(folder(root / "all", files)), root / "a.tar.gz")
    ),
    "a folder of tars": as_archive_in_a_folder,
    "a store in memory": in_memory,
}


@contextmanager
def server(root: Path) -> Iterator[str]:
    """An HTTP server of a folder that ends every second answer halfway."""
    handler = type("Handler", (Dropping,), {"answers": 0})
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(root)))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTISSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)


def seen(path: str, kind: str) -> SEEN:
    if kind == "text":
        texts = read_texts(path, "all")
        pairs = zip(texts.texts, texts.labels.tolist(), strict=True)
        return sorted((str(texts.classes[label]), digest(str(text).encode())) for text, label in pairs)
    data = open_source(path, "all", KINDS[kind][1], kind)
    return sorted((data.classes[sample.label], digest(content_of(sample.data))) for sample in data)


def content_of(payload: Any) -> bytes:
    if isinstance(payload, Slice):
        return payload.read()
    return payload if isinstance(payload, bytes) else Path(payload).read_bytes()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


FAST = {("image", "a tar"), ("audio", "a list"), ("video", "a zip"), ("text", "parquet")}


@pytest.mark.parametrize(
    ("kind", "door"),
    [
        pytest.param(kind, door, marks=() if (kind, door) in FAST else pytest.mark.slow)
        for kind in KINDS
        for door in DOORS
    ],
)
def test_every_door_leads_to_the_same_samples_and_classes(kind: str, door: str, tmp_path: Path) -> None:
    files = members(kind)
    expected = sorted((name[0], digest(content)) for name, content in files.items())
    assert seen(as_folder(tmp_path, files, kind), kind) == expected
    (tmp_path / "door").mkdir()
    assert seen(DOORS[door](tmp_path / "door", files, kind), kind) == expected


@pytest.mark.parametrize(
    "kind", [k if k == "image" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_a_server_that_drops_connections_is_a_door_as_any(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="the extra `remote` is not installed")
    files = members(kind)
    tar(tmp_path / "a.tar", files)
    with server(tmp_path) as address:
        assert seen(f"{address}/a.tar", kind) == seen(as_folder(tmp_path, files, kind), kind)


@pytest.mark.parametrize(
    "kind", [k if k == "image" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_the_order_of_a_file_system_is_nobodys(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.scandir

    @contextmanager
    def backwards(path: Any = ".") -> Iterator[Any]:
        with original(path) as entries:
            yield iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

    forwards = as_folder(tmp_path / "one", members(kind), kind)
    backward = as_folder(tmp_path / "two", members(kind), kind)
    names = {}
    for path in (forwards, backward):
        listing = list_source(Request(path, KINDS[kind][1], kind))
        names[path] = [os.path.relpath(payload, path) for payload in listing.data]
        monkeypatch.setattr(os, "scandir", backwards)
    assert names[forwards] == names[backward] == sorted(members(kind))


# what is taken and what is not


def stray_in_folder(root: Path) -> str:
    return folder(root / "f", {**members("image"), "x/notes.xyz": b"x", "x/.hidden.png": picture()})


def stray_in_tar(root: Path) -> str:
    return tar(root / "a.tar", {**members("image"), "x/notes.xyz": b"x", "x/.hidden.png": picture()})


def stray_in_pattern(root: Path) -> str:
    tar(root / "s1.tar", {**members("image"), "x/notes.xyz": b"x"})
    tar(root / "s2.tar", {"x/more.xyz": b"x", "x/99.png": picture()})
    return str(root / "s*.tar")


def stray_in_table(root: Path) -> str:
    folder(root, members("image"))
    lines = ["image,label", *(f"{name},{name[0]}" for name in members("image")), ",x", "nan,y"]
    return str(Path(folder(root, {"t.csv": "\n".join(lines).encode()}), "t.csv"))


STRAYS: dict[str, tuple[Callable[[Path], str], int, int]] = {
    "folder": (stray_in_folder, COUNT, 2),
    "tar": (stray_in_tar, COUNT, 2),
    "shards": (stray_in_pattern, COUNT + 1, 2),
    "table": (stray_in_table, COUNT, 2),
}
"""Sources by name, what builds their data, how many samples it holds and how many things that are none."""
WHOLE = {"parquet", "torchvision", "hugging_face"}
"""Sources that take every row as a sample; one that cannot be read is counted where it is drawn."""


def test_every_source_is_asked_what_it_leaves_out() -> None:
    assert {*STRAYS} | WHOLE == {*registry.GROUPS["sources"]}


@pytest.mark.parametrize("name", STRAYS)
def test_what_is_taken_and_what_is_left_out_is_all_there_is(name: str, tmp_path: Path) -> None:
    build, samples, others = STRAYS[name]
    request = Request(build(tmp_path), PICTURES, "image")
    assert type(find_source(request)) is registry.resolve(name, "sources")
    listing = list_source(request)
    assert len(listing.tags) == samples
    assert sum(listing.left_out.values()) == others


def test_a_folder_that_cannot_be_listed_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, original = as_folder(tmp_path, members("image"), "image"), os.scandir

    def denied(place: Any = ".") -> Any:
        if str(place).rstrip("/").endswith("/y"):
            raise PermissionError(13, "Permission denied")
        return original(place)

    monkeypatch.setattr(os, "scandir", denied)
    listing = FolderSource().list_samples(Request(path, PICTURES, "image"))
    assert len(listing.tags) == COUNT / 2
    assert listing.left_out == {"folders that cannot be listed (Permission denied)": 1}
