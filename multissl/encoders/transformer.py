"""A transformer for any stream: a tokenizer by its kind, then a trunk; all views of a step in one pass.

Sizes are those of ViT (Dosovitskiy et al., arXiv 2010.11929) and DINOv2 (Oquab et al., arXiv 2304.07193).
Shapes: R rows, N tokens, P = 1 + registers tokens before them, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multissl import registry
from multissl.contract.abilities import HasAttention
from multissl.contract.data import Views
from multissl.contract.encoder import Encoder
from multissl.contract.learning import Features, Figure
from multissl.contract.plans import Masking, StreamSpec
from multissl.layers.attention_pool import AttentionPool
from multissl.layers.positions import Position
from multissl.layers.tokenizers import TokenForm, tokenizer_for
from multissl.layers.transformer import (
    FFN,
    NOWHERE,
    Act,
    DropPathShape,
    FinalNorm,
    NormOrder,
    Trunk,
    Where,
    ffn_width,
)
from multissl.registry import suggest

Pooling = Literal["cls", "mean", "last", "prefix", "attention"]


class TransformerEncoder(Encoder, HasAttention):
    """Tokenizer and trunk."""

    @dataclass(kw_only=True, slots=True)
    class Config(Encoder.Config):
        """Options of a transformer."""

        dim: int = 384
        """Channels of every token; a multiple of heads."""
        depth: int = 12
        """Number of blocks."""
        heads: int = 6
        """Attention heads of each block."""
        pooling: Pooling = "cls"
        """What stands for a view: the class token; the mean of the tokens; the last one; the mean of class and
        register tokens (AST's two); or what a learned query sees (SigLIP). Causal objectives need mean or last: the
        class token comes first and would see nothing."""
        causal: bool = False
        """Whether every token sees only those before it, in evaluation too: what next-token prediction trains."""
        drop_path: float = 0.0
        """Share of rows that skip a residual branch while training."""
        drop_path_shape: DropPathShape = "uniform"
        """uniform: that share in every block (DINOv2); linear: from 0 in the first block to it in the last (DINO)."""
        layerscale: float = 0.0
        """Start of the learned factor on every residual branch (DINOv2: 1e-5); 0 leaves it out."""
        ffn: FFN = "mlp"
        """Feed-forward part of a block: two linear layers with GELU, or SwiGLU."""
        ffn_ratio: float = 4.0
        """Hidden width over dim; swiglu takes two thirds of it."""
        act: Act = "gelu"
        """GELU of ffn=mlp: exact, by tanh (SigLIP), or x sigmoid(1.702 x) (OpenAI's CLIP)."""
        class_token: bool = True
        """Whether a class token comes first; I-JEPA, V-JEPA, VideoMAE and SigLIP have none."""
        registers: int = 0
        """Extra tokens without a place or a loss."""
        position: Position = field(default_factory=Position)
        """How tokens are given their place."""
        conv_stem: bool = False
        """Convolutions of stride 2 instead of one linear layer per patch; helps small images and few steps."""
        freeze_patches: bool = False
        """Keep the patch embedding as it was drawn (MoCo v3's cure for instability)."""
        embedding_std: float = 0.02
        """Deviation of the embeddings of ids at the start."""
        token_conv: int = 0
        """Of sequences: tokens that a convolution over neighbors spans before the blocks, an odd number; 0: none."""
        attention: str = "sdpa"
        """The attention kernel. sdpa runs anywhere; varlen and xformers take all view sizes at once, on CUDA in half
        precision; installed packages may bring others."""
        norm_eps: float = 1e-6
        """Number added to the variance in layer norms."""
        norm_pre: bool = False
        """Normalize tokens before the first block (CLIP, BERT)."""
        norm_order: NormOrder = "pre"
        """Normalize before each branch of a block, or after it was added (BERT)."""
        final_norm: FinalNorm = "tokens"
        """What the last norm is for: all tokens; split: class and register tokens have their own (DINOv3, untied);
        pooled: what is pooled alone (MAE's and data2vec's fine-tuning); none (VideoMAE, BERT)."""
        key_bias: bool = True
        """Whether keys have a bias; DINOv3, BEiT and VideoMAE have none."""
        init_std: float = 0.02
        """Deviation of the initial weights of the blocks; 0: 1/sqrt(inputs), which narrow encoders need."""

        def __post_init__(self) -> None:
            least = {
                "dim": 1,
                "depth": 1,
                "heads": 1,
                "registers": 0,
                "layerscale": 0,
                "ffn_ratio": 0.1,
                "init_std": 0,
                "embedding_std": 0,
                "token_conv": 0,
            }
            for name, low in least.items():
                if getattr(self, name) < low:
                    raise ValueError(f"{name}={getattr(self, name)}: want {low} or more")
            if self.dim % self.heads:
                raise ValueError(f"heads={self.heads} does not divide dim={self.dim}: choose heads that do")
            if self.causal and self.pooling in ("cls", "prefix", "attention"):
                raise ValueError(
                    "causal=True: the class token comes first and sees nothing, set pooling=mean or last"
                )
            if not self.class_token and self.pooling == "cls":
                raise ValueError("pooling=cls without a class token: set pooling=mean, or class_token=True")
            if not self.class_token and not self.registers and self.pooling == "prefix":
                raise ValueError("pooling=prefix without class_token and registers: set pooling=mean")
            if self.act != "gelu" and self.ffn != "mlp":
                raise ValueError(f"act={self.act} is of ffn=mlp, this is {self.ffn}: leave it at gelu")
            if self.token_conv and (self.causal or self.token_conv % 2 == 0):
                raise ValueError(
                    f"token_conv={self.token_conv}: want an odd number, and causal=False, for it looks both ways"
                )
            if self.attention not in (known := registry.names("kernels")):
                raise ValueError(
                    f"attention={self.attention}: no such kernel{suggest(self.attention, known)}"
                )
            if not 0 <= self.drop_path < 1:
                raise ValueError(f"drop_path={self.drop_path}: want a share of at least 0 and below 1")

        def maskings_for(self, spec: StreamSpec) -> frozenset[Masking]:
            """Causal reading needs a pooled token that sees something, and no convolution that looks ahead."""
            able: list[Masking] = ["none", "drop", "replace"]
            if self.position.kind == "relative":  # a step between tokens that were left out has no row
                able.remove("drop")
            looks_back = self.pooling in ("mean", "last") and not self.token_conv
            return frozenset([*able, "causal"] if looks_back else able)

    def __init__(self, cfg: Config, spec: StreamSpec) -> None:
        super().__init__()
        self.cfg, self.spec = cfg, spec
        self.dim, self.depth, self.maskings = cfg.dim, cfg.depth, cfg.maskings_for(spec)
        self.kernel = cfg.attention
        self.any_size = spec.kind != "columns" and cfg.position.kind != "relative"
        self.tokenizer = tokenizer_for(
            spec,
            cfg.dim,
            cfg.registers,
            cfg.position,
            conv_stem=cfg.conv_stem,
            freeze_patches=cfg.freeze_patches,
            embedding_std=cfg.embedding_std,
            token_conv=cfg.token_conv,
            form=TokenForm(
                class_token=cfg.class_token,
                norm_pre=cfg.norm_pre,
                norm_eps=cfg.norm_eps,
                head_width=cfg.dim // cfg.heads,
            ),
        )
        hidden = ffn_width(cfg.dim, cfg.ffn, cfg.ffn_ratio)
        self.trunk = Trunk(
            cfg.dim,
            cfg.depth,
            cfg.heads,
            ffn=cfg.ffn,
            hidden=hidden,
            layerscale=cfg.layerscale,
            drop_path=cfg.drop_path,
            drop_path_shape=cfg.drop_path_shape,
            eps=cfg.norm_eps,
            backend=cfg.attention,
            init_std=cfg.init_std,
            act=cfg.act,
            key_bias=cfg.key_bias,
            norm_order=cfg.norm_order,
            final_norm=cfg.final_norm,
            prefix=self.tokenizer.prefix,
            steps=self.tokenizer.count_steps(),
        )
        self.pool = None
        if cfg.pooling == "attention":
            self.pool = AttentionPool(
                cfg.dim, cfg.heads, hidden, act=cfg.act, eps=cfg.norm_eps, init_std=cfg.init_std
            )

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Features of every item; items of all sizes share one packed pass."""
        if masking not in self.maskings:
            raise ValueError(
                f"this transformer does not do masking={masking}, only {', '.join(sorted(self.maskings))}: "
                "causal needs pooling=mean or pooling=last"
            )
        tokens, valid = zip(*(self.tokenizer(v, masking) for v in views), strict=True)
        causal = self.cfg.causal or masking == "causal"
        where = self._where(views, masking)
        groups, taps = self.trunk(tokens, valid, causal, inner, [v.place for v in views], where)
        return [
            self._with_blocks(group, real, [tap[i] for tap in taps])
            for i, (group, real) in enumerate(zip(groups, valid, strict=True))
        ]

    def _with_blocks(self, group: Tensor, valid: Tensor | None, taps: list[Tensor]) -> Features:
        """Features of an item, with outputs of its last blocks; these are pooled where it is not trained."""
        features, prefix = self._features(group, valid), self.tokenizer.prefix
        pooled = (
            () if self.training else (self._features(self.trunk.normalized(t), valid).pooled for t in taps)
        )
        return replace(features, inner=tuple(t[:, prefix:] for t in taps), inner_pooled=tuple(pooled))

    def _where(self, views: Sequence[Views], masking: Masking = "none") -> Where:
        """Where the tokens of views lie, for blocks that ask."""
        match self.cfg.position.kind:
            case "rope":
                angles = [a for v in views if (a := self.tokenizer.angles(v, masking)) is not None]
                return Where(angles=angles, adjacent=len(self.spec.patch) == 3)
            case "relative":
                return Where(steps=[s for v in views if (s := self.tokenizer.steps(v)) is not None])
            case _:
                return NOWHERE

    def _features(self, group: Tensor, valid: Tensor | None) -> Features:
        p = self.tokenizer.prefix
        tokens = group[:, p:]  # [R, N, D]
        if self.cfg.pooling == "cls":
            pooled = group[:, 0]
        elif self.cfg.pooling == "prefix":
            pooled = group[:, :p].mean(1)
        elif self.pool is not None:
            pooled = self.pool(tokens, None if valid is None else valid[:, p:])
        else:
            real = group.new_ones(group.shape[:2], dtype=torch.bool) if valid is None else valid
            real = real[:, p:]  # [R, N]
            if self.cfg.pooling == "last":  # all weight on the last real token
                real = real & (real.flip(1).cumsum(1).flip(1) == 1)
            weight = real.float() / real.sum(1, keepdim=True).clamp(
                min=1
            )  # [R, N], fp32: half would miscount
            pooled = (tokens.float() * weight[:, :, None]).sum(1).to(tokens.dtype)
        if self.cfg.final_norm == "pooled":
            pooled = self.trunk.norm(pooled)
        return Features(pooled=pooled, tokens=tokens)

    def layers(self, views: Views, n: int | Sequence[int], norm: bool = True) -> list[Features]:
        """Outputs of the last n blocks, or of the blocks with these indices, in ascending order."""
        wanted = range(self.depth - n, self.depth) if isinstance(n, int) else sorted(n)
        if not wanted or wanted[0] < 0 or wanted[-1] >= self.depth:
            raise ValueError(f"layers n={n}: the encoder has blocks 0 to {self.depth - 1}")
        tokens, valid = self.tokenizer(views)
        inner, where = self.depth - wanted[0], self._where([views])
        _, taps = self.trunk([tokens], [valid], self.cfg.causal, inner=inner, where=where)
        found = [taps[i - wanted[0]][0] for i in wanted]
        return [self._features(self.trunk.normalized(t) if norm else t, valid) for t in found]

    def attention(self, views: Views) -> Tensor:
        """Attention of the class token to the tokens in the last block [R, H, N]; the prefix has the rest."""
        if not self.cfg.class_token:
            raise ValueError("this transformer has no class token, whose attention is asked for")
        tokens, valid = self.tokenizer(views)
        return self.trunk.attention(tokens, valid, self._where([views]))[:, :, self.tokenizer.prefix :]

    def attend_plainly(self) -> None:
        """Attend by sdpa from now on."""
        self.kernel = "sdpa"
        self.trunk.use_kernel("sdpa")

    def prepare_for(self, maskings: frozenset[Masking]) -> None:
        """Train the mask token only where tokens are replaced; it stays among the weights either way."""
        self.tokenizer.mask_token.requires_grad_("replace" in maskings)

    def shard_units(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.trunk.blocks)

    def layer_id(self, name: str) -> int:
        """0 for the tokenizer, i+1 for block i, depth+1 for the final norm."""
        if "tokenizer." in name:
            return 0
        _, found, rest = name.partition("blocks.")
        return int(rest.partition(".")[0]) + 1 if found else self.depth + 1

    @torch.no_grad()
    def figures(self, views: Views) -> list[Figure]:
        """Tokens and attention of pictures, for grids of 1 or 3 channels in 2-D whose tokens do not overlap."""
        spec = self.spec
        if spec.kind != "grid" or len(spec.patch) != 2 or spec.shape[0] not in (1, 3) or spec.stride:
            return []
        if not self.cfg.class_token:  # its attention is what is drawn
            return []
        from multissl.encoders.figures import draw

        was_training = self.training
        self.eval()
        some = views.samples(torch.arange(min(8, views.batch), device=views.x.device))
        drawn = draw(some.x, self([some])[0].tokens, self.attention(some), self.spec.patch)
        self.train(was_training)
        return drawn


SIZES: dict[str, dict[str, Any]] = {
    "ti": {"dim": 192, "depth": 12, "heads": 3},
    "s": {"dim": 384, "depth": 12, "heads": 6},
    "b": {"dim": 768, "depth": 12, "heads": 12},
    "l": {"dim": 1024, "depth": 24, "heads": 16},
    "g": {"dim": 1536, "depth": 40, "heads": 24, "ffn": "swiglu"},
}


def vit(size: Literal["ti", "s", "b", "l", "g"], **options: Any) -> TransformerEncoder.Config:
    """A vision transformer of a published size; the patch comes from the stream."""
    return TransformerEncoder.Config(**SIZES[size] | options)
