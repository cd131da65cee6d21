from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from multissl.files import digest, replace_text, replaced, set_aside


def test_a_file_is_replaced_when_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")
    with replaced(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def fail(path: Path, error: type[BaseException]) -> None:
    with replaced(path) as aside:
        aside.write_text("half")
        raise error


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_file_of_before_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file.json"
    replace_text(path, "old")
    with pytest.raises(error):
        fail(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_digest_is_that_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert digest(path) == hashlib.sha256(b"content").hexdigest()


def test_what_is_set_aside_takes_the_first_free_name(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert set_aside(path) is None
    for number in (1, 2):
        path.mkdir()
        (path / "file").write_text(str(number))
        old = tmp_path / f"run.old{number}"
        assert set_aside(path) == old
        assert (old / "file").read_text() == str(number)
    assert not path.exists()
