"""An objective turns encoders and a batch of views into losses, and owns everything that moves slowly.

It says which views it wants, drives the encoders it is handed through `encode`, and keeps projectors, predictors,
teachers, centers and queues, so that `state_dict()` is the whole truth. It names no modality.
Shapes: see `contract.data`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from multissl.config import Component, config_name
from multissl.config import Config as BaseConfig
from multissl.contract.alarms import History, common_alarm
from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders, SharedSpace
from multissl.contract.learning import Losses, ParamRule, Progress
from multissl.contract.plans import Masking, Plans, StreamSpec


class Objective(Component, nn.Module, ABC):
    """Base of objectives; built with (encoders, streams)."""

    group: ClassVar[str] = "objectives"
    titles: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """What the report calls its terms and stats, by their name in the record, such as "stats/teacher_kl"."""
    maskings: frozenset[Masking] = frozenset({"none"})
    """What it asks encoders to do with masks, whatever its options are."""
    reads_present: ClassVar[bool] = False
    """Whether the rows of samples that lack a stream (`Views.present`) move nothing in it, on any number of ranks;
    where it is False, data in which samples lack a stream is refused."""
    reads_tokens: bool = True
    """Whether it reads `Features.tokens`; where it does not, encoding in chunks holds none of them."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of an objective."""

        owner: ClassVar[type[Objective]]

        def build(self, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> Objective:
            """Return the objective with the heads that these encoders and streams need."""
            return super(Objective.Config, self).build(encoders, streams)

        def maskings(self) -> frozenset[Masking]:
            """Return what it asks encoders to do with masks under these options."""
            return self.owner.maskings

        def reader_of_stand_ins(self, stream: str) -> str:
            """Return the name of what takes a stream's stand-ins for samples, itself or a term; empty: nothing."""
            return "" if self.owner.reads_present else config_name(type(self))

    @abstractmethod
    def plans(self) -> Plans:
        """Return the views it needs, by stream."""

    @abstractmethod
    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """Return the losses of this rank's rows; their gradient, averaged over ranks, is that of the global batch."""

    if (
        TYPE_CHECKING
    ):  # torch types the call of a module as taking anything, and whatever is not declared as a tensor
        __getattr__: None  # type: ignore[assignment]

        def __call__(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
            """Call `forward`, with the hooks of sharding and compilation around it."""
            ...

    def check_dataset_size(self, samples: int) -> None:
        """Raise a ValueError where there are too few training samples; called before the first step."""

    def check_batch_size(self, samples: int) -> None:
        """Raise a ValueError where a step of so many samples, over all ranks, leaves too few to compare.

        Called with the recipe's before anything slow.
        """

    def check_stage(self, before: Mapping[str, StreamSpec], streams: Mapping[str, StreamSpec]) -> None:
        """Raise a ValueError where a stage with these streams makes no sense after one with those of `before`."""

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        """Move the slow state, once after every optimizer step. `progress` is that of the step just made.

        Parameters moved here go through `progress.moved`, for a step that does not count; buffers are put back by the
        trainer.
        """

    def begin_stage(self, fresh: Collection[str]) -> None:
        """Take up what a stage of a run adds, before its first step; everything else is as the stage before left it.

        `fresh` names the tensors of its state that the stage before lacked; they are as they were built.
        """

    def alarm(self, history: History, progress: Progress) -> str | None:
        """Return what has gone wrong in training, its cause and the option to change; None where nothing has.

        `history` holds the logged figures so far: step, loss, terms/NAME, stats/NAME, oldest first. Seen by default:
        embeddings in one point (`stats/std`), and a loss that stays at that of a constant output (`stats/constant`).
        """
        return common_alarm(type(self).__name__.lower(), history)

    def shared_space(self) -> SharedSpace | None:
        """Return the heads that lead several streams into one space, if it trains such heads."""
        return None

    def exported(self, encoders: Encoders) -> Encoders:
        """Return the encoders to evaluate and ship: the student's, or the teacher's where that is better.

        Where streams share a space, they are towers that end in it.
        """
        space = self.shared_space()
        return encoders if space is None else space.towers(encoders)

    def param_rules(self) -> list[ParamRule]:
        """Return exceptions to the optimizer's treatment of parameters."""
        return []

    def clip_modules(self) -> Mapping[str, nn.Module]:
        """Return the modules, by name, whose gradients are clipped apart with `clip_per=module`: its heads."""
        return dict(self.named_children())

    def shard_units(self) -> list[nn.Module]:
        """Return modules to shard on their own: a teacher's blocks, heads."""
        return []
