"""Recipes of the papers for ImageNet-1k, one a method, with their own hyperparameters.

All are unmeasured here: they need many GPUs. Where ours differs from a paper the recipe says so, after "Differs from
the paper"; every value is compared with the official code or the paper in `tests/configs/published`. Steps are epochs
of 1,281,167 pictures in batches of the paper's size; a learning rate is for 256 pictures and scaled linearly.
Interpolation is bicubic with antialiasing for all, and blur has at most 23 pixels, whatever the papers' libraries do.
"""

from __future__ import annotations

from typing import Any

from multissl.configs.shared.common import batch_teacher, watched
from multissl.contract.encoder import Encoder
from multissl.contract.objective import Objective
from multissl.encoders.resnet import ResNetEncoder
from multissl.encoders.transformer import TransformerEncoder, vit
from multissl.engine.checkpoint import Save
from multissl.engine.optim.adamw import AdamW
from multissl.engine.optim.base import Optimizer
from multissl.engine.optim.lars import LARS
from multissl.engine.optim.sgd import SGD
from multissl.layers.decoder import Decoder
from multissl.layers.heads import MLPHead
from multissl.layers.positions import Position
from multissl.layers.teacher import Teacher
from multissl.modalities.image.adapter import Image
from multissl.objectives.barlow import BarlowTwins
from multissl.objectives.byol import BYOL
from multissl.objectives.data2vec import Data2Vec
from multissl.objectives.ijepa import IJEPA
from multissl.objectives.infonce import InfoNCE
from multissl.objectives.mae import MAE
from multissl.objectives.moco import MoCo
from multissl.objectives.msn import MSN
from multissl.objectives.nnclr import NNCLR
from multissl.objectives.swav import SwAV
from multissl.objectives.vicreg import VICReg
from multissl.objectives.vicregl import VICRegL
from multissl.recipe import Recipe

PICTURES = 1_281_167


def simclr_resnet50() -> Recipe:
    """SimCLR, ResNet-50, 1,000 epochs of 4,096 (Chen et al. 2020, arXiv 2002.05709).

    Command: multissl train image/simclr_resnet50 --data torchvision:ImageNet?root=FOLDER
    Size: 312,000 steps of 4,096, ResNet-50; many GPUs.
    Measured: unmeasured
    """
    color = _colors(strength=2.0, saturation=0.8, global_scale=(0.08, 1.0), blur="half", solarize=0.0)
    return _paper(InfoNCE.Config(temperature=0.1), _lars(0.3, 1e-6), color, 4096, 1000)


def mocov2_resnet50() -> Recipe:
    """MoCo v2, ResNet-50, 800 epochs of 256 (Chen et al. 2020, arXiv 2003.04297).

    Command: multissl train image/mocov2_resnet50 --data torchvision:ImageNet?root=FOLDER
    Size: 4,003,200 steps of 256, ResNet-50; many GPUs.
    Measured: unmeasured

    Differs from the paper: key batches are not shuffled between GPUs, the backbone's batch norm spans all ranks
    instead; the learning rate falls every step and not every epoch.
    """
    optim = SGD.Config(lr=0.03, lr_scaling="linear", weight_decay=1e-4, final_lr=0.0, decay_vectors=True)
    return _paper(
        MoCo.Config(), optim, _mocov2_views(), 256, 800, warmup=0, encoder=_resnet50(zero_init=False)
    )


def mocov3_vitb16() -> Recipe:
    """MoCo v3, ViT-B/16, 300 epochs of 4,096 (Chen et al. 2021, arXiv 2104.02057).

    Command: multissl train image/mocov3_vitb16 --data torchvision:ImageNet?root=FOLDER
    Size: 93,600 steps of 4,096, ViT-B/16; many GPUs.
    Measured: unmeasured

    Differs from the paper: weights begin truncated normal with the deviation of 1/sqrt(inputs), not Xavier uniform.
    """
    predictor = MLPHead.Config(hidden=4096, out=256, layers=2, last_norm=True)
    objective = MoCo.Config(
        queue=0,
        symmetric=True,
        reference_sum=True,
        projector=MLPHead.Config(hidden=4096, out=256, layers=3, last_norm=True),
        predictor=predictor,
        teacher=batch_teacher(0.99),
    )
    optim = AdamW.Config(
        lr=1.5e-4, lr_scaling="linear", weight_decay=0.1, final_lr=0.0, decay_tokens=True, decay_vectors=True
    )
    position = Position(kind="sincos", column_first=False)
    encoder = vit("b", freeze_patches=True, position=position, init_std=0.0)
    return _paper(objective, optim, _byol_views(), 4096, 300, warmup=40, encoder=encoder)


def nnclr_resnet50() -> Recipe:
    """NNCLR, ResNet-50, 1,000 epochs of 4,096 (Dwibedi et al. 2021, arXiv 2104.14548).

    Command: multissl train image/nnclr_resnet50 --data torchvision:ImageNet?root=FOLDER
    Size: 312,000 steps of 4,096, ResNet-50; many GPUs.
    Measured: unmeasured

    There is no official code; the values are the paper's.
    """
    return _paper(NNCLR.Config(queue=98_304), _lars(0.3, 1e-6), _byol_views(), 4096, 1000)


def byol_resnet50() -> Recipe:
    """BYOL, ResNet-50, 1,000 epochs of 4,096 (Grill et al. 2020, arXiv 2006.07733).

    Command: multissl train image/byol_resnet50 --data torchvision:ImageNet?root=FOLDER
    Size: 312,000 steps of 4,096, ResNet-50; many GPUs.
    Measured: unmeasured
    """
    return _paper(
        BYOL.Config(reduction="sum"),
        _lars(0.2, 1.5e-6),
        _byol_views(),
        4096,
        1000,
        encoder=_resnet50(zero_init=False),
    )


def simsiam_resnet50() -> Recipe:
    """SimSiam, ResNet-50, 100 epochs of 512 (Chen and He 2021, arXiv 2011.10566).

    Command: multissl train image/simsiam_resnet50 --data torchvision:ImageNet?root=FOLDER
    Size: 250,200 steps of 512, ResNet-50; many GPUs.
    Measured: unmeasured

    Differs from the paper: the learning rate falls every step and not every epoch.
    """
    objective = BYOL.Config(
        target="student",
        scale=0.5,
        projector=MLPHead.Config(hidden=2048, out=2048, layers=3, last_norm=True),
        predictor=MLPHead.Config(hidden=512, out=2048, layers=2),
        constant_predictor_lr=True,
    )
    optim = SGD.Config(lr=0.05, lr_scaling="linear", weight_decay=1e-4, final_lr=0.0, decay_vectors=True)
    return _paper(objective, optim, _mocov2_views(), 512, 100, warmup=0)


def vicreg_resnet50() -> Recipe:
    """VICReg, ResNet-50, 1,000 epochs of 2,048 (Bardes et al. 2022, arXiv 2105.04906).

    Command: multissl train image/vicreg_resnet50 --data torchvision:ImageNet?root=FOLDER
    Size: 625,000 steps of 2,048, ResNet-50; many GPUs.
    Measured: unmeasured
    """
    return _paper(VICReg.Config(), _lars(0.2, 1e-6, final_lr=1.6e-3), _byol_views(), 2048, 1000)


def vicregl_resnet50() -> Recipe:
    """VICRegL, ResNet-50, 300 epochs of 2,048 (Bardes et al. 2022, arXiv 2210.01571).

    Command: multissl train image/vicregl_resnet50 --data torchvision:ImageNet?root=FOLDER
    Size: 187,500 steps of 2,048, ResNet-50; many GPUs.
    Measured: unmeasured

    Two whole views and no small ones, as in the paper's ResNet runs; alpha is that of the better of the two released.
    """
    objective = VICRegL.Config(alpha=0.9, all_by_features=True)
    return _paper(objective, _lars(0.2, 1e-6, final_lr=1.6e-3), _byol_views(), 2048, 300)


def barlow_resnet50() -> Recipe:
    """Barlow Twins, ResNet-50, 1,000 epochs of 2,048 (Zbontar et al. 2021, arXiv 2103.03230).

    Command: multissl train image/barlow_resnet50 --data torchvision:ImageNet?root=FOLDER
    Size: 625,000 steps of 2,048, ResNet-50; many GPUs.
    Measured: unmeasured

    Biases and norms have the paper's own rate, 0.0048, which is 0.024 of that of the weights.
    """
    optim = _lars(0.2, 1.5e-6, final_lr=1.6e-3)
    optim.vector_lr = 0.024
    return _paper(BarlowTwins.Config(), optim, _byol_views(), 2048, 1000)


def swav_resnet50() -> Recipe:
    """SwAV, ResNet-50, 800 epochs of 4,096, 2 + 6 views (Caron et al. 2020, arXiv 2006.09882).

    Command: multissl train image/swav_resnet50 --data torchvision:ImageNet?root=FOLDER
    Size: 249,600 steps of 4,096, ResNet-50; many GPUs.
    Measured: unmeasured

    Differs from the paper: batch norm spans all ranks and not 8 of them.
    """
    views = _colors(
        strength=2.0, saturation=0.8, global_scale=(0.14, 1.0), local_scale=(0.05, 0.14), solarize=0.0,
        blur="half",
    )  # fmt: skip
    optim = _lars(0.3, 1e-6, final_lr=4.8e-3).replace(
        warmup_lr=0.3, norms="separate", exclude_vectors=False, decay_vectors=True
    )
    objective = SwAV.Config(freeze_prototypes=313)
    return _paper(objective, optim, views, 4096, 800, encoder=_resnet50(zero_init=False))


def msn_vits16() -> Recipe:
    """MSN, ViT-S/16, 800 epochs of 1,024, 1 + 10 anchors (Assran et al. 2022, arXiv 2204.07141).

    Command: multissl train image/msn_vits16 --data torchvision:ImageNet?root=FOLDER
    Size: 1,000,800 steps of 1,024, ViT-S/16; many GPUs.
    Measured: unmeasured

    Differs from the paper: the projector has ReLU in place of GELU, and its gradients are clipped apart from the
    encoder's; every picture hides patches of its own, and not those of its batch.
    """
    views = _colors(
        saturation=0.4,
        global_scale=(0.3, 1.0),
        local_scale=(0.05, 0.3),
        blur="half",
        solarize=0.0,
        mask="random",
    )
    optim = AdamW.Config(
        lr=1e-3, warmup_lr=2e-4, weight_decay=0.04, final_weight_decay=0.4, decay_tokens=True, stretch=1.25
    )
    teacher = batch_teacher(0.996).replace(ema_shape="linear", stretch=1.25)
    objective = MSN.Config(sinkhorn_rounds=3, teacher=teacher)
    made = _paper(objective, optim, views, 1024, 800, warmup=15, encoder=vit("s"))
    return made.replace(clip=3.0, clip_per="module")


def mae_vitb16() -> Recipe:
    """MAE, ViT-B/16, 800 epochs of 4,096 (He et al. 2022, arXiv 2111.06377).

    Command: multissl train image/mae_vitb16 --data torchvision:ImageNet?root=FOLDER
    Size: 249,600 steps of 4,096, ViT-B/16; many GPUs.
    Measured: unmeasured

    Differs from the paper: weights begin truncated normal with the deviation of 1/sqrt(inputs), not Xavier uniform.
    """
    optim = AdamW.Config(
        lr=1.5e-4, lr_scaling="linear", weight_decay=0.05, betas=(0.9, 0.95), final_lr=0.0, decay_tokens=True
    )
    encoder = vit("b", init_std=0.0)
    encoder.position = encoder.position.replace(kind="sincos")
    return _paper(MAE.Config(), optim, _plain((0.2, 1.0)), 4096, 800, warmup=40, encoder=encoder)


def simmim_vitb16() -> Recipe:
    """SimMIM, ViT-B/16 at 224 pixels, 800 epochs of 2,048 (Xie et al. 2022, arXiv 2111.09886).

    Command: multissl train image/simmim_vitb16 --data torchvision:ImageNet?root=FOLDER
    Size: 500,000 steps of 2,048, ViT-B/16; many GPUs.
    Measured: unmeasured

    Differs from the paper: positions are a learned table in place of a relative bias shared by all blocks; the last
    layers of deep blocks do not begin smaller; the mask token has no weight decay.
    """
    epoch = PICTURES // 2048
    objective = MAE.Config(masking="replace", mask_ratio=0.6, metric="l1", norm_target="none")
    optim = AdamW.Config(
        lr=5e-5,
        lr_scaling="linear",
        warmup_lr=2e-6,
        weight_decay=0.05,
        lr_shape="steps",
        lr_drops=(700 * epoch,),
    )
    encoder = vit("b", layerscale=0.1, drop_path=0.1, drop_path_shape="linear")
    views = _plain((0.67, 1.0)).replace(mask_patch=32)
    return _paper(objective, optim, views, 2048, 800, encoder=encoder).replace(clip=5.0)


def ijepa_vith14() -> Recipe:
    """I-JEPA, ViT-H/14, 300 epochs of 2,048 (Assran et al. 2023, arXiv 2301.08243).

    Command: multissl train image/ijepa_vith14 --data torchvision:ImageNet?root=FOLDER
    Size: 187,500 steps of 2,048, ViT-H/14; many GPUs.
    Measured: unmeasured

    Differs from the paper: targets and context are drawn as there, but not trimmed to the top of the picture; the
    encoder has a class token, which is not pooled; the last linears of the blocks do not begin smaller with depth.
    """
    optim = AdamW.Config(
        lr=1e-3, warmup_lr=2e-4, weight_decay=0.04, final_weight_decay=0.4, decay_tokens=True
    )
    encoder = TransformerEncoder.Config(dim=1280, depth=32, heads=16, pooling="mean")
    encoder.position = encoder.position.replace(kind="sincos")
    views = _plain((0.3, 1.0)).replace(patch=14, local_size=98, mask="block", flip=0.0)
    objective = IJEPA.Config(predictor=Decoder.Config(dim=384, depth=12, heads=16, init_std=0.02))
    return _paper(objective, optim, views, 2048, 300, warmup=40, encoder=encoder)


def data2vec_vitb16() -> Recipe:
    """data2vec, ViT-B/16, 375,300 steps of 2,048 (Baevski et al. 2022, arXiv 2202.03555).

    Command: multissl train image/data2vec_vitb16 --data torchvision:ImageNet?root=FOLDER
    Size: 375,300 steps of 2,048, ViT-B/16; many GPUs.
    Measured: unmeasured

    The values are those of the public configuration in fairseq, which calls these steps 300 epochs. Differs from the
    paper: that has 800 epochs at a rate of 2e-3 and hides 60 %. Differs from the configuration: positions are a learned
    table in place of a relative bias shared by all blocks; no dropout of attention; a linear head predicts; the teacher
    has patches of its own; every picture hides exactly 75 tokens; colours change after the crop.
    """
    optim = AdamW.Config(
        lr=5e-4, weight_decay=0.05, betas=(0.9, 0.999), final_lr=0.0, decay_tokens=True, decay_vectors=True
    )
    views = _plain((0.08, 1.0)).replace(
        mask="block", mask_smallest=16, jitter=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0
    )
    encoder = vit("b", layerscale=1e-4, drop_path=0.25, drop_path_shape="linear")
    objective = Data2Vec.Config(
        mask_ratio=75 / 196,
        top_k=6,
        layer_norm="none",
        final_norm="layer",
        beta=2.0,
        teacher=Teacher.Config(ema=0.999, final_ema=0.9998, ema_shape="linear"),
    )
    made = _paper(objective, optim, views, 2048, 600, encoder=encoder)
    made.optim.warmup = 12_510
    return made.replace(steps=375_300, clip=3.0)


def _paper(
    objective: Objective.Config,
    optim: Optimizer.Config,
    views: Image.Config,
    batch_size: int,
    epochs: int,
    warmup: int = 10,
    encoder: Encoder.Config | None = None,
) -> Recipe:
    epoch = PICTURES // batch_size
    optim.warmup = warmup * epoch
    return Recipe(
        modality=views,
        encoders={"image": encoder or _resnet50()},
        objective=objective,
        optim=optim,
        batch_size=batch_size,
        steps=epochs * epoch,
        evals=watched(every=10 * epoch),
        save=Save(every=epoch),
    )


def _resnet50(zero_init: bool = True) -> ResNetEncoder.Config:
    return ResNetEncoder.Config(depth=50, zero_init_residual=zero_init)


def _lars(lr: float, weight_decay: float, final_lr: float = 0.0) -> LARS.Config:
    return LARS.Config(lr=lr, lr_scaling="linear", weight_decay=weight_decay, final_lr=final_lr)


def _colors(strength: float = 1.0, **options: Any) -> Image.Config:
    """Jitter of 0.4, 0.4 and hue 0.1, times a strength, and what else an article changes; blur of 23 pixels."""
    made = Image.Config(
        brightness=0.4 * strength, contrast=0.4 * strength, hue=0.1 * strength, local_size=96, blur_kernel=23
    )
    return made.replace(**options)


def _byol_views() -> Image.Config:
    return _colors(global_scale=(0.08, 1.0), saturation=0.2, blur="paper", solarize=0.2)


def _mocov2_views() -> Image.Config:
    return _colors(global_scale=(0.2, 1.0), saturation=0.4, blur="half", solarize=0.0)


def _plain(scale: tuple[float, float]) -> Image.Config:
    """Crops and flips only, random masks."""
    return Image.Config(
        global_scale=scale, jitter=0.0, grayscale=0.0, blur="none", solarize=0.0, mask="random", local_size=96
    )
