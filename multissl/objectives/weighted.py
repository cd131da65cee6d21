"""A weighted sum of objectives over shared encoders: SLIP-like mixes, a view loss beside a masked one, any other.

total = sum over terms of weight * total of the term. The sum asks for what its terms ask for together; each term is
handed only the streams, views and masks of its own plan. `Remembered` runs equal encodes once: the term with the
most views comes first and its encodes serve the others, views 0..n-1 of an item included. So an encoder with batch
norm takes its statistics over the call of the first term that reads a view. Equal means the same views, treatment
of masks and gradient; a masked and an unmasked pass are two encodes. Teachers belong to their term and encode for it.
Shapes: V views of B samples, R = V*B rows, view-major.  Across ranks and in state: what the terms do and keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Losses, ParamRule, Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Masking, Plans, StreamSpec
from multissl.objectives.infonce import InfoNCE
from multissl.objectives.shared import Remembered, handed, merge
from multissl.objectives.vicreg import VICReg
from multissl.registry import suggest


def _default() -> dict[str, Objective.Config]:
    return {"infonce": InfoNCE.Config(), "vicreg": VICReg.Config()}


class Weighted(Objective):
    """Several objectives at once."""

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of a weighted sum."""

        terms: dict[str, Objective.Config] = field(default_factory=_default)
        """The objectives by a name of your own, which their figures bear."""
        weights: dict[str, float] = field(default_factory=dict)
        """By name; a term without one weighs 1."""
        streams: dict[str, tuple[str, ...]] = field(default_factory=dict)
        """Which streams a term reads, by name; a term that is not named reads all."""
        export: str = ""
        """The term whose encoders are shipped; empty: the first one with a teacher or towers, else the student."""

        def __post_init__(self) -> None:
            if not self.terms:
                raise ValueError("objective.terms is empty: want one objective or more, by name")
            for name, cfg in self.terms.items():
                if "." in name or "/" in name or not name:
                    raise ValueError(f"objective.terms.{name}: want a name without dots and slashes")
                if type(cfg) is Objective.Config:
                    raise ValueError(f"objective.terms.{name} names no objective: give it a kind")
            given = {
                "weights": self.weights,
                "streams": self.streams,
                "export": [self.export] * bool(self.export),
            }
            for option, names in given.items():
                for name in names:
                    if name not in self.terms:
                        raise ValueError(
                            f"objective.{option} names {name!r}, no term{suggest(name, self.terms)}"
                        )
            for name, weight in self.weights.items():
                if not weight > 0:
                    raise ValueError(
                        f"objective.weights.{name}={weight}: want more than 0, or leave the term out"
                    )

        def maskings(self) -> frozenset[Masking]:
            """What the terms ask for together."""
            return frozenset().union(*(cfg.maskings() for cfg in self.terms.values()))

        def reader_of_stand_ins(self, stream: str) -> str:
            """The first term that reads the stream and takes its stand-ins for samples."""
            readers = {n: c for n, c in self.terms.items() if stream in self.streams.get(n, (stream,))}
            names = {name: cfg.reader_of_stand_ins(stream) for name, cfg in readers.items()}
            return next((f"objective.terms.{name} ({kind})" for name, kind in names.items() if kind), "")

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.streams = cfg, {name: tuple(cfg.streams.get(name, streams)) for name in cfg.terms}
        built: dict[str, Objective] = {}
        for name, term in cfg.terms.items():
            for stream in self.streams[name]:
                if stream not in streams:
                    raise ValueError(f"objective.streams.{name} names {stream!r}{suggest(stream, streams)}")
            mine = self.streams[name]
            built[name] = term.build(encoders.subset(mine), {s: streams[s] for s in mine})
        self.terms: PerStream[Objective] = PerStream(built)  # whatever the terms are called
        self.asked = {name: dict(term.plans()) for name, term in built.items()}
        self.merged = merge(self.asked)
        self.reads_tokens = any(term.reads_tokens for term in built.values())

    def plans(self) -> Plans:
        """What the terms ask for together."""
        return self.merged

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The terms' losses; the one with most views goes first."""
        shared = Remembered(encoders)
        found: dict[str, Losses] = {}
        for name, term in sorted(self.terms.items(), key=lambda item: -self.views_of(item[0])):
            found[name] = term(shared, handed(batch, self.asked[name]), progress)
        parts = [self.cfg.weights.get(name, 1.0) * found[name].total for name in self.terms]
        stats = {f"{name}/total": found[name].total.detach() for name in self.terms}
        return Losses(
            total=torch.stack(parts).sum(),
            terms={f"{name}/{n}": v for name in self.terms for n, v in found[name].terms.items()},
            stats={
                **stats,
                **{f"{name}/{n}": v for name in self.terms for n, v in found[name].stats.items()},
            },
        )

    def views_of(self, name: str) -> int:
        """How many views a term asks for."""
        return sum(p.num_clean + p.num_global + p.num_local for p in self.asked[name].values())

    def check_dataset_size(self, samples: int) -> None:
        """Ask every term."""
        for _, term in self.terms.items():
            term.check_dataset_size(samples)

    def check_batch_size(self, samples: int) -> None:
        """Ask every term."""
        for _, term in self.terms.items():
            term.check_batch_size(samples)

    def check_stage(self, before: Mapping[str, StreamSpec], streams: Mapping[str, StreamSpec]) -> None:
        """Ask every term of its own streams."""
        for name, term in self.terms.items():
            own = self.asked[name]
            term.check_stage({s: before[s] for s in own}, {s: streams[s] for s in own})

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        """Every term moves its slow state."""
        for name, term in self.terms.items():
            term.after_step(self.encoders_of(encoders, name), progress)

    def encoders_of(self, encoders: Encoders, name: str) -> Encoders:
        """The encoders that a term was built with."""
        return encoders.subset(self.streams[name])

    def alarm(self, history: Sequence[Mapping[str, float]], progress: Progress) -> str | None:
        """The first term's that has one, its options named as they are typed here."""
        for name, term in self.terms.items():
            said = term.alarm([own_figures(entry, name) for entry in history], progress)
            if said is not None:
                return f"{name}: {said.replace('objective.', f'objective.terms.{name}.')}"
        return None

    def exported(self, encoders: Encoders) -> Encoders:
        """Those of the term that `export` names, or of the first with a teacher or towers; else the student's."""
        for name in [self.cfg.export] if self.cfg.export else self.terms:
            mine = self.encoders_of(encoders, name)
            shipped = self.terms[name].exported(mine)
            if shipped is not mine:
                return Encoders({**dict(encoders.items()), **dict(shipped.items())})
        return encoders

    def param_rules(self) -> list[ParamRule]:
        """Those of all terms."""
        return [rule for term in self.terms.values() for rule in term.param_rules()]

    def clip_modules(self) -> dict[str, nn.Module]:
        """Those of all terms: the heads of each term are clipped as they are without the others."""
        return {
            f"terms.{name}.{part}": module
            for name, term in self.terms.items()
            for part, module in term.clip_modules().items()
        }

    def shard_units(self) -> list[nn.Module]:
        """Those of all terms."""
        return [unit for _, term in self.terms.items() for unit in term.shard_units()]


def own_figures(entry: Mapping[str, float], name: str) -> dict[str, float]:
    """The logged figures of one term, named as it names them."""
    found = {k: v for k, v in entry.items() if "/" not in k and k != "loss"}
    for kind in ("terms", "stats"):
        start = f"{kind}/{name}/"
        found |= {f"{kind}/{k.removeprefix(start)}": v for k, v in entry.items() if k.startswith(start)}
    return {**found, "loss": found["stats/total"]} if "stats/total" in found else found
