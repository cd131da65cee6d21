from __future__ import annotations

import io
import sys

import pytest

from multissl.engine.metrics import Display


class Closed(io.StringIO):
    """A terminal or pipe whose other end is gone."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), BrokenPipeError()], ids=["terminal", "pipe"]
)
def test_lines_that_nobody_can_read_any_more_end_no_run(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    display = Display(True)
    monkeypatch.setattr(sys, "stderr", Closed(error))
    display.say("one")
    display.say("two")
    assert display.console.quiet
