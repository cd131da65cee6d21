"""Recipes for small pictures (CIFAR-10 and its like), one per method, sized for minutes on two processor cores.

They share batches of 256 and, but for the masked methods, a ResNet-10 of base width 24 with the small-image stem: 36
million multiplications per picture. Measured ones have a table in `benchmarks/RESULTS.md`. Heads and queues are an
eighth of the papers'; teachers are faster and targets sharper because the runs are short.
"""

from __future__ import annotations

from multissl.configs.shared.common import batch_teacher, watched
from multissl.contract.encoder import Encoder
from multissl.contract.objective import Objective
from multissl.encoders.resnet import ResNetEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.checkpoint import Save
from multissl.engine.optim.adamw import AdamW
from multissl.layers.decoder import Decoder
from multissl.layers.heads import MLPHead, PrototypeHead, UnitHead
from multissl.layers.teacher import Teacher
from multissl.modalities.image.adapter import Image
from multissl.objectives.barlow import BarlowTwins
from multissl.objectives.byol import BYOL
from multissl.objectives.data2vec import Data2Vec
from multissl.objectives.dino import DINO
from multissl.objectives.distill import Distill
from multissl.objectives.ijepa import IJEPA
from multissl.objectives.infonce import InfoNCE
from multissl.objectives.lejepa import LeJEPA
from multissl.objectives.mae import MAE
from multissl.objectives.moco import MoCo
from multissl.objectives.msn import MSN
from multissl.objectives.nnclr import NNCLR
from multissl.objectives.simdino import SimDINO
from multissl.objectives.swav import SwAV
from multissl.objectives.vicreg import VICReg
from multissl.objectives.vicregl import VICRegL
from multissl.objectives.visreg import VISReg
from multissl.objectives.wmse import WMSE
from multissl.recipe import Recipe


def simclr_cifar() -> Recipe:
    """SimCLR (InfoNCE) for small pictures.

    Command: multissl train image/simclr_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: k-NN 48.2 % on CIFAR-10 (untrained 31.45) with `--steps 300`, 7.5 minutes of one core.

    On all 50,000 training pictures, with batches of 128 and a rate of 1.5e-3: 58.2 % after 2,000 steps, 17 minutes of
    two cores.
    """
    return _small(InfoNCE.Config(temperature=0.2, projector=_projector(last_norm=True)))


def dcl_cifar() -> Recipe:
    """SimCLR without the positives in the denominator (DCL).

    Command: multissl train image/dcl_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: unmeasured
    """
    made = simclr_cifar()
    made.objective = made.objective.replace(decoupled=True)
    return made


def relic_cifar() -> Recipe:
    """SimCLR with ReLIC's divergence between the distributions of the views.

    Command: multissl train image/relic_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: unmeasured
    """
    made = simclr_cifar()
    made.objective = made.objective.replace(relic=1.0)
    return made


def moco_cifar() -> Recipe:
    """MoCo v2 with a queue of 4,096 keys, symmetric.

    Command: multissl train image/moco_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: k-NN 44.55 % on CIFAR-10 (untrained 31.45) with `--steps 200`, 7.2 minutes of one core.
    """
    return _small(
        MoCo.Config(queue=4096, symmetric=True, projector=_projector(), teacher=batch_teacher(0.99))
    )


def mocov3_cifar() -> Recipe:
    """MoCo v3: a predictor, keys from the batch, no queue.

    Command: multissl train image/mocov3_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: unmeasured
    """
    predictor = MLPHead.Config(hidden=512, out=128, layers=2, last_norm=True)
    objective = MoCo.Config(
        queue=0,
        symmetric=True,
        projector=_projector(last_norm=True),
        predictor=predictor,
        teacher=batch_teacher(0.99),
    )
    return _small(objective)


def nnclr_cifar() -> Recipe:
    """NNCLR with neighbors from the last 4,096 embeddings.

    Command: multissl train image/nnclr_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: unmeasured
    """
    predictor = MLPHead.Config(hidden=512, out=128, layers=2)
    return _small(
        NNCLR.Config(queue=4096, temperature=0.2, projector=_projector(last_norm=True), predictor=predictor)
    )


def byol_cifar() -> Recipe:
    """BYOL with a teacher that starts at 0.97.

    Command: multissl train image/byol_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: k-NN 38.55 % on CIFAR-10 (untrained 31.45) with `--steps 300`, 10.6 minutes of one core.
    """
    predictor = MLPHead.Config(hidden=512, out=128, layers=2)
    return _small(BYOL.Config(projector=_projector(), predictor=predictor, teacher=batch_teacher(0.97)))


def simsiam_cifar() -> Recipe:
    """SimSiam: BYOL's prediction of the student's own projection, without a teacher.

    Command: multissl train image/simsiam_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: k-NN 39.9 % on CIFAR-10 (untrained 31.45) with `--steps 200`, 5.6 minutes of one core.
    """
    objective = BYOL.Config(
        target="student",
        projector=MLPHead.Config(hidden=512, out=512, layers=3, last_norm=True),
        predictor=MLPHead.Config(hidden=128, out=512, layers=2),
        constant_predictor_lr=True,
    )
    return _small(objective)


def vicreg_cifar() -> Recipe:
    """VICReg with an expander of 512.

    Command: multissl train image/vicreg_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: k-NN 44.65 % on CIFAR-10 (untrained 31.45) with `--steps 200`, 4.9 minutes of one core.
    """
    return _small(VICReg.Config(projector=MLPHead.Config(hidden=512, out=512)))


def vicregl_cifar() -> Recipe:
    """VICRegL: VICReg on whole pictures and on matching places.

    Command: multissl train image/vicregl_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: unmeasured
    """
    wide, narrow = MLPHead.Config(hidden=512, out=512), MLPHead.Config(hidden=128, out=128)
    return _small(VICRegL.Config(matches=(8, 4), projector=wide, token_projector=narrow))


def barlow_cifar() -> Recipe:
    """Barlow Twins with a projector of 512 and lambda 0.01.

    Command: multissl train image/barlow_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: k-NN 47.5 % on CIFAR-10 (untrained 31.45) with `--steps 500`, 13.9 minutes of one core.
    """
    return _small(
        BarlowTwins.Config(redundancy=0.01, scale=0.1, projector=MLPHead.Config(hidden=512, out=512))
    )


def wmse_cifar() -> Recipe:
    """W-MSE: whitening in groups of 128, with 64 channels.

    Command: multissl train image/wmse_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: unmeasured
    """
    return _small(WMSE.Config(projector=MLPHead.Config(hidden=512, out=64, layers=2)))


def lejepa_cifar() -> Recipe:
    """LeJEPA: four views come together and embeddings become Gaussian, without a teacher.

    Command: multissl train image/lejepa_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: unmeasured
    """
    projector = MLPHead.Config(hidden=512, out=32)
    return _small(LeJEPA.Config(weight=0.02, num_local=2, slices=256, projector=projector))


def visreg_cifar() -> Recipe:
    """VISReg: center, scale and shape of the embeddings of four views are those of a normal distribution.

    Command: multissl train image/visreg_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: unmeasured
    """
    projector = MLPHead.Config(hidden=512, out=64)
    return _small(VISReg.Config(num_global=2, num_local=2, slices=256, projector=projector))


def simdino_cifar() -> Recipe:
    """SimDINO on a ResNet: views agree with a teacher, and the coding rate keeps samples apart.

    Command: multissl train image/simdino_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: unmeasured
    """
    objective = SimDINO.Config(
        patch_weight=0.0,
        epsilon=0.5,
        num_local=2,
        head=UnitHead.Config(hidden=512, out=64, norm="batch", init_std=0.0),
        teacher=Teacher.Config(ema=0.9, final_ema=0.99, buffers="keep", batch_norm="batch"),
    )
    return _small(objective)


def simdinov2_cifar() -> Recipe:
    """SimDINOv2 on a transformer: SimDINO with masked views, whose hidden tokens agree with the teacher's, too.

    Command: multissl train image/simdinov2_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, transformer 128 x 6; minutes on two processor cores.
    Measured: unmeasured
    """
    objective = SimDINO.Config(
        num_local=4,
        head=UnitHead.Config(hidden=512, out=64, init_std=0.0),
        teacher=Teacher.Config(ema=0.9, final_ema=0.99),
    )
    return _small(objective, _vit())


def swav_cifar() -> Recipe:
    """SwAV with 512 prototypes and two small views.

    Command: multissl train image/swav_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: k-NN 41.7 % on CIFAR-10 (untrained 31.45) with `--steps 300`, 10.6 minutes of one core.
    """
    return _small(
        SwAV.Config(prototypes=512, num_local=2, epsilon=0.03, freeze_prototypes=20, projector=_projector()),
    )


def dino_cifar() -> Recipe:
    """DINO on a ResNet: 512 prototypes balanced by Sinkhorn-Knopp, two small views.

    Command: multissl train image/dino_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, ResNet-10 of width 24; minutes on two processor cores.
    Measured: k-NN 36.7 % on CIFAR-10 (untrained 31.45) with `--steps 200`, 7.8 minutes of one core.
    """
    objective = DINO.Config(
        ibot_weight=0.0,
        koleo_weight=0.0,
        num_local=2,
        head=PrototypeHead.Config(prototypes=512, bottleneck=64, hidden=512, norm="batch", init_std=0.0),
        teacher=Teacher.Config(ema=0.9, final_ema=0.99, buffers="keep", batch_norm="batch"),
        teacher_temperature_start=0.04,
        teacher_temperature=0.04,
        freeze_last_layer=20,
    )
    return _small(objective)


def msn_cifar() -> Recipe:
    """MSN on a transformer: masked and small views are assigned as the teacher assigns the whole one.

    Command: multissl train image/msn_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, transformer 128 x 6; minutes on two processor cores.
    Measured: unmeasured
    """
    objective = MSN.Config(
        prototypes=256,
        num_local=4,
        sinkhorn_rounds=3,
        projector=MLPHead.Config(hidden=256, out=128),
        teacher=batch_teacher(0.97),
    )
    return _small(objective, _vit())


def mae_cifar() -> Recipe:
    """MAE: a small transformer rebuilds three quarters of the patches.

    Command: multissl train image/mae_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, transformer 128 x 6; minutes on two processor cores.
    Measured: linear probe 45.7 % on CIFAR-10 (untrained 38.85), k-NN 34.0 % (32.4), 6.0 minutes of one core.
    """
    made = _small(MAE.Config(decoder=Decoder.Config(dim=64, depth=2, heads=4)), _vit(), color=False)
    made.modality.mask = "random"  # type: ignore[attr-defined]
    return made


def simmim_cifar() -> Recipe:
    """SimMIM: mask tokens go through the encoder, a linear layer rebuilds pixels.

    Command: multissl train image/simmim_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, transformer 128 x 6; minutes on two processor cores.
    Measured: unmeasured
    """
    objective = MAE.Config(masking="replace", mask_ratio=0.6, metric="l1", norm_target="none")
    made = _small(objective, _vit(), color=False)
    made.modality.mask = "random"  # type: ignore[attr-defined]
    return made


def ijepa_cifar() -> Recipe:
    """I-JEPA: predicts the teacher's features of four blocks from a context.

    Command: multissl train image/ijepa_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, transformer 128 x 6; minutes on two processor cores.
    Measured: unmeasured
    """
    predictor = Decoder.Config(dim=64, depth=2, heads=4)
    teacher = Teacher.Config(ema=0.99, ema_shape="linear")
    return _small(IJEPA.Config(predictor=predictor, teacher=teacher), _vit(), color=False)


def data2vec_cifar() -> Recipe:
    """data2vec: predicts the mean of the teacher's last three blocks at hidden tokens.

    Command: multissl train image/data2vec_cifar --data cifar10-train.parquet
    Size: 600 steps of 256, transformer 128 x 6; minutes on two processor cores.
    Measured: unmeasured
    """
    teacher = Teacher.Config(ema=0.99, final_ema=0.9999, ema_shape="linear")
    return _small(Data2Vec.Config(top_k=3, teacher=teacher), _vit(), color=False)


def data2vec_masks_cifar() -> Recipe:
    """data2vec with four masks of each picture, which the teacher sees once, as in data2vec 2.0.

    Command: multissl train image/data2vec_masks_cifar --data cifar10-train.parquet
    Size: 600 steps of 64, transformer 128 x 6; minutes on two processor cores.
    Measured: unmeasured
    """
    made = data2vec_cifar()
    made.objective = made.objective.replace(masks=4, beta=0.0, final_norm="layer")
    made.batch_size = 64
    return made


def distill() -> Recipe:
    """Distillation: a small transformer has the features of a teacher, a run's folder or published weights.

    Command: multissl train image/distill --data cifar10-train.parquet --objective.teachers.main.weights runs/TEACHER
    Size: 600 steps of 256, transformer 128 x 6; minutes on two processor cores.
    Measured: unmeasured

    Without weights the teacher is an untrained network, from which little is learned.
    """
    head = MLPHead.Config(hidden=256, layers=2, norm="layer")
    return _small(Distill.Config(tokens="mixed", head=head), _vit())


def _projector(last_norm: bool = False) -> MLPHead.Config:
    return MLPHead.Config(hidden=512, out=128, layers=2, last_norm=last_norm)


def _vit() -> TransformerEncoder.Config:
    # Narrow layers need initial weights of 1/sqrt(inputs) and learn nothing in few steps behind a small LayerScale.
    return TransformerEncoder.Config(dim=128, depth=6, heads=4, ffn_ratio=2.0, pooling="mean", init_std=0.0)


def _small(objective: Objective.Config, encoder: Encoder.Config | None = None, color: bool = True) -> Recipe:
    return Recipe(
        modality=Image.Config(
            size=32,
            local_size=16,
            patch=4,
            global_scale=(0.2, 1.0),
            local_scale=(0.1, 0.3),
            jitter=0.8 if color else 0.0,
            saturation=0.4,
            grayscale=0.2 if color else 0.0,
            blur="none",
            solarize=0.0,
        ),
        encoders={"image": encoder or ResNetEncoder.Config(depth=10, width=24, stem="small")},
        objective=objective,
        optim=AdamW.Config(lr=2e-3, warmup=50, weight_decay=1e-4),
        batch_size=256,
        steps=600,
        evals=watched(every=300),
        save=Save(every=300),
    )
