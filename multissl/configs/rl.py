"""Recipes for frames of reinforcement learning, sized for minutes on two processor cores.

They share a Nature network with a code of 50 numbers, at which width principal components are compared, and run on the
built-in game; `--data gym:ALE/Pong-v5 --modality.size 84` (extra `rl`), any other environment or a replay takes other
frames. The state probe is judged by the values that the data aims at, such as the ball, or by all.
"""

from __future__ import annotations

from typing import Any

from multissl.configs.shared.common import batch_teacher
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
from multissl.layers.teacher import Teacher
from multissl.modalities.rl.adapter import RL
from multissl.objectives.byol import BYOL
from multissl.objectives.infonce import InfoNCE
from multissl.objectives.mae import MAE
from multissl.objectives.spr import SPR
from multissl.objectives.vicreg import VICReg
from multissl.recipe import Recipe


def default() -> Recipe:
    """InfoNCE between stacks 3 steps apart (as ATC), on the built-in game of two paddles.

    Command: multissl train rl
    Size: 400 steps of 128, Nature network of 50; a minute of one processor core.
    Measured: R2 73.2 % of where the ball is (untrained -1.6, raw input 31.6), 42 seconds.
    """
    return _small(InfoNCE.Config(projector=_head(layers=2)))


def atc() -> Recipe:
    """ATC: InfoNCE of stacks 3 steps apart with a bilinear similarity of codes of 128.

    Command: multissl train rl/atc --data gym:ALE/Pong-v5 --modality.size 84
    Size: 400 steps of 128, Nature network of 50; minutes on two processor cores.
    Measured: unmeasured
    """
    return _small(InfoNCE.Config(bilinear=True, temperature=1.0, projector=_head(layers=2, norm="layer")))


def curl() -> Recipe:
    """CURL: InfoNCE of two crops of one stack, a bilinear similarity, frames an eighth larger than their crops.

    Command: multissl train rl/curl
    Size: 400 steps of 128, Nature network of 50; minutes on two processor cores.
    Measured: unmeasured
    """
    objective = InfoNCE.Config(
        bilinear=True, temperature=1.0, projector=MLPHead.Config(hidden=50, out=50, layers=1)
    )
    return _small(objective, horizon=0, frame=56, shift=0, actions=False)


def spr() -> Recipe:
    """SPR: 5 steps of latents, rolled out through the actions taken.

    Command: multissl train rl/spr
    Size: 400 steps of 128, Nature network of 50; minutes on two processor cores.
    Measured: unmeasured

    Views are augmented, so the teacher is the student as it stands (momentum 0), as in the official code; without
    augmentation that has a momentum of 0.99: --objective.teacher.ema 0.99 --objective.teacher.final_ema 0.99
    """
    return _small(SPR.Config(teacher=_constant_teacher(0.0)), horizon=1)


def sgi() -> Recipe:
    """SGI's part of SPR: the action is predicted back from the latents around it, as for offline data.

    Command: multissl train rl/sgi
    Size: 400 steps of 128, Nature network of 50; minutes on two processor cores.
    Measured: unmeasured
    """
    return _small(SPR.Config(inverse=1.0, teacher=_constant_teacher(0.99)), horizon=1)


def byol() -> Recipe:
    """BYOL a step ahead: the predictor reads the action.

    Command: multissl train rl/byol
    Size: 400 steps of 128, Nature network of 50; minutes on two processor cores.
    Measured: unmeasured
    """
    predictor = MLPHead.Config(hidden=256, out=128, layers=2)
    return _small(
        BYOL.Config(projector=_head(layers=2), predictor=predictor, teacher=batch_teacher(0.97)), horizon=1
    )


def vicreg() -> Recipe:
    """VICReg between stacks 3 steps apart.

    Command: multissl train rl/vicreg
    Size: 400 steps of 128, Nature network of 50; minutes on two processor cores.
    Measured: unmeasured
    """
    return _small(VICReg.Config(projector=MLPHead.Config(hidden=256, out=256)))


def mae() -> Recipe:
    """MAE: a small transformer rebuilds three quarters of the patches of a stack.

    Command: multissl train rl/mae
    Size: 400 steps of 128, transformer 96 x 4; minutes on two processor cores.
    Measured: unmeasured
    """
    encoder = TransformerEncoder.Config(dim=96, depth=4, heads=4, pooling="mean", init_std=0.0)
    objective = MAE.Config(decoder=Decoder.Config(dim=64, depth=2, heads=4))
    return _small(objective, encoder, patch=6, intensity=0.0)


def pong() -> Recipe:
    """The default on 40 episodes of Pong (extra `rl`), judged by where the ball is in the emulator's memory.

    Command: multissl train rl/pong
    Size: 1,500 steps of 128, Nature network of 50; 10 minutes of one processor core.
    Measured: R2 77.4 % of where the ball is, on test episodes (untrained 48.6, 50 principal components 55.5).

    Moments of one batch come 16 by 16 from one stretch of an episode, as the score and the paddles would otherwise tell
    them apart without the ball.
    """
    made = default()
    options: Any = {
        "data": "gym:ALE/Pong-v5", "episodes": 40, "steps": 1000, "size": 84, "local_size": 60, "stack": 4,
        "shift_chance": 0.1, "burst": 16, "pace": 4, "gap": 0,
    }  # fmt: skip
    made.modality = made.modality.replace(**options)
    made.evals = {name: made.evals[name].replace(every=500) for name in ("state", "collapse")}
    return made.replace(steps=1500)


def _constant_teacher(ema: float) -> Teacher.Config:
    return Teacher.Config(ema=ema, final_ema=ema, buffers="keep", batch_norm="batch")


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
