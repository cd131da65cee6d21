"""Masked language modeling and next-token prediction: cross entropy over a vocabulary.

MLM: BERT, Devlin et al., NAACL 2019, arXiv 1810.04805, section 3.1: of the selected tokens some are replaced by a mask
symbol, some by others, some stay; the loss is on all selected ones. Replacing is the modality's business: the encoder
reads what it is given. With `boundary_weight`, SpanBERT's second task (Joshi et al., TACL 2020, arXiv 1907.10529,
section 3.2): each hidden token from the two tokens around its run and its place in it. NextToken: every token from
those before it, which is all the encoder sees (masking=causal).
Head as in BERT: linear, GELU, layer norm, linear; the last one is not tied to the encoder's embedding. One mean over
all predicted tokens of all ranks, however many each row has.
Shapes: R rows, N tokens, M hidden tokens (padded), D width, T symbols.  Collectives: a sum of counts.  State: heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.abilities import PredictsParts
from multissl.contract.data import Batch, Views
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.plans import Masking, Plans, StreamSpec, ViewPlan
from multissl.layers.init import init_linear
from multissl.losses.common import mean_of
from multissl.losses.language import constant
from multissl.objectives.common import same_plan, single_stream
from multissl.precision import at_least_fp32

PLACES, PLACE_DIM = 20, 200
"""SpanBERT's places in a run, and the width of their embedding; later places share the last one."""


class MLM(PredictsParts):
    """Predicts the hidden tokens of a sequence from a view in which they are replaced."""

    reads_present = True

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of masked language modeling."""

        mask_ratio: float = 0.15
        """Fraction of tokens that are hidden, 0 to 1."""
        boundary_weight: float = 0.0
        """Weight of the prediction from a run's two neighbors (SpanBERT: 1); 0 leaves it out."""

        def __post_init__(self) -> None:
            if not 0 < self.mask_ratio < 1:
                raise ValueError(
                    f"objective.mask_ratio={self.mask_ratio}: want more than 0, less than 1, such as 0.15"
                )
            if self.boundary_weight < 0:
                raise ValueError(f"objective.boundary_weight={self.boundary_weight}: want 0 or more")

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg = cfg
        self.stream, spec = sequence("mlm", streams)
        width = encoders.widths()[self.stream]
        self.transform = transform(width, width)
        self.readout = nn.Linear(width, spec.target_dim)
        init_linear(self.readout, 0.0)
        if cfg.boundary_weight:
            self.place = nn.Embedding(PLACES, PLACE_DIM)
            self.boundary = nn.Sequential(transform(2 * width + PLACE_DIM, width), transform(width, width))

    def plans(self) -> Plans:
        """One global view with replaced tokens under a mask of fixed ratio."""
        ratio = (self.cfg.mask_ratio, self.cfg.mask_ratio)
        return same_plan([self.stream], ViewPlan(num_global=1, mask_ratio=ratio, corrupt=True, target=True))

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The loss of all ranks' hidden tokens."""
        views = one_view(batch, self.stream)
        tokens, logits, asked, real = self.predict(encoders, views)
        terms = {"masked": mean_of(F.cross_entropy(logits, asked, reduction="none"), real)}
        if self.cfg.boundary_weight:
            assert views.mask is not None
            around = self.around(tokens, views.mask.hidden, views.valid)[views.mask.index]  # [M, 2D+200]
            logits_around = at_least_fp32(self.readout(self.boundary(around)))
            terms["boundary"] = mean_of(F.cross_entropy(logits_around, asked, reduction="none"), real)
        right = ((logits.argmax(1) == asked) & real).sum() / real.sum().clamp(min=1)
        stats = {"constant": constant(asked, real, logits.shape[1]), "accuracy": right}
        return Losses.weigh(terms, {"masked": 1.0, "boundary": self.cfg.boundary_weight}, stats)

    def predict(self, encoders: EncodeFunction, views: Views) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The encoder's tokens [R, N, D]; of the hidden ones logits [M, T], their ids [M] and which are real [M]."""
        assert views.mask is not None
        assert views.target is not None
        (features,) = encoders.encode([views])
        tokens = features.tokens.to(self.readout.weight.dtype)
        mask = views.mask.counting(views.real_tokens(tokens.shape[1]))
        found = tokens.flatten(0, 1)[mask.index]  # [M, D]
        logits = at_least_fp32(self.readout(self.transform(found)))
        return tokens, logits, views.target.flatten()[mask.index], mask.weight > 0

    def part_errors(self, encoders: EncodeFunction, views: Views) -> Tensor:
        """What each hidden token costs, in nats, [M]; 0 on padding."""
        _, logits, asked, real = self.predict(encoders, views)
        return F.cross_entropy(logits, asked, reduction="none") * real

    def around(self, tokens: Tensor, hidden: Tensor, valid: Tensor | None = None) -> Tensor:
        """For every token the nearest shown ones on both sides, 0 beyond the ends, and its place: [R*N, 2D+200].

        Padding, where `valid` bool [R, N] is False, is shown to nobody.
        """
        count = hidden.shape[1]
        away = hidden if valid is None else hidden | ~valid
        at = torch.arange(count, device=hidden.device)
        left = torch.where(away, -1, at).cummax(1).values  # [R, N]
        right = torch.where(away, count, at).flip(1).cummin(1).values.flip(1)
        padded = F.pad(tokens, (0, 0, 1, 1))  # [R, 1+N+1, D]
        sides = [padded.gather(1, (i + 1)[:, :, None].expand_as(tokens)) for i in (left, right)]
        place = self.place((at - left - 1).clamp(0, PLACES - 1)).to(tokens.dtype)  # [R, N, 200]
        return torch.cat([*sides, place], 2).flatten(0, 1)


class NextToken(PredictsParts):
    """Predicts every token of a sequence from those before it."""

    reads_present = True
    maskings: frozenset[Masking] = frozenset({"causal"})

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """It has no options."""

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.stream, spec = sequence("next_token", streams)
        self.readout = nn.Linear(encoders.widths()[self.stream], spec.vocab)
        init_linear(self.readout, 0.0)

    def plans(self) -> Plans:
        """One global view."""
        return same_plan([self.stream], ViewPlan(num_global=1))

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The loss of all ranks' tokens but the first of each row."""
        views = one_view(batch, self.stream)
        logits = self.predict(encoders, views)
        asked = views.x[:, 1:].flatten()
        flags = views.real_tokens(views.x.shape[1])  # [R, N]
        real = torch.ones_like(asked, dtype=torch.bool) if flags is None else flags[:, 1:].flatten()
        loss = mean_of(F.cross_entropy(logits.flatten(0, 1), asked, reduction="none"), real)
        return Losses.weigh(
            {"next": loss}, {"next": 1.0}, {"constant": constant(asked, real, logits.shape[2])}
        )

    def predict(self, encoders: EncodeFunction, views: Views) -> Tensor:
        """Logits of every token but the first, [R, N-1, T]."""
        (features,) = encoders.encode([views], "causal")
        return at_least_fp32(self.readout(features.tokens[:, :-1].to(self.readout.weight.dtype)))

    def part_errors(self, encoders: EncodeFunction, views: Views) -> Tensor:
        """What each token but the first of its row costs, in nats, [R, N-1]; 0 on padding."""
        costs = F.cross_entropy(self.predict(encoders, views).mT, views.x[:, 1:], reduction="none")
        return costs if views.valid is None else costs * views.valid[:, 1:]


def sequence(name: str, streams: Mapping[str, StreamSpec]) -> tuple[str, StreamSpec]:
    """The single stream of symbols, or a sentence that says what is missing."""
    stream = single_stream(name, streams)
    spec = streams[stream]
    if spec.kind != "sequence" or spec.target_kind != "classes":
        raise ValueError(
            f"{name} predicts symbols of a sequence, this stream is of kind {spec.kind}: mae rebuilds any stream"
        )
    return stream, spec


def one_view(batch: Batch, stream: str) -> Views:
    """The global view of a stream."""
    return batch.of(stream, "global")


def transform(inputs: int, outputs: int) -> nn.Sequential:
    """BERT's linear, GELU and layer norm."""
    linear = nn.Linear(inputs, outputs)
    init_linear(linear, 0.0)
    return nn.Sequential(linear, nn.GELU(), nn.LayerNorm(outputs))
