"""Attentive probe: heads with a learned query look at all tokens of frozen encoders.

For encoders that were never asked for one vector (masked ones) it says more than a probe of the pooled features. Heads
are those of CAPI (arXiv 2502.08769), V-JEPA (arXiv 2404.08471), V-JEPA 2 (arXiv 2506.09985) and AIM (arXiv 2401.08541),
see `layers.attentive`; training and choice are CAPI's for all of them: AdamW with betas 0.9 and 0.95, a tenth of the
steps warm-up, a cosine to 0. Published grids: CAPI 10 rates from 1e-5 to 1e-2 x decays 5e-4, 1e-3, 5e-2 in 12,500 steps
of 1,024 samples; V-JEPA 2 rates 1e-4 to 5e-3 x decays 0.01 to 0.8 in 20 epochs.
Shapes: S samples, R rows, N tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from multissl.contract.data import Views
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.modality import Modality
from multissl.evaluators.probes.trained import Labeled, TrainedProbe
from multissl.inference import drawn, featurized
from multissl.layers.attentive import (
    CrossAttentionClassifier,
    MeanAttentiveClassifier,
    PlainAttentiveClassifier,
)

Head = Literal["capi", "vjepa", "vjepa2", "aim"]


class AttentiveProbe(TrainedProbe):
    """Accuracy of a classifier that looks at all tokens, in percent."""

    what = "attentive probe"
    fits = True
    titles: ClassVar[dict[str, str]] = {
        "top1": "attentive probe accuracy, %",
        "lr": "learning rate of the chosen attentive probe",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(TrainedProbe.Config):
        """Options of the attentive probe."""

        head: Head = "capi"
        """Whose head it is."""
        heads: int = 0
        """Attention heads, which divide the width; 0: as many as give 64 channels each, 1 where 64 does not divide."""
        depth: int = 1
        """Blocks of V-JEPA's and V-JEPA 2's (4) heads, of which all but one are of self-attention."""
        query_tokens: int = 1
        """Learned queries of AIM's head."""

        def __post_init__(self) -> None:
            TrainedProbe.Config.__post_init__(self)
            if self.heads < 0 or self.depth < 1 or self.query_tokens < 1:
                raise ValueError(
                    f"heads={self.heads}, depth={self.depth}, query_tokens={self.query_tokens}: want 0 or more heads, "
                    "1 or more of the others"
                )

    cfg: Config

    def read(self, encoders: FrozenEncoders, modality: Modality, split: str, limit: int) -> Labeled:
        """Return tokens [S, N, D] and which of them are real [S, N]."""
        shape = (0, 0)

        def flat(views: Views) -> Tensor:
            nonlocal shape
            tokens = encoders.encode([views])[0].tokens.float()
            shape = (tokens.shape[1], tokens.shape[2])
            real = views.real_tokens(shape[0])
            if real is None:
                real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
            real = real | ~real.any(1, keepdim=True)  # a row without a token sees its padding alone
            return torch.cat([tokens.flatten(1), real.to(tokens)], 1)

        places = drawn(len(modality.dataset(split)), limit)
        made = featurized(flat, modality, split, places, device=encoders.device, stream=self.cfg.stream)
        x, count = made.features, shape[0]
        tokens = x[:, : x.shape[1] - count].unflatten(1, (count, shape[1]))
        return self.labeled_samples(modality, split, made, (tokens, x[:, x.shape[1] - count :].bool()))

    def builders(self, train: Labeled, classes: int) -> list[Callable[[], nn.Module]]:
        """Return the one kind of head that is asked for."""
        cfg, width = self.cfg, train.inputs[0].shape[2]
        heads = cfg.heads or (width // 64 if width % 64 == 0 else 1)
        if width % heads:
            raise ValueError(
                f"heads={heads} does not divide the width of the tokens, {width}: 0 chooses a number"
            )
        match cfg.head:
            case "capi":
                return [lambda: PlainAttentiveClassifier(width, classes, heads=heads)]
            case "aim":
                return [
                    lambda: MeanAttentiveClassifier(width, classes, heads=heads, queries=cfg.query_tokens)
                ]
            case _:
                order = "query" if cfg.head == "vjepa" else "tokens"
                return [
                    lambda: CrossAttentionClassifier(
                        width, classes, heads=heads, depth=cfg.depth, order=order
                    )
                ]
