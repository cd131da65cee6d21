"""Runs without what costs seconds and is tested elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from multissl.engine.window import Rates
from multissl.run import train as run


@contextmanager
def lean_runs() -> Iterator[None]:
    """Leave out the operations that are counted at the first step, and the page and README at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rates, "count", lambda *_: "")
        patch.setattr(run, "show", lambda *_: None)
        yield
