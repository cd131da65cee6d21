"""Recipes for videos: a demo for two processor cores, small ones of each kind of objective, and the papers' sizes.

The papers' recipes carry their own hyperparameters and are unmeasured here: they need many GPUs.
"""

from __future__ import annotations

from typing import Any

from multissl.configs.shared.common import batch_teacher, small_dino, watched
from multissl.configs.shared.continuing import continued
from multissl.contract.objective import Objective
from multissl.encoders.transformer import TransformerEncoder, vit
from multissl.engine.checkpoint import Save
from multissl.engine.optim.adamw import AdamW
from multissl.layers.decoder import Decoder
from multissl.layers.heads import MLPHead
from multissl.layers.positions import Position
from multissl.layers.teacher import Teacher
from multissl.modalities.video.adapter import Video
from multissl.objectives.byol import BYOL
from multissl.objectives.ijepa import IJEPA
from multissl.objectives.infonce import InfoNCE
from multissl.objectives.mae import MAE
from multissl.recipe import Recipe


def default() -> Recipe:
    """InfoNCE on two clips of a video, on the built-in moving surfaces.

    Command: multissl train video
    Size: 400 steps of 64, transformer 64 x 3; 4 minutes on two processor cores.
    Measured: k-NN 62.5 % on the built-in surfaces (untrained 11.0, raw input 26.5); 3 minutes 46 seconds.
    """
    return infonce()


def infonce() -> Recipe:
    """InfoNCE: two clips of a video, far apart in time, are positives (CVRL; Feichtenhofer et al. 2021).

    Command: multissl train video/infonce --data FOLDER
    Size: 400 steps of 64, transformer 64 x 3; 4 minutes on two processor cores.
    Measured: k-NN 67.5 % on eight camera motions (untrained 13.5), 260 steps, 9 minutes of one core.
    """
    projector = MLPHead.Config(hidden=256, out=64, layers=2, last_norm=True)
    return _small(InfoNCE.Config(temperature=0.2, projector=projector))


def byol() -> Recipe:
    """BYOL: the clip of one time predicts what a slow teacher makes of another.

    Command: multissl train video/byol --data FOLDER
    Size: 400 steps of 64, transformer 64 x 3; minutes on two processor cores.
    Measured: unmeasured
    """
    head = MLPHead.Config(hidden=256, out=64, layers=2)
    return _small(BYOL.Config(projector=head, predictor=head, teacher=batch_teacher(0.97)))


def dino() -> Recipe:
    """DINO on long and short clips (SVT): short clips of details predict what long ones show.

    Command: multissl train video/dino --data FOLDER
    Size: 400 steps of 64, transformer 64 x 3; minutes on two processor cores.
    Measured: unmeasured
    """
    objective = small_dino(
        koleo_weight=0.02, teacher_temperature_start=0.02, teacher_temperature=0.02, freeze_last_layer=50
    )
    return _small(objective, color=True)


def videomae() -> Recipe:
    """VideoMAE: three quarters of the tubes are rebuilt; fewer than the paper's 90 %, as it advises for small sets.

    Command: multissl train video/videomae --data FOLDER
    Size: 400 steps of 64, transformer 64 x 3; minutes on two processor cores.
    Measured: unmeasured
    """
    objective = MAE.Config(norm_target="channel", decoder=Decoder.Config(dim=64, depth=2, heads=4))
    return _small(objective, color=False)


def vjepa() -> Recipe:
    """V-JEPA: predicts a teacher's features of blocks that last as long as the clip from the rest of it.

    Command: multissl train video/vjepa --data FOLDER
    Size: 400 steps of 64, transformer 64 x 3; minutes on two processor cores.
    Measured: unmeasured
    """
    predictor = Decoder.Config(dim=64, depth=2, heads=4)
    teacher = Teacher.Config(ema=0.99, ema_shape="linear")
    objective = IJEPA.Config(
        metric="power", targets=1, target_ratio=(0.15, 0.15), context_ratio=(1.0, 1.0), predictor=predictor,
        teacher=teacher,
    )  # fmt: skip
    made = _small(objective, color=False)
    made.modality.mask, made.modality.union = "block", 8  # type: ignore[attr-defined]
    return made


def videomae_vitb16() -> Recipe:
    """VideoMAE, ViT-B, Kinetics-400, 800 epochs (Tong et al. 2022, arXiv 2203.12602, appendix).

    Command: multissl train video/videomae_vitb16 --data FOLDER
    Size: 93,600 steps of 2,048, ViT-B/16; many GPUs.
    Measured: unmeasured

    Differs from the paper: positions are sines and cosines of time, row and column, and not of the token's number;
    crops have any area of 0.5 to 1 of the frame, and not one of four scales; weights begin truncated normal and not
    Xavier uniform.
    """
    epoch = 117  # steps of 2048 of 240,000 videos
    decoder = Decoder.Config(dim=384, depth=4, heads=6)
    return Recipe(
        modality=Video.Config(global_scale=(0.5, 1.0), **_plain()),
        encoders={"video": vit("b", pooling="mean", position=Position(kind="sincos"), init_std=0.0)},
        objective=MAE.Config(mask_ratio=0.9, norm_target="channel", decoder=decoder),
        optim=AdamW.Config(
            lr=1.5e-4,
            lr_scaling="linear",
            betas=(0.9, 0.95),
            warmup=40 * epoch,
            final_lr=8e-5,
            weight_decay=0.05,
        ),
        batch_size=2048,
        steps=800 * epoch,
        evals=watched(every=20 * epoch),
    )


def vjepa_vitl16() -> Recipe:
    """V-JEPA's short-range masks, ViT-L, 90,000 steps of 3,072 (Bardes et al. 2024, arXiv 2404.08471).

    Command: multissl train video/vjepa_vitl16 --data FOLDER
    Size: 90,000 steps of 3,072, ViT-L/16; many GPUs.
    Measured: unmeasured

    Differs from the paper: that adds long-range masks (union=2, target_ratio 0.7) in the same step, here a run takes
    one of the two; gradients are clipped from the first step on, and not only after the warm-up; the predictor's fixed
    positions tell time by half of their channels, and not a third.
    """
    objective = IJEPA.Config(
        metric="power",
        targets=1,
        target_ratio=(0.15, 0.15),
        context_ratio=(1.0, 1.0),
        predictor=Decoder.Config(dim=384, depth=12, heads=16, init_std=0.02),
        teacher=Teacher.Config(ema=0.998, final_ema=1.0, ema_shape="linear", stretch=1.25),
    )
    return Recipe(
        modality=Video.Config(
            mask="block", union=8, global_scale=(0.3, 1.0), ratio=(0.75, 1.35), flip=0.5, **_plain()
        ),
        encoders={"video": vit("l", pooling="mean", position=Position(kind="sincos", uniform=True))},
        objective=objective,
        optim=AdamW.Config(
            lr=6.25e-4,
            warmup=12_000,
            warmup_lr=2e-4,
            final_lr=1e-6,
            weight_decay=0.04,
            final_weight_decay=0.4,
            decay_tokens=True,
            stretch=1.25,
        ),
        batch_size=3072,
        steps=90_000,
        clip=10.0,
        clip_per="module",
        evals=watched(every=5_000),
    )


def vjepa_continue() -> Recipe:
    """V-JEPA's objective from weights on: the predictor first, then the encoder at a low rate that falls with depth.

    Command: multissl train video/vjepa_continue --init vitl.pt --data FOLDER --modality.size 256
    Size: 5,000 steps of 32, the encoder of the weights; one GPU.
    Measured: unmeasured
    """
    # V-JEPA 2's weights are of clips of 16 frames, two to a token, at 256 pixels; a short predictor is enough for a
    # domain, and the teacher is slow as its targets are all that is learned from
    teacher = Teacher.Config(ema=0.998, final_ema=1.0, ema_shape="linear")
    objective = IJEPA.Config(
        metric="power", targets=1, target_ratio=(0.15, 0.15), context_ratio=(1.0, 1.0),
        predictor=Decoder.Config(dim=384, depth=6, heads=12, init_std=0.02), teacher=teacher,
    )  # fmt: skip
    return continued(
        "video",
        Video.Config(mask="block", union=8, global_scale=(0.3, 1.0), flip=0.5, **_plain()),
        TransformerEncoder.Config(pooling="mean"),
        objective,
        batch_size=32,
        clip=10.0,
        layer_decay=0.9,  # such encoders have 24 blocks and more
    )


def _plain() -> dict[str, Any]:
    return {"jitter": 0.0, "grayscale": 0.0}


def _small(objective: Objective.Config, color: bool = True) -> Recipe:
    """Clips of 8 frames, as large as suits the videos; the built-in ones have 32 x 32 pixels, in 64 tokens."""
    # Colors and places would tell a video from others without a look at its motion, so views change them at will.
    return Recipe(
        modality=Video.Config(
            frames=8,
            size=0,
            local_frames=4,
            local_size=0,
            patch=0,
            tubelet=2,
            stride=0,
            clips="apart",
            global_scale=(0.5, 1.0),
            local_scale=(0.25, 0.5),
            jitter=0.8 if color else 0.0,
            saturation=0.4,
            hue=0.3,
            grayscale=0.3 if color else 0.0,
        ),
        encoders={
            "video": TransformerEncoder.Config(
                dim=64, depth=3, heads=2, ffn_ratio=2.0, pooling="mean", init_std=0.0
            )
        },
        objective=objective,
        optim=AdamW.Config(lr=2e-3, warmup=50, weight_decay=0.04),
        batch_size=64,
        steps=400,
        evals=watched(every=200),
        save=Save(every=200),
    )
