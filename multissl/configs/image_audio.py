"""Recipes for pictures and sounds of one class."""

from __future__ import annotations

from multissl.configs.shared.pairs import paired, picture, sound
from multissl.recipe import Recipe


def clip() -> Recipe:
    """CLIP between pictures and sounds of one class, drawn anew each time.

    Command: multissl train image_audio --modality.members.image.data digits --modality.members.audio.data spoken
    Size: 600 steps of 64, transformer 96 x 3 and transformer 96 x 3; minutes of one processor core.
    Measured: recall@1 88.9 % on test digits, spoken and written (chance 10.1), with `--steps 400`, 4 minutes.
    """
    return paired({"image": picture(), "audio": sound()}, join="label")
