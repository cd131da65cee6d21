from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.faults.runs import COMMANDS, FAMILIES, state, train
from tests.faults.warm import Warm

Wholes = Callable[[str], tuple[dict[str, Any], list[str], float]]


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """A process that forks a child for every command."""
    process = Warm()
    yield process
    process.close()


@pytest.fixture(scope="session")
def wholes(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Wholes:
    """Return what an uninterrupted run of a name leaves, its writes, and its seconds; run once."""
    known: dict[str, tuple[dict[str, Any], list[str], float]] = {}

    def whole(name: str) -> tuple[dict[str, Any], list[str], float]:
        if name not in known:
            folder = tmp_path_factory.mktemp("whole") / name
            ended = train(warm, {**COMMANDS, **FAMILIES}[name], folder)
            assert ended.code == 0
            known[name] = state(folder), ended.writes, ended.seconds
        return known[name]

    return whole
