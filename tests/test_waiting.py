"""What is said of long work while it lasts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from multissl import waiting


def test_what_is_left_is_told_by_all_items_but_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: clock[0])

    def slow() -> Iterator[int]:
        for number, seconds in enumerate((100, 2, 20, 20)):
            clock[0] += seconds  # until this item is there
            yield number

    assert [*waiting.followed(slow(), "pages", 4)] == [0, 1, 2, 3]
    assert capsys.readouterr().err.splitlines() == [
        "pages: 0 of 4",
        "pages: 2 of 4, 40 s to go",
        "pages: 3 of 4, 20 s to go",
    ]
