"""Recipes for sound: a demo, methods, words and scenes for two processor cores, the published AudioMAE and BYOL-A.

The published ones carry their own hyperparameters and are unmeasured here: they need GPUs and AudioSet.
"""

from __future__ import annotations

from typing import Any

from multissl.configs.shared.common import batch_teacher, small_dino, watched
from multissl.configs.shared.continuing import FROZEN, continued
from multissl.contract.encoder import Encoder
from multissl.contract.objective import Objective
from multissl.encoders.resnet import ResNetEncoder
from multissl.encoders.transformer import TransformerEncoder, vit
from multissl.engine.checkpoint import Save
from multissl.engine.optim.adamw import AdamW
from multissl.evaluators.recording_probe import RecordingProbe
from multissl.layers.decoder import Decoder
from multissl.layers.heads import MLPHead, PrototypeHead
from multissl.layers.teacher import Teacher
from multissl.modalities.audio.adapter import Audio
from multissl.objectives.byol import BYOL
from multissl.objectives.data2vec import Data2Vec
from multissl.objectives.infonce import InfoNCE
from multissl.objectives.mae import MAE
from multissl.recipe import Recipe

CLIPS = 2_042_985
"""Of AudioSet's unbalanced and balanced training sets."""


def default() -> Recipe:
    """InfoNCE between two segments of a sound, which are stretched in time and frequency.

    Command: multissl train audio
    Size: 400 steps of 64, transformer 96 x 3; 2 minutes on two processor cores.
    Measured: k-NN 65.8 % on the built-in sounds (untrained 27.5, raw input 40.7); 2 minutes 17 seconds.
    """
    # Pitch and timbre are drawn for each sound and would identify it: segments are moved along both axes at will.
    return infonce()


def infonce() -> Recipe:
    """SimCLR on two random segments of a recording, with gain, noise, stretching and SpecAugment.

    Command: multissl train audio/infonce --data FOLDER
    Size: 400 steps of 64, transformer 96 x 3; 2 minutes on two processor cores.
    Measured: k-NN 65.8 % on the built-in sounds (untrained 27.5, raw input 40.7); 2 minutes 17 seconds.

    The same recipe as `audio/default`.
    """
    return _small(_pairs(), _segments())


def words() -> Recipe:
    """InfoNCE between two versions of a spoken word, as if said by another voice into another microphone.

    Command: multissl train audio/words --data digits --modality.group_pattern '_([a-z]+)_' --modality.hold_out lucas
    Size: 1,200 steps of 128, transformer 128 x 2; 4 minutes of one processor core.
    Measured: linear probe 75.1 % on digits of speakers never heard (untrained 45.0), mean of five speakers.
    """
    # Whole words, without the silence around them and of one length, so that what is compared is what was said when.
    modality = Audio.Config(
        rate=8000,
        mels=40,
        frames=64,
        local_frames=32,
        patch=(8, 40),
        short="fit",
        trim=30.0,
        dynamics=60.0,
        noise=1.0,
        snr=(0.0, 40.0),
        equalize=15.0,
        warp=0.15,
    )
    made = _small(_pairs(), modality, _encoder(dim=128, depth=2))
    made.batch_size, made.steps = 128, 1200
    return made


def scenes() -> Recipe:
    """InfoNCE between two versions of 5 s of surroundings, with a token for 80 ms of the full band.

    Command: multissl train audio/scenes --data FOLDER
    Size: 600 steps of 48, transformer 96 x 2; 8 minutes of one processor core.
    Measured: linear probe 78.4 % on esc10 (untrained 67.8), mean of four folds.
    """
    modality = Audio.Config(
        mels=64,
        frames=496,
        local_frames=248,
        patch=(8, 64),
        equalize=10.0,
        mixup=0.2,
        stretch=(0.6, 1.5),
    )
    made = _small(_pairs(temperature=0.1), modality, _encoder(dim=96, depth=2))
    made.batch_size, made.steps = 48, 600
    made.evals["recording"] = RecordingProbe.Config()
    return made


def byol_a() -> Recipe:
    """BYOL-A: two mixed and stretched segments predict each other's projection by a slow teacher.

    Command: multissl train audio/byol_a --data FOLDER
    Size: 400 steps of 64, transformer 96 x 3; minutes on two processor cores.
    Measured: unmeasured
    """
    head = MLPHead.Config(hidden=256, out=64, layers=2)
    return _small(
        BYOL.Config(projector=head, predictor=head, teacher=batch_teacher(0.97)), _segments(mixup=0.4)
    )


def dino() -> Recipe:
    """DINO on segments of time: local views are half as long, at full frequency.

    Command: multissl train audio/dino --data FOLDER
    Size: 400 steps of 64, transformer 96 x 3; minutes on two processor cores.
    Measured: unmeasured
    """
    return _small(small_dino(teacher_temperature_start=0.02, teacher_temperature=0.02), _segments())


def eat() -> Recipe:
    """EAT in small: hidden patches and the class token predict a teacher's layers, under four masks of each sound.

    Command: multissl train audio/eat --data FOLDER
    Size: 400 steps of 16, transformer 128 x 4; minutes on two processor cores.
    Measured: unmeasured

    Differs from the paper (Chen et al. 2024, arXiv 2401.03497): mask tokens go through the encoder, and a linear layer
    predicts where there are a convolutional decoder and kept tokens alone; the loss of the class token is a mean over
    rows.
    """
    encoder = TransformerEncoder.Config(dim=128, depth=4, heads=4, ffn_ratio=2.0, init_std=0.0)
    objective = Data2Vec.Config(
        mask_ratio=0.8,
        masks=4,
        top_k=4,
        final_norm="layer",
        beta=0.0,
        row_weight=1.0,
        teacher=Teacher.Config(ema=0.99, final_ema=0.9999, ema_shape="linear"),
    )
    modality = _whole(frames=0, local_frames=0, mels=64, patch=(8, 8), mask="block")
    made = _small(objective, modality, encoder)
    made.batch_size = 16
    return made


def audiomae() -> Recipe:
    """AudioMAE in small: a transformer rebuilds 80 % of the patches of 8 x 8.

    Command: multissl train audio/audiomae --data FOLDER
    Size: 400 steps of 64, transformer 128 x 4; minutes on two processor cores.
    Measured: unmeasured
    """
    encoder = TransformerEncoder.Config(
        dim=128, depth=4, heads=4, ffn_ratio=2.0, pooling="mean", init_std=0.0
    )
    objective = MAE.Config(mask_ratio=0.8, decoder=Decoder.Config(dim=64, depth=2, heads=4))
    return _small(objective, _whole(frames=0, local_frames=0, mels=64, patch=(8, 8)), encoder)


def audiomae_speech() -> Recipe:
    """AudioMAE in small with tokens of the full band, 2 frames long, as suits speech.

    Command: multissl train audio/audiomae_speech --data FOLDER
    Size: 400 steps of 64, transformer 128 x 4; minutes on two processor cores.
    Measured: unmeasured
    """
    made = audiomae()
    made.modality = made.modality.replace(patch=(2, 64))
    return made


def audiomae_vitb16() -> Recipe:
    """AudioMAE, ViT-B/16 on AudioSet-2M, 33 epochs of 512 (Huang et al. 2022, arXiv 2207.06405).

    Command: multissl train audio/audiomae_vitb16 --data FOLDER
    Size: 131,670 steps of 512, ViT-B/16; many GPUs.
    Measured: unmeasured

    Differs from the paper: the decoder is its variant with global attention, 8 blocks, as local windows are not built
    here; gain is uniform in decibels; weights begin truncated normal and not Xavier uniform.
    """
    encoder = vit("b", init_std=0.0)
    encoder.position = encoder.position.replace(kind="sincos")
    epoch = CLIPS // 512
    optim = AdamW.Config(
        lr=2e-4,
        lr_scaling="linear",
        weight_decay=1e-4,
        betas=(0.9, 0.95),
        final_lr=0.0,
        warmup=3 * epoch,
        decay_tokens=True,
    )
    return Recipe(
        modality=_whole(mean=-4.2677393, std=4.5689974),
        encoders={"audio": encoder},
        objective=MAE.Config(mask_ratio=0.8),
        optim=optim,
        batch_size=512,
        steps=33 * epoch,
        evals=watched(every=epoch),
        save=Save(every=epoch),
    )


def byol_a_resnet50() -> Recipe:
    """BYOL-A's views of 0.96 s on AudioSet, 100 epochs of 256 (Niizumi et al. 2021, arXiv 2103.06695).

    Command: multissl train audio/byol_a_resnet50 --data FOLDER
    Size: 798,000 steps of 256, ResNet-50; many GPUs.
    Measured: unmeasured

    Differs from the paper: the encoder is a ResNet-50, as its own convolutional network is not built here; batches are
    not normalised again after the augmentations.
    """
    head = MLPHead.Config(hidden=4096, out=256, layers=2)
    teacher = Teacher.Config(ema=0.99, final_ema=0.99, buffers="keep", batch_norm="batch")
    epoch = CLIPS // 256
    return Recipe(
        modality=_segments(
            frames=96, local_frames=48, mixup=0.4, gain=0.0, noise=0.0, time_mask=0.0, frequency_mask=0.0
        ),
        encoders={"audio": ResNetEncoder.Config(depth=50)},
        objective=BYOL.Config(projector=head, predictor=head, teacher=teacher, reduction="sum"),
        optim=AdamW.Config(lr=3e-4, final_lr=3e-4, weight_decay=0.0),
        batch_size=256,
        steps=100 * epoch,
        evals=watched(every=10 * epoch),
        save=Save(every=epoch),
    )


def dino_continue() -> Recipe:
    """DINO on segments of time from weights on: heads first, then the encoder at a low rate that falls with depth.

    Command: multissl train audio/dino_continue --init RUN --fit init --data FOLDER
    Size: 5,000 steps of 64, the encoder of the weights; one GPU.
    Measured: unmeasured

    For AST's weights, whose tokens overlap: --modality.stride 10 10, and without --fit init.
    """
    # of what is done to sounds, only what keeps their level and pitch: released encoders have learned by these
    head = PrototypeHead.Config(prototypes=2048, bottleneck=256, hidden=1024)
    return continued(
        "audio",
        Audio.Config(frames=512, local_frames=256, gain=6.0, noise=0.5, time_mask=0.1, frequency_mask=0.1),
        TransformerEncoder.Config(drop_path=0.1),
        small_dino(
            head=head, teacher=Teacher.Config(ema=0.994), num_local=4, freeze_last_layer=0,
            teacher_temperature_start=0.04, teacher_temperature=0.05, teacher_temperature_steps=2 * FROZEN,
        ),
        batch_size=64, clip=3.0, min_std=0.03,
    )  # fmt: skip


def _segments(**options: Any) -> Audio.Config:
    """Segments with 64 mel bins, as long as suits the recordings: 0.96 s of the built-in ones."""
    given = {"gain": 12.0, "noise": 1.0, "stretch": (0.6, 1.5), "time_mask": 0.1, "frequency_mask": 0.3}
    return Audio.Config(**{"frames": 0, "local_frames": 0, "mels": 64, **given, **options})


def _whole(**options: Any) -> Audio.Config:
    """Nothing but a turn in a circle and gain, as AudioMAE has it."""
    return Audio.Config(noise=0.0, time_mask=0.0, frequency_mask=0.0, roll=1.0, **options)


def _pairs(temperature: float = 0.2) -> InfoNCE.Config:
    """InfoNCE with a small projector."""
    projector = MLPHead.Config(hidden=256, out=64, layers=2, last_norm=True)
    return InfoNCE.Config(temperature=temperature, projector=projector)


def _encoder(**options: Any) -> TransformerEncoder.Config:
    """A small transformer that pools the mean of its tokens."""
    return TransformerEncoder.Config(
        heads=4, ffn_ratio=2.0, pooling="mean", layerscale=1.0, init_std=0.0, **options
    )


def _small(
    objective: Objective.Config, modality: Audio.Config, encoder: Encoder.Config | None = None
) -> Recipe:
    return Recipe(
        modality=modality,
        encoders={"audio": encoder or _encoder(dim=96, depth=3, conv_stem=True)},
        objective=objective,
        optim=AdamW.Config(lr=2e-3, warmup=20, weight_decay=1e-4),
        batch_size=64,
        steps=400,
        evals=watched(every=200, min_std=0.03),
        save=Save(every=200),
    )
