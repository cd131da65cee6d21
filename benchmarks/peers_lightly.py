"""The peer's side of `peers.py`: lightly's transforms, heads and losses in a plain PyTorch loop.

Runs in an environment of its own, which has lightly and not multissl. Prints one line of JSON.

    python benchmarks/peers_lightly.py OBJECTIVE DATA.parquet STEPS SEED OUT.safetensors
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import copy
import io
import json
import math
import sys
import time
from typing import Any

import pyarrow.parquet
import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from lightly.models.modules import heads
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.simclr_transform import SimCLRTransform
from lightly.utils.scheduler import cosine_schedule
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

BATCH, LR, WARMUP, HIDDEN, WIDTH = 256, 2e-3, 50, 512, 24


class Pictures(torch.utils.data.Dataset[Any]):
    """Every row of the file but each tenth, which is held out; decoded at each access, as multissl does."""

    def __init__(self, path: str) -> None:
        rows = pyarrow.parquet.read_table(path, columns=["image"])["image"].to_pylist()
        self.files = [row["bytes"] for i, row in enumerate(rows) if i % 10 != 9]
        self.transform = SimCLRTransform(
            input_size=32, cj_strength=0.5, cj_sat=0.8, min_scale=0.2, gaussian_blur=0.0
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.open(io.BytesIO(self.files[index])).convert("RGB"))


class ResNet10(ResNet):
    """torchvision's ResNet with one block a stage, narrow, and the stem for small pictures."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1])
        self.inplanes = width
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1, self.maxpool, self.fc = nn.BatchNorm2d(width), nn.Identity(), nn.Identity()
        for stage in range(4):
            made = self._make_layer(BasicBlock, width * 2**stage, 1, stride=1 if stage == 0 else 2)
            setattr(self, f"layer{stage + 1}", made)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class SimCLR(nn.Module):
    """NT-Xent at temperature 0.2."""

    def __init__(self, backbone: nn.Module, dim: int) -> None:
        super().__init__()
        self.backbone, self.head = backbone, heads.SimCLRProjectionHead(dim, HIDDEN, 128)
        self.criterion = NTXentLoss(temperature=0.2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The loss of two views."""
        return self.criterion(self.head(self.backbone(a)), self.head(self.backbone(b)))


class VICReg(SimCLR):
    """VICReg with its published weights."""

    def __init__(self, backbone: nn.Module, dim: int) -> None:
        super().__init__(backbone, dim)
        self.head, self.criterion = heads.VICRegProjectionHead(dim, HIDDEN, HIDDEN), VICRegLoss()


class BYOL(nn.Module):
    """BYOL whose teacher follows with 0.99, rising to 1."""

    def __init__(self, backbone: nn.Module, dim: int) -> None:
        super().__init__()
        self.backbone, self.head = backbone, heads.BYOLProjectionHead(dim, HIDDEN, 128)
        self.predictor = heads.BYOLPredictionHead(128, HIDDEN, 128)
        self.teacher, self.teacher_head = copy.deepcopy(backbone), copy.deepcopy(self.head)
        deactivate_requires_grad(self.teacher)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = NegativeCosineSimilarity()

    def follow(self, step: int, steps: int) -> None:
        """Move the teacher."""
        momentum = cosine_schedule(step, steps, 0.99, 1.0)
        update_momentum(self.backbone, self.teacher, momentum)
        update_momentum(self.head, self.teacher_head, momentum)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The loss of two views."""
        p, q = (self.predictor(self.head(self.backbone(x))) for x in (a, b))
        with torch.no_grad():
            y, z = (self.teacher_head(self.teacher(x)) for x in (a, b))
        return 0.5 * (self.criterion(p, z) + self.criterion(q, y))


def main() -> None:
    """Train for some steps, save the encoder, print samples per second."""
    objective, path, steps, seed, out = sys.argv[1:6]
    torch.manual_seed(int(seed))
    last = int(steps)
    backbone = ResNet10()
    model = {"simclr": SimCLR, "vicreg": VICReg, "byol": BYOL}[objective](backbone, 8 * WIDTH)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LR, weight_decay=1e-4)
    loader = torch.utils.data.DataLoader(
        Pictures(path), BATCH, shuffle=True, drop_last=True, num_workers=1, persistent_workers=True
    )
    step, began = 0, time.perf_counter()
    while step < last:
        for views in loader:
            rate = LR * min(1.0, step / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / last))
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            model(*views).backward()
            optimizer.step()
            if isinstance(model, BYOL):
                model.follow(step, last)
            step += 1
            if step == last:
                break
    seconds = time.perf_counter() - began
    save_file({k: v.contiguous() for k, v in backbone.state_dict().items()}, out)
    print(json.dumps({"seconds": seconds, "samples_per_s": last * BATCH / seconds}))


if __name__ == "__main__":
    main()
