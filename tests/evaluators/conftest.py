"""What tests of evaluators share."""

from __future__ import annotations

import pytest


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What evaluators warn of."""
    lines: list[str] = []
    monkeypatch.setattr(
        "multissl.contract.evaluator.log.warning", lambda text, *values: lines.append(text % values)
    )
    return lines
