"""Recipes for rows of a table and the pictures that they name."""

from __future__ import annotations

from multissl.configs.shared.pairs import paired, picture
from multissl.modalities.tabular.adapter import Tabular
from multissl.recipe import Recipe


def clip() -> Recipe:
    """CLIP between the cells of a row and the picture that it names.

    Command: multissl train tabular_image --data rows.csv
    Size: 600 steps of 64, transformer 96 x 2 and transformer 96 x 3; minutes on two processor cores.
    Measured: unmeasured
    """
    return paired({"tabular": Tabular.Config(), "image": picture()})
