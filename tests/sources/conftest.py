"""What tests of sources share."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said in warnings, a line each."""
    lines: list[str] = []
    monkeypatch.setattr(
        logging.getLogger("multissl"), "warning", lambda text, *args: lines.append(text % args)
    )
    return lines
