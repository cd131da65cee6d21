from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from multissl.files import Damaged, Lines, digest, read_sealed, replace_text, replaced, sealed, set_aside


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


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_file_may_be_read_by_whom_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    """Weights too, which safetensors writes for their owner alone."""
    before = os.umask(umask)
    try:
        with replaced(tmp_path / "weights.safetensors") as aside:
            save_file({"a": torch.zeros(2)}, aside)
    finally:
        os.umask(before)
    assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == mode


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


@pytest.mark.parametrize("values", [{"step": 3, "files": {"a": [1, 2.5, None]}}, {}])
def test_sealed_values_are_read_back_and_a_changed_character_is_seen(
    tmp_path: Path, values: dict[str, object]
) -> None:
    path = tmp_path / "file.json"
    text = json.dumps(sealed(values))
    path.write_text(text)
    assert read_sealed(path) == values
    for place in range(len(text)):
        path.write_text(text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :])
        with pytest.raises(Damaged, match=r"file.json is damaged"):
            read_sealed(path)
        path.write_text(text[:place])
        with pytest.raises(Damaged, match=r"file.json is damaged"):
            read_sealed(path)


def test_values_of_before_there_was_a_digest_are_read_where_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text('{"step": 3}')
    assert read_sealed(tmp_path / "file.json", unsealed=True) == {"step": 3}
    with pytest.raises(Damaged, match="lacks the digest"):
        read_sealed(tmp_path / "file.json")


def test_lines_are_cut_off_where_one_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = Lines(path)
    lines.add(b"one\n")
    lines.add(b"two\n")
    lines.close()
    lines = Lines(path, keep=4)
    lines.add(b"three\n")
    lines.sync()
    lines.close()
    assert path.read_bytes() == b"one\nthree\n"
