"""Recipes for small pictures (CIFAR-10 and its like), one a method, sized for minutes on two processor cores.

They share batches of 256 and, but for the masked methods, a ResNet-10 of base width 24 with the small-image stem: 36
million multiplications a picture. `benchmarks/RESULTS.md` says what nine of them reach; the others (dcl, relic, mocov3,
nnclr, vicregl, wmse, msn, simmim, ijepa, data2vec) are unmeasured. Heads and queues are an eighth of the papers';
teachers are faster and targets sharper because the runs are short.
"""

from __future__ import annotations

from multissl.configs.common import batch_teacher, watched
from multissl.contract.encoder import Encoder
from multissl.contract.objective import Objective
from multissl.encoders.resnet import ResNetEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.checkpoint import Save
from multissl.engine.optim.adamw import AdamW
from multissl.layers.decoder import Decoder
from multissl.layers.heads import MLPHead, PrototypeHead
from multissl.layers.teacher import Teacher
from multissl.modalities.image.adapter import Image
from multissl.objectives.barlow import BarlowTwins
from multissl.objectives.byol import BYOL
from multissl.objectives.data2vec import Data2Vec
from multissl.objectives.dino import DINO
from multissl.objectives.ijepa import IJEPA
from multissl.objectives.infonce import InfoNCE
from multissl.objectives.mae import MAE
from multissl.objectives.moco import MoCo
from multissl.objectives.msn import MSN
from multissl.objectives.nnclr import NNCLR
from multissl.objectives.swav import SwAV
from multissl.objectives.vicreg import VICReg
from multissl.objectives.vicregl import VICRegL
from multissl.objectives.wmse import WMSE
from multissl.recipe import Recipe


def simclr_cifar() -> Recipe:
    """SimCLR (InfoNCE) for small pictures, minutes on two cores.

    multissl train image/simclr_cifar --data cifar10-train.parquet
    """
    return _small(InfoNCE.Config(temperature=0.2, projector=_projector(last_norm=True)))


def dcl_cifar() -> Recipe:
    """SimCLR without the positives in the denominator (DCL)."""
    made = simclr_cifar()
    made.objective = made.objective.replace(decoupled=True)
    return made


def relic_cifar() -> Recipe:
    """SimCLR with ReLIC's divergence between the views' distributions."""
    made = simclr_cifar()
    made.objective = made.objective.replace(relic=1.0)
    return made


def moco_cifar() -> Recipe:
    """MoCo v2 with a queue of 4,096 keys, both views asking."""
    return _small(
        MoCo.Config(queue=4096, symmetric=True, projector=_projector(), teacher=batch_teacher(0.99))
    )


def mocov3_cifar() -> Recipe:
    """MoCo v3: a predictor, keys from the batch, no queue."""
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
    """NNCLR with neighbours from the last 4,096 embeddings."""
    predictor = MLPHead.Config(hidden=512, out=128, layers=2)
    return _small(
        NNCLR.Config(queue=4096, temperature=0.2, projector=_projector(last_norm=True), predictor=predictor)
    )


def byol_cifar() -> Recipe:
    """BYOL with a teacher that starts at 0.97."""
    predictor = MLPHead.Config(hidden=512, out=128, layers=2)
    return _small(BYOL.Config(projector=_projector(), predictor=predictor, teacher=batch_teacher(0.97)))


def simsiam_cifar() -> Recipe:
    """SimSiam: BYOL's prediction of the student's own projection, without a teacher."""
    objective = BYOL.Config(
        target="student",
        projector=MLPHead.Config(hidden=512, out=512, layers=3, last_norm=True),
        predictor=MLPHead.Config(hidden=128, out=512, layers=2),
        constant_predictor_lr=True,
    )
    return _small(objective)


def vicreg_cifar() -> Recipe:
    """VICReg with an expander of 512."""
    return _small(VICReg.Config(projector=MLPHead.Config(hidden=512, out=512)))


def vicregl_cifar() -> Recipe:
    """VICRegL: VICReg on whole pictures and on matching places."""
    wide, narrow = MLPHead.Config(hidden=512, out=512), MLPHead.Config(hidden=128, out=128)
    return _small(VICRegL.Config(matches=(8, 4), projector=wide, token_projector=narrow))


def barlow_cifar() -> Recipe:
    """Barlow Twins with a projector of 512."""
    return _small(
        BarlowTwins.Config(redundancy=0.01, scale=0.1, projector=MLPHead.Config(hidden=512, out=512))
    )


def wmse_cifar() -> Recipe:
    """W-MSE: whitening in groups of 128, 64 wide."""
    return _small(WMSE.Config(projector=MLPHead.Config(hidden=512, out=64, layers=2)))


def swav_cifar() -> Recipe:
    """SwAV with 512 prototypes and two small views."""
    return _small(
        SwAV.Config(prototypes=512, num_local=2, epsilon=0.03, freeze_prototypes=20, projector=_projector()),
    )


def dino_cifar() -> Recipe:
    """DINO on a ResNet: 512 prototypes evened out by Sinkhorn-Knopp, two small views."""
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
    """MSN on a transformer: masked and small views sorted as the teacher sorts the whole one."""
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

    multissl train image/mae_cifar --data cifar10-train.parquet
    """
    made = _small(MAE.Config(decoder=Decoder.Config(dim=64, depth=2, heads=4)), _vit(), colour=False)
    made.modality.mask = "random"  # type: ignore[attr-defined]
    return made


def simmim_cifar() -> Recipe:
    """SimMIM: mask tokens go through the encoder, a linear layer rebuilds pixels."""
    objective = MAE.Config(masking="replace", mask_ratio=0.6, metric="l1", norm_target="none")
    made = _small(objective, _vit(), colour=False)
    made.modality.mask = "random"  # type: ignore[attr-defined]
    return made


def ijepa_cifar() -> Recipe:
    """I-JEPA: from a context, the teacher's features of four blocks."""
    predictor = Decoder.Config(dim=64, depth=2, heads=4)
    teacher = Teacher.Config(ema=0.99, ema_shape="linear")
    return _small(IJEPA.Config(predictor=predictor, teacher=teacher), _vit(), colour=False)


def data2vec_cifar() -> Recipe:
    """data2vec: at hidden tokens, the mean of the teacher's last three blocks."""
    teacher = Teacher.Config(ema=0.99, final_ema=0.9999, ema_shape="linear")
    return _small(Data2Vec.Config(top_k=3, teacher=teacher), _vit(), colour=False)


def _projector(last_norm: bool = False) -> MLPHead.Config:
    return MLPHead.Config(hidden=512, out=128, layers=2, last_norm=last_norm)


def _vit() -> TransformerEncoder.Config:
    # Narrow layers need initial weights of 1/sqrt(inputs) and learn nothing in few steps behind a small LayerScale.
    return TransformerEncoder.Config(dim=128, depth=6, heads=4, ffn_ratio=2.0, pooling="mean", init_std=0.0)


def _small(objective: Objective.Config, encoder: Encoder.Config | None = None, colour: bool = True) -> Recipe:
    return Recipe(
        modality=Image.Config(
            size=32,
            local_size=16,
            patch=4,
            global_scale=(0.2, 1.0),
            local_scale=(0.1, 0.3),
            jitter=0.8 if colour else 0.0,
            saturation=0.4,
            grey=0.2 if colour else 0.0,
            blur="none",
            solarise=0.0,
        ),
        encoders={"image": encoder or ResNetEncoder.Config(depth=10, width=24, stem="small")},
        objective=objective,
        optim=AdamW.Config(lr=2e-3, warmup=50, weight_decay=1e-4),
        batch_size=256,
        steps=600,
        evals=watched(every=300),
        save=Save(every=300),
    )
