"""Data in stores: the samples of a local folder, over memory and over an HTTP server that drops connections."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from multissl.modalities.tabular.tables import read_table
from multissl.modalities.text.files import read_texts
from multissl.sources import remote
from multissl.sources.remote import local_place
from tests.sources.test_archives import folder_of, packed, seen


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MULTISSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def memory() -> Iterator[Any]:
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def upload(store: Any, root: Path, place: str) -> str:
    for path in root.rglob("*"):
        if path.is_file():
            store.pipe(f"/{place}/{path.relative_to(root).as_posix()}", path.read_bytes())
    return f"memory://{place}"


class Dropping(SimpleHTTPRequestHandler):
    """A server that ends every second answer halfway, and knows ranges or does not."""

    ranges = True
    answers = 0

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        content = Path(self.translate_path(self.path.partition("?")[0])).read_bytes()
        first = 0
        wanted = self.headers.get("Range", "")
        if wanted and self.ranges:
            first = int(wanted.removeprefix("bytes=").partition("-")[0])
            last = wanted.partition("-")[2]
            content = content[first : int(last) + 1 if last else None]
        self.send_response(206 if wanted and self.ranges else 200)
        self.send_header("Content-Length", str(len(content)))
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/*")
        self.end_headers()
        type(self).answers += 1
        cut = len(content) // 2 if type(self).answers % 2 and len(content) > 2000 else len(content)
        self.wfile.write(content[:cut])
        if cut < len(content):
            self.close_connection = True
            self.connection.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Path, bool], str]]:
    servers = []

    def start(root: Path, ranges: bool = True) -> str:
        handler = type("Handler", (Dropping,), {"ranges": ranges, "answers": 0})
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(root)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_folder_and_an_archive_in_a_store_hold_the_samples_of_the_folder(
    tmp_path: Path, memory: Any
) -> None:
    root = folder_of(tmp_path / "all")
    assert seen(Path(local_place(upload(memory, root, "mine")))) == seen(root)
    for suffix in (".zip", ".tar.gz"):
        archive = packed(root, tmp_path / f"mine{suffix}")
        memory.pipe(f"/archives/{archive.name}", archive.read_bytes())
        assert seen(Path(local_place(f"memory://archives/{archive.name}"))) == seen(root)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_drops_is_made_again(
    tmp_path: Path, serve: Callable[[Path, bool], str], ranges: bool
) -> None:
    root = folder_of(tmp_path / "all", (60, 60))
    archive = packed(root, tmp_path / "mine.tar")
    address = f"{serve(tmp_path, ranges)}/mine.tar?download=1"
    assert Path(local_place(address)).read_bytes() == archive.read_bytes()
    assert seen(Path(local_place(address))) == seen(root)


def test_what_has_changed_is_copied_anew_and_what_is_gone_is_removed(
    tmp_path: Path, memory: Any, said: list[str]
) -> None:
    root = folder_of(tmp_path / "all")
    place = upload(memory, root, "mine")
    before = seen(Path(local_place(place)))
    said.clear()
    assert seen(Path(local_place(place))) == before
    assert "copying" not in "\n".join(said)
    gone = sorted((root / "train" / "class0").iterdir())[0]
    gone.unlink()
    memory.rm(f"/mine/train/class0/{gone.name}")
    changed = sorted((root / "train" / "class0").iterdir())[0]
    shutil.copy(sorted((root / "test" / "class0").iterdir())[0], changed)
    memory.pipe(f"/mine/train/class0/{changed.name}", changed.read_bytes())
    assert seen(Path(local_place(place))) == seen(root) != before
    assert "copying 1 files" in "\n".join(said)


def test_a_store_that_cannot_be_reached_leaves_the_copy_of_before(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    root = folder_of(tmp_path / "all")
    place = upload(memory, root, "mine")
    before = seen(Path(local_place(place)))

    def refuse(*args: Any, **options: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(type(memory), "find", refuse)
    assert seen(Path(local_place(place))) == before
    assert "cannot be reached (no route to host); its copy of before" in "\n".join(said)
    with pytest.raises(ValueError, match=r"memory://other cannot be reached \(no route to host\)"):
        local_place("memory://other")


def test_a_data_worker_does_not_ask_the_store_again(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder_of(tmp_path / "all")
    place = upload(memory, root, "mine")
    monkeypatch.setattr(remote, "get_worker_info", object)
    before = local_place(place)  # there is no copy yet
    monkeypatch.setattr(remote, "_listed", pytest.fail)
    assert local_place(place) == before
    assert seen(Path(before)) == seen(root)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("memory://nowhere", "nothing lies there"),
        ("nostore://a/b.tar", "no store is known by nostore"),
        ("http://127.0.0.1:9/a.tar", "cannot be reached"),
    ],
)
def test_places_that_hold_nothing_are_refused_in_a_line(place: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        local_place(place)
    assert "\n" not in str(error.value)


def test_tables_and_texts_of_stores_are_read_with_their_test_file(memory: Any) -> None:
    rows = "a,b\n" + "".join(f"{i},{i % 3}\n" for i in range(30))
    memory.pipe("/t/rows-train.csv", rows.encode())
    memory.pipe("/t/rows-test.csv", b"a,b\n1,2\n")
    assert len(read_table("memory://t/rows-train.csv", "modality.data", "", ())) == 30
    assert (
        Path(local_place("memory://t/rows-train.csv")).with_name("rows-test.csv").read_bytes()
        == b"a,b\n1,2\n"
    )
    memory.pipe("/t/notes.txt", b"one line of text\nanother line of text\n" * 10)
    assert len(read_texts("memory://t/notes.txt", "all").texts) == 20


def test_a_name_that_leads_out_of_the_cache_is_refused(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/mine/a.png", b"1")

    def outside(*args: Any, **options: Any) -> dict[str, Any]:
        return {"/mine/../../evil.png": {"size": 1, "type": "file"}}

    monkeypatch.setattr(type(memory), "find", outside)
    with pytest.raises(ValueError, match="is no name of a file"):
        local_place("memory://mine")
