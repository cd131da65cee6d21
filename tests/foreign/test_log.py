"""The log of inputs that broke others is whole, and what the documentation says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.foreign import test_files, test_rows
from tests.foreign.cases import CASES, MODALITIES, log

PAGE = Path(__file__).parents[2] / "docs" / "foreign_inputs.md"


def test_every_modality_has_its_share() -> None:
    counts = Counter(case.modality for case in CASES.values())
    assert {*counts} == {*MODALITIES}
    assert min(counts.values()) >= 4
    assert len(CASES) >= 30


def test_the_page_lists_every_case() -> None:
    assert log() in PAGE.read_text(), "write it anew: python -m tests.foreign.test_log"


if __name__ == "__main__":
    assert test_files
    assert test_rows
    print(log())
