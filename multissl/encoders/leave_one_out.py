"""A perceptron for table rows that reads every column from all the others: token c sees the row without its cell c.

Trained to tell cell c from token c (`vime` with corrupt=0 and reads=tokens), a token is what the rest of a row says
about a column: the pseudo-likelihood of Besag (1975), all columns in one pass; views with cells left out
(modality.corrupt_by=hide) make it tell columns from few others too. Such conditional means smooth a row by what all
rows have in common, and a linear model on few labels can use them beside the raw cells.
The pooled feature is the mean of the tokens. A cell that is left out adds nothing, not even its column's bias.
Shapes: R rows, C columns, H width of the first layer, D width.  State: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.data import Views
from multissl.contract.encoder import Encoder
from multissl.contract.learning import Features
from multissl.contract.plans import Masking, StreamSpec
from multissl.layers.init import init_linear


class LeaveOneOutEncoder(Encoder):
    """Columns, each distinguished from the others."""

    @dataclass(kw_only=True, slots=True)
    class Config(Encoder.Config):
        """Options of the encoder."""

        dims: tuple[int, ...] = (128, 128, 128)
        """Width of each layer; the last one is the encoder's."""

        def __post_init__(self) -> None:
            if not self.dims or min(self.dims) < 1:
                raise ValueError(f"dims={self.dims}: want one or more widths of 1 or more, such as 128 128")

    others: Tensor
    """[C, C], 1 where token c may see column j."""

    def __init__(self, cfg: Config, spec: StreamSpec) -> None:
        super().__init__()
        if spec.kind != "columns" or spec.shape[0] < 2:
            raise ValueError(
                f"the leave_one_out encoder reads two columns or more, this stream is a {spec.kind} of shape "
                f"{spec.shape}: take mlp or transformer"
            )
        columns, first = spec.shape[0], cfg.dims[0]
        self.levels = spec.cardinalities or (0,) * columns
        self.numbers = [i for i, n in enumerate(self.levels) if not n]
        counts = [n for n in self.levels if n]
        self.dim = cfg.dims[-1]
        self.register_buffer("others", 1 - torch.eye(columns), persistent=False)
        bound = columns**-0.5
        self.scale, self.bias, self.level, self.column = (
            nn.Parameter(bound * torch.randn(count, first), requires_grad=count > 0)
            for count in (len(self.numbers), len(self.numbers), sum(counts), columns)
        )
        self.layers = nn.Sequential(nn.LayerNorm(first), nn.GELU())
        for width, out in zip(cfg.dims, cfg.dims[1:], strict=False):
            linear = nn.Linear(width, out)
            init_linear(linear, 0.0)
            self.layers.extend([linear, nn.LayerNorm(out), nn.GELU()])

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Features of every item: tokens [R, C, D] and their mean."""
        assert masking == "none", masking
        assert inner == 0, "a perceptron has no blocks"
        return [self._features(v) for v in views]

    def _features(self, views: Views) -> Features:
        cells = self._cells(views.x)  # [R, C, H]
        if views.valid is not None:
            cells = cells * views.valid[:, :, None]
        seen = torch.einsum("cj,rjh->rch", self.others.to(cells.dtype), cells) + self.column
        tokens = self.layers(seen)  # [R, C, D]
        return Features(pooled=tokens.mean(1), tokens=tokens)

    def _cells(self, x: Tensor) -> Tensor:
        """What each cell of [R, C] adds to the first layer, [R, C, H]."""
        parts: dict[int, Tensor] = {}
        for i, place in enumerate(self.numbers):
            parts[place] = x[:, place, None].to(self.scale.dtype) * self.scale[i] + self.bias[i]
        first = 0
        for place, n in enumerate(self.levels):
            if n:
                parts[place] = F.embedding(x[:, place].long(), self.level[first : first + n])
                first += n
        return torch.stack([parts[c] for c in range(len(self.levels))], 1)
