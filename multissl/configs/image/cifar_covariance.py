"""Recipes for small pictures whose objective looks at a matrix of all embeddings; otherwise as those of `cifar.py`."""

from __future__ import annotations

from multissl.configs.image.cifar import vicreg_cifar
from multissl.configs.shared.common import batch_teacher
from multissl.layers.heads import MLPHead
from multissl.objectives.mmcr import MMCR
from multissl.objectives.tico import TiCo
from multissl.recipe import Recipe


def tico_cifar() -> Recipe:
    """TiCo: views agree with a teacher's, and a moving covariance keeps samples apart.

    Command: multissl train image/tico_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: unmeasured
    """
    made = vicreg_cifar()
    projector = MLPHead.Config(hidden=512, out=128, layers=2)
    made.objective = TiCo.Config(symmetric=True, projector=projector, teacher=batch_teacher(0.97))
    return made


def mmcr_cifar() -> Recipe:
    """MMCR: the centroids of the views of all samples have the largest nuclear norm.

    Command: multissl train image/mmcr_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: unmeasured
    """
    made = vicreg_cifar()
    made.objective = MMCR.Config(projector=MLPHead.Config(hidden=512, out=64))
    return made
