"""DINOv2's distillation: the teacher is a larger network, frozen, with the heads and prototypes it was trained with.

Oquab et al. 2023, arXiv 2304.07193, section 5; what the paper leaves open is as in DINOv3's code, which distils alike.
The losses are DINO's (`objectives/dino.py`); what is different:
  - targets come from the frozen teacher and its heads: the student's have as many prototypes, and widths of their own
  - the student sees whole views: tokens are sampled as masks are and compared, and no mask token takes their place
  - `teacher` follows the student, teaches nothing, and is what is shipped
The frozen teacher has no dropout and no drop path, and patches of the student's size, as tokens are compared place by
place. Its weights are in no checkpoint, a digest of them is.
State: the student's heads, the average of the student and its heads, centers where centering is ema, the digest.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from multissl.config import config_name
from multissl.contract.encoder import Encoder, Encoders
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import StreamSpec
from multissl.layers.frozen import UNTRAINED, PrototypeTeacher
from multissl.layers.heads import PrototypeHead
from multissl.objectives.dino import DINO
from multissl.parallel.ranks import is_main

log = logging.getLogger("multissl")


class DINODistill(DINO):
    """A student of one stream sorts views and tokens into the prototypes of a frozen teacher as that does."""

    maskings = frozenset({"none"})
    spreads_targets: ClassVar[str] = "take a teacher of such data, objective.frozen_teacher.weights"
    spreads_features: ClassVar[str] = "lower optim.lr"

    @dataclass(kw_only=True, slots=True)
    class Config(DINO.Config):
        """Options of DINOv2's distillation: DINO's, and what teaches; `teacher` is the average that is shipped."""

        frozen_teacher: PrototypeTeacher.Config = field(default_factory=lambda: PrototypeTeacher.Config())
        """The network that teaches: a run of dino, or a training file of DINO, iBOT or DINOv2, with its heads."""

        def __post_init__(self) -> None:
            DINO.Config.__post_init__(self)
            teacher = self.frozen_teacher
            if given := teacher.heads():
                self.check_heads(given, f"objective.frozen_teacher.weights={teacher.weights}")

        def heads(self) -> dict[str, PrototypeHead.Config]:
            """The student's heads, by name."""
            found = {"dino_head": self.head} if self.dino_weight or self.tied_heads else {}
            return (
                found if self.tied_heads or not self.ibot_weight else {**found, "ibot_head": self.ibot_head}
            )

        def check_heads(self, given: Mapping[str, PrototypeHead.Config], whose: str) -> None:
            """Raise a ValueError where a teacher's heads are not those that the student learns from."""
            if self.tied_heads and self.ibot_weight and "ibot_head" in given:
                raise ValueError(
                    f"objective.tied_heads=True: the teacher of {whose} has a head of its own for tokens; set it to "
                    "False, or objective.ibot_weight=0"
                )
            for name, head in self.heads().items():
                option = "head" if name == "dino_head" else name
                if name in given and given[name].prototypes != head.prototypes:
                    raise ValueError(
                        f"objective.{option}.prototypes={head.prototypes}: the teacher of {whose} has "
                        f"{given[name].prototypes} there, which a student is compared with one by one; set it to that"
                    )
                if name in given or self.frozen_teacher.weights == UNTRAINED:
                    continue
                if name == "dino_head":
                    raise ValueError(
                        f"objective.dino_weight={self.dino_weight}: the teacher of {whose} has no head for views; set "
                        "it to 0, or name a training with one"
                    )
                raise ValueError(
                    f"objective.ibot_weight={self.ibot_weight}: the teacher of {whose} has no head for tokens; set it "
                    "to 0, or, if its one head serves views and tokens (iBOT), objective.tied_heads=True"
                )

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__(cfg, encoders, streams)
        teacher, spec = cfg.frozen_teacher, streams[self.stream]
        if teacher.weights == UNTRAINED and is_main():
            log.warning(
                "objective.frozen_teacher.weights=%s: its student learns little; name a run or a training file",
                UNTRAINED,
            )
        own = copy.deepcopy(encoders[self.stream]) if teacher.encoder is None else teacher.encoder.build(spec)
        own.locked = False
        if cfg.ibot_weight:
            check_places(encoders[self.stream], f"encoders.{self.stream}")
            check_places(own, "objective.frozen_teacher.encoder")
        wanted = cfg.heads() | teacher.heads()
        heads = {name: wanted[name].build(own.dim) for name in cfg.heads()}
        option = "objective.frozen_teacher"
        self.frozen_teacher = PrototypeTeacher(teacher, option, self.stream, spec, own, heads)

    def taught_by(self) -> tuple[Encoders, PerStream[nn.Module]]:
        """The frozen teacher's encoders and heads."""
        return self.frozen_teacher.encoders, self.frozen_teacher.heads

    def shard_units(self) -> list[nn.Module]:
        """Those of the student's side, and the frozen teacher's."""
        return [*super().shard_units(), *self.frozen_teacher.shard_units()]


def check_places(encoder: Encoder, option: str) -> None:
    """Refuse an encoder whose tokens are not in the places that masks are drawn of, as it can do nothing with masks."""
    if not encoder.maskings & {"replace", "drop"}:
        raise ValueError(
            f"{option}: sampled tokens are compared place by place, and those of {config_name(type(encoder).Config)} "
            "are of no places: set it to transformer, or objective.ibot_weight=0, which compares what is pooled alone"
        )
