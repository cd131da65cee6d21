"""How well the attention of the class token covers the objects of a picture: the best head of each, by Jaccard.

Caron et al. 2021 (DINO, arXiv 2104.14294, section 4.2.2 and figure 4): the patches that hold 60 % of a head's attention
are its mask. The paper's score was never published as code: here the best head of each picture counts, masks are
compared on the grid of patches, and a patch is of an object where most of its pixels with a class are. Class and
register tokens are no patches and are left out. Encoders without a class token are refused, and so are those that hand
out no attention.
Shapes: S pictures, H heads, h x w tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from multissl.contract.abilities import IGNORED, HasAttention
from multissl.contract.data import Views
from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.evaluators.dense.attention import jaccard, keep_mass
from multissl.evaluators.dense.patch_knn import to_patches
from multissl.evaluators.dense.reading import pixel_modality, read_dense, space_of
from multissl.inference import stream_of


class AttentionJaccard(Evaluator):
    """Jaccard of the best head's attention with the objects, mean over pictures, in percent."""

    titles: ClassVar[dict[str, str]] = {"jaccard": "attention of the best head, Jaccard, %"}

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of attention masks."""

        size: int | tuple[int, int] = 0
        """Side of the views in pixels, or their height and width; 0: the modality's own size. DINO: 480."""
        mass: float = 0.6
        """Share of a head's attention that its mask holds."""
        background: tuple[int, ...] = (0,)
        """Classes of masks that are no object."""
        queries: int = 500
        """Pictures of the split, drawn with a fixed seed; 0: all."""
        split: str = "val"
        """Which pictures are scored."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            self.check_counts("queries")
            space_of(self.size)
            if not 0 < self.mass < 1:
                raise ValueError(f"mass={self.mass}: want more than 0 and less than 1")

    cfg: Config

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`jaccard` in percent, and `every_patch`, what a mask of the whole picture scores."""
        cfg = self.cfg
        if (pictures := pixel_modality(self, modality, "classes", cfg.split)) is None:
            return {}
        stream = stream_of(modality, cfg.stream)
        encoder = encoders.modules[stream] if encoders.modules is not None else None
        if not isinstance(encoder, HasAttention):
            name = type(encoder).__name__ if encoder is not None else "the encoder of a training that goes on"
            self.warn_nothing_to_measure(f"{name} hands out no attention")
            return {}

        def weights(views: Views) -> Tensor:
            encoders.encode([views])  # the gate of what is not finite
            return encoder.attention(views).float().transpose(1, 2)  # [R, N, H]

        with torch.no_grad():
            scored = read_dense(
                self, weights, pictures, cfg.split, "classes", limit=cfg.queries, size=space_of(cfg.size),
                device=encoders.device,
            )  # fmt: skip
        grid = scored.tokens.shape[2:]
        patches = to_patches(scored.labels, (grid[0], grid[1]))
        labels = patches.unflatten(0, (len(scored.labels), -1))  # [S, N, P]
        truth, some = objects(labels, cfg.background)
        if not bool(some.any()):
            self.warn_nothing_to_measure(f"no picture of the {cfg.split} split has an object")
            return {}
        heads = keep_mass(scored.tokens.flatten(2)[some], cfg.mass)  # [S, H, N]
        best = jaccard(heads, truth[some][:, None]).amax(1)
        groups = scored.groups[some.numpy()]
        whole = jaccard(torch.ones_like(truth[some]), truth[some])
        return {
            "jaccard": estimate(100 * best.numpy(), groups),
            "every_patch": estimate(100 * whole.numpy(), groups),
        }

    def metric_names(self) -> list[str]:
        """Those of the scores."""
        return ["jaccard", "every_patch"]


def objects(labels: Tensor, background: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return which patches are of an object, bool [S, N] of pixels [S, N, P], and which pictures have one, bool [S]."""
    known = labels != IGNORED
    inside = known & ~torch.isin(labels.long(), torch.tensor(background))
    truth = 2 * inside.sum(2) > known.sum(2)
    return truth, truth.any(1)
