"""Recipes for frames of reinforcement learning, sized for minutes on two processor cores.

They share a Nature network with a code of 50 numbers, at which width principal components are compared, and run on the
built-in game; `--data gym:ALE/Pong-v5 --modality.size 84` (extra `rl`), any other environment or a replay takes other
frames. The state probe is judged by the values that the data aims at, such as the ball, or by all.
"""

from __future__ import annotations

from typing import Any

from multissl.configs.common import batch_teacher
from multissl.contract.encoder import Encoder
from multissl.contract.objective import Objective
from multissl.encoders.nature import NatureEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.optim.adamw import AdamW
from multissl.evaluators.collapse import Collapse
from multissl.evaluators.knn import KNN
from multissl.evaluators.state_probe import StateProbe
from multissl.layers.decoder import Decoder
from multissl.layers.heads import MLPHead
from multissl.modalities.rl.adapter import RL
from multissl.objectives.byol import BYOL
from multissl.objectives.infonce import InfoNCE
from multissl.objectives.mae import MAE
from multissl.objectives.spr import SPR
from multissl.objectives.vicreg import VICReg
from multissl.recipe import Recipe


def default() -> Recipe:
    """InfoNCE between stacks 3 steps apart (as ATC), on the built-in game of two paddles.

    multissl train rl
    """
    return _small(InfoNCE.Config(projector=_head(layers=2)))


def atc() -> Recipe:
    """ATC: InfoNCE of stacks 3 steps apart with a bilinear similarity of codes of 128.

    multissl train rl/atc --data gym:ALE/Pong-v5 --modality.size 84
    """
    return _small(InfoNCE.Config(bilinear=True, temperature=1.0, projector=_head(layers=2, norm="layer")))


def curl() -> Recipe:
    """CURL: InfoNCE of two crops of one stack, a bilinear similarity, frames an eighth larger than their crops."""
    objective = InfoNCE.Config(
        bilinear=True, temperature=1.0, projector=MLPHead.Config(hidden=50, out=50, layers=1)
    )
    return _small(objective, horizon=0, frame=56, shift=0, actions=False)


def spr() -> Recipe:
    """SPR: 5 steps of latents, rolled out through the actions taken."""
    return _small(SPR.Config(teacher=batch_teacher(0.97)), horizon=1)


def sgi() -> Recipe:
    """SPR with the action read back from the latents around it, as for offline data."""
    return _small(SPR.Config(inverse=1.0, teacher=batch_teacher(0.97)), horizon=1)


def byol() -> Recipe:
    """BYOL a step ahead: the predictor reads the action."""
    predictor = MLPHead.Config(hidden=256, out=128, layers=2)
    return _small(
        BYOL.Config(projector=_head(layers=2), predictor=predictor, teacher=batch_teacher(0.97)), horizon=1
    )


def vicreg() -> Recipe:
    """VICReg between stacks 3 steps apart."""
    return _small(VICReg.Config(projector=MLPHead.Config(hidden=256, out=256)))


def mae() -> Recipe:
    """MAE: a small transformer rebuilds three quarters of the patches of a stack."""
    encoder = TransformerEncoder.Config(dim=96, depth=4, heads=4, pooling="mean", init_std=0.0)
    objective = MAE.Config(decoder=Decoder.Config(dim=64, depth=2, heads=4))
    return _small(objective, encoder, patch=6, intensity=0.0)


def pong() -> Recipe:
    """The default on 40 episodes of Pong (extra `rl`), judged by where the ball is in the emulator's memory.

    Moments of one batch come 16 by 16 from one stretch of an episode, as the score and the paddles would otherwise tell
    them apart without the ball.

    multissl train rl/pong
    """
    made = default()
    options: Any = {
        "data": "gym:ALE/Pong-v5", "episodes": 40, "steps": 1000, "size": 84, "local_size": 60, "stack": 4,
        "shift_chance": 0.1, "burst": 16, "pace": 4, "gap": 0,
    }  # fmt: skip
    made.modality = made.modality.replace(**options)
    made.evals = {name: made.evals[name].replace(every=500) for name in ("state", "collapse")}
    return made.replace(steps=1500)


def _head(layers: int, norm: Any = "batch") -> MLPHead.Config:
    return MLPHead.Config(hidden=256, out=128, layers=layers, norm=norm)


def _small(objective: Objective.Config, encoder: Encoder.Config | None = None, **modality: Any) -> Recipe:
    return Recipe(
        modality=RL.Config(**modality),
        encoders={"rl": encoder or NatureEncoder.Config(dim=50)},
        objective=objective,
        optim=AdamW.Config(lr=2e-3, warmup=50, weight_decay=1e-5),
        batch_size=128,
        steps=400,
        evals={
            "state": StateProbe.Config(every=200),
            "knn": KNN.Config(every=200),
            "collapse": Collapse.Config(every=200),
        },
    )
