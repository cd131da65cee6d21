"""Recipes for sounds and their captions."""

from __future__ import annotations

from multissl.configs.shared.pairs import paired, sound, words
from multissl.recipe import Recipe


def clip() -> Recipe:
    """CLIP between sounds and captions.

    Command: multissl train audio_text --data sounds.csv
    Size: 600 steps of 64, transformer 96 x 3 and transformer 96 x 2; minutes on two processor cores.
    Measured: unmeasured
    """
    return paired({"audio": sound(), "text": words()})
