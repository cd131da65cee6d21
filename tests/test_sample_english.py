"""The sampler of English finds words and names that were replaced, and the package uses none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import sample_english
from tools.sample_english import defined_names, name_words, replaced_words

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "text",
    [
        "Bits a character of counts.",
        "its header says 50 samples a second",
        "called once a view",
        "a projector a stream",
        "a modality that offers them",
        "the floor of a run",
        "what it was told",
    ],
)
def test_a_word_that_was_replaced_is_found(text: str) -> None:
    assert replaced_words(text)


@pytest.mark.parametrize(
    "text",
    ["Bits per character.", "a queue per stream", "the width is floor(n q)", "how many tokens a mask hides"],
)
def test_a_plain_sentence_is_left_alone(text: str) -> None:
    assert not replaced_words(text)


def test_names_of_files_functions_classes_arguments_and_values_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "held_out.py"
    path.write_text(
        "class Panel: ...\n\n\ndef share(told):\n    taken = self.floor = told\n    share = taken\n"
    )
    monkeypatch.setattr(sample_english, "PACKAGE", tmp_path)
    found = [text.text.split(" -> ")[0] for text in defined_names(path)]
    assert sorted(found) == ["Panel", "floor", "held_out", "share", "taken", "told"]
    assert not name_words("start", function=False)
    assert name_words("_start", function=True)


def test_the_package_uses_no_word_that_was_replaced() -> None:
    script = ROOT / "tools" / "sample_english.py"
    run = subprocess.run([sys.executable, script, "--all"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "")
