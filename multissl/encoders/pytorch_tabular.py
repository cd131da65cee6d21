"""Networks of pytorch-tabular as encoders of table rows: FT-Transformer, GANDALF, category embedding and others.

    encoders={"tabular": PytorchTabularEncoder.Config(model="FTTransformer", options={"input_embed_dim": 32})}

The model is built from its own config class (`MODEL` + `Config` or `ModelConfig` of pytorch_tabular.models) for the
stream's columns; of it the embedding and the backbone are used, its head and losses are not. Joseph, arXiv 2104.13638.
Backbones give one feature per row, which is the one token too, and know no mask: objectives that hide tokens need the
transformer. Several features of a row (GATE's trees) are laid side by side. Parameters that a model holds and does not
use are frozen.
Shapes: R rows, C columns, D width of the backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from multissl import registry
from multissl.contract.data import Views
from multissl.contract.learning import Features
from multissl.contract.plans import Masking, StreamSpec
from multissl.encoders.wrapped import Wrapped, by_size

WIDEST = 50
"""Of the embedding of a category where a model asks for widths: half its levels, up to this."""
GHOST = 256
"""Rows of a step that a model with ghost batch norm expects."""
REFUSED = {
    "Node": "starts from statistics of a first large batch, which would differ between ranks",
    "TabNet": "holds its encoder, masks and head in one network",
    "MDN": "is a head around another model",
    "Stacking": "is a set of other models",
}
"""Models that are no encoder of one row by itself."""


class PytorchTabularEncoder(Wrapped):
    """Embedding and backbone of a model; pooled [R, D] is the backbone's output."""

    @dataclass(kw_only=True, slots=True)
    class Config(Wrapped.Config):
        """Options of a model of pytorch-tabular."""

        model: str = "FTTransformer"
        """Its name: CategoryEmbedding, FTTransformer, TabTransformer, AutoInt, GANDALF, DANet, ..."""
        options: dict[str, Any] = field(default_factory=dict)
        """Fields of its config class, such as num_attn_blocks."""

    def __init__(self, cfg: Config, spec: StreamSpec) -> None:
        super().__init__()
        if spec.kind != "columns":
            raise ValueError(
                f"the pytorch_tabular encoder reads columns, this stream is a {spec.kind}: use transformer"
            )
        levels = spec.cardinalities or (0,) * spec.shape[-1]
        self.numbers = [i for i, n in enumerate(levels) if not n]
        self.categories = [i for i, n in enumerate(levels) if n]
        self.model = cfg.model
        made = self._model(cfg, [levels[i] for i in self.categories])
        self.wrap(nn.ModuleDict({"embedding": made.embedding_layer, "backbone": made.backbone}), ())
        self.net.eval()
        out = self._encoded(torch.zeros(2, len(levels)))
        self.dim = out.shape[1]
        out.sum().backward()
        for parameter in self.net.parameters():
            parameter.requires_grad_(
                parameter.grad is not None
            )  # models hold norms and biases they do not use
            parameter.grad = None
        self.net.train()

    def _model(self, cfg: Config, counts: list[int]) -> Any:
        if cfg.model in REFUSED:
            raise ValueError(
                f"encoders.model={cfg.model!r} {REFUSED[cfg.model]}: take CategoryEmbedding or FTTransformer"
            )
        models = registry.require("pytorch_tabular.models")
        inferred = registry.require("pytorch_tabular.config.config").InferredConfig(
            categorical_dim=len(self.categories), continuous_dim=len(self.numbers), output_dim=1,
            categorical_cardinality=counts, embedding_dims=[(n, min(WIDEST, (n + 1) // 2)) for n in counts],
        )  # fmt: skip
        names = {
            n.removesuffix("Config").removesuffix("Model"): n for n in dir(models) if n.endswith("Config")
        }
        if cfg.model not in names:
            raise ValueError(f"encoders.model={cfg.model!r}{registry.suggest(cfg.model, names)}")
        config_class = getattr(models, names[cfg.model])
        # Private fields name the module and class that are built; the task is ours.
        known = [n for n in config_class.__dataclass_fields__ if not n.startswith("_") and n != "task"]
        for name in cfg.options:
            if name not in known:
                raise ValueError(f"encoders.options has no field {name!r}{registry.suggest(name, known)}")
        config = config_class(task="regression", **cfg.options)
        found: Any = registry.require("pytorch_tabular")
        for part in config._module_src.split("."):
            found = getattr(found, part)
        omega = registry.require("omegaconf").OmegaConf
        # What a trainer would add; only the sizes of ghost batches are read from it.
        options = {**omega.to_container(omega.structured(config)), "batch_size": GHOST}
        model = getattr(found, config._model_name)
        return model(omega.create(options), inferred_config=omega.structured(inferred))

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Features of every item; all items share one call."""
        assert masking == "none", masking
        if inner:
            raise ValueError(f"the blocks of {self.model} are unknown: use transformer")
        return by_size(views, self._features)

    def _features(self, views: Views) -> Features:
        pooled = self._encoded(views.x)
        return Features(pooled=pooled, tokens=pooled[:, None])

    def _encoded(self, x: Tensor) -> Tensor:
        """[R, C] to [R, D]."""
        parts = {"continuous": x[:, self.numbers].to(next(self.net.parameters()).dtype),
                 "categorical": x[:, self.categories].long()}  # fmt: skip
        embedding, backbone = self.net["embedding"], self.net["backbone"]
        if self.model == "TabTransformer":  # embeds categories only and takes the numbers beside them
            words = embedding({"categorical": parts["categorical"]}) if self.categories else None
            return backbone(words, parts["continuous"]).flatten(1)
        return backbone(embedding(parts)).flatten(1)
