"""Completion, asked of the functions and of a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from multissl import catalogue, completion

ROOT = Path(__file__).parents[1]
BASH = shutil.which("bash")


@pytest.mark.parametrize(
    ("words", "some"),
    [
        (["tr"], ["train"]),
        ([""], ["train", "list", "--help"]),
        (["train", "image/simc"], ["image/simclr_cifar", "image/simclr_resnet50"]),
        (["train", "aud"], ["audio", "audio_video", "audio/words"]),
        (["train", "image", "--b"], ["--batch_size"]),
        (["train", "image_text", "--enc"], ["--encoders.image", "--encoders.text"]),
        (["train", "image", "--objective", "vic"], ["vicreg", "vicregl"]),
        (["train", "image", "--encoders.image", "res"], ["resnet"]),
        (["train", "image", "--evals", ""], ["none"]),
        (["list", "ta"], ["tabular", "tabular_image"]),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_what_may_follow(words: list[str], some: list[str]) -> None:
    found = completion.candidates(words)
    assert set(some) <= set(found)
    assert all(word.startswith(words[-1]) for word in found)


def test_where_a_file_is_wanted_the_shell_completes() -> None:
    assert completion.candidates(["train", "image", "--data", ""]) == []
    assert completion.candidates(["eval", "runs/"]) == []


def test_every_recipe_and_the_leading_options_are_completed() -> None:
    assert set(catalogue.entries()) <= set(completion.candidates(["train", ""]))
    found = completion.candidates(["train", "image", "--"])
    assert {"--data", "--out", "--steps", "--epochs", "--batch_size", "--optim.lr", "--encoders.image", "--objective",
            "--seed", "--init", "--evals"} <= set(found)  # fmt: skip


@pytest.mark.skipif(BASH is None, reason="there is no bash")
def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    command = tmp_path / "multissl"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m multissl "$@"\n')
    command.chmod(0o755)
    typed = ["multissl train image/simc", "multissl tr", "multissl train image --optim"]
    asked = ""
    for line in typed:
        asked += f"COMP_WORDS=({line}); COMP_CWORD={len(line.split()) - 1}; _multissl; "
        asked += 'echo "${COMPREPLY[*]}"; '
    script = f'eval "$(multissl completion bash)"; IFS=" "; {asked} complete -p multissl'
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    assert BASH
    done = subprocess.run([BASH, "-c", script], env=env, capture_output=True, text=True, check=True)
    recipes, commands, options, registered = done.stdout.splitlines()
    assert recipes.split() == ["image/simclr_cifar", "image/simclr_resnet50"]
    assert commands.split() == ["train"]
    assert options.split() == ["--optim.lr"]
    assert registered == "complete -o default -F _multissl multissl"
