"""The lint of sizes sees what is long, and takes a reason for it."""

from __future__ import annotations

from pathlib import Path

from tools.lint_sizes import findings

LONG = "def f():\n" + "    x = 1\n" * 60


def test_a_long_function_is_found_in_any_class() -> None:
    assert findings(Path("a.py"), LONG) == ["a.py:1: f has 61 lines"]
    inside = "class A:\n" + "".join(f"    {line}\n" for line in LONG.splitlines())
    assert findings(Path("a.py"), inside) == ["a.py:2: f has 61 lines"]


def test_a_long_file_is_found() -> None:
    assert findings(Path("a.py"), "x = 1\n" * 401) == ["a.py: 401 lines"]
    assert not findings(Path("a.py"), "x = 1\n" * 400)


def test_a_reason_keeps_it_and_an_empty_one_does_not() -> None:
    assert not findings(Path("a.py"), "# long: one table read from top to bottom\n" + LONG)
    assert findings(Path("a.py"), "# long:\n" + LONG)
    assert not findings(Path("a.py"), "# long file: generated\n" + "x = 1\n" * 401)
