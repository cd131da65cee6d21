"""Recipes for tables."""

from __future__ import annotations

from multissl.configs.common import watched
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.optim import AdamW
from multissl.layers.heads import MLPHead
from multissl.modalities.tabular import Tabular
from multissl.objectives.vicreg import VICReg
from multissl.recipe import Recipe


def default() -> Recipe:
    """VICReg on rows with swapped cells, 3 blocks of width 64.

    multissl train tabular --data rows.csv --modality.label target
    """
    return Recipe(
        modality=Tabular.Config(),
        encoders={"tabular": TransformerEncoder.Config(dim=64, depth=3, heads=4, pooling="mean")},
        objective=VICReg.Config(projector=MLPHead.Config(hidden=256, out=256)),
        optim=AdamW.Config(lr=1e-3, weight_decay=1e-5, warmup=50),
        batch_size=128,
        steps=400,
        evals=watched(every=100),
    )
