"""A modality turns a source of data into views. It holds no parameters and names no objective.

It lives in three phases: it is built from its options, without touching a file; it is fitted to its training data, or
takes back what an earlier fit left; then it reads. Its part of a step is split in two: `collate` in a worker process
settles what a sample shows (decode, crop, cut, masks), `views` does the rest on the device, a batch at a time.
Shapes: B samples of this rank, V views, R = V*B rows stacked view-major.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from torch import Tensor

from multissl.config import Component, config_name, to_dict
from multissl.config import Config as BaseConfig
from multissl.contract.data import Batch, DataOf, Raw, Sample, Samples, Views
from multissl.contract.learning import Figure
from multissl.contract.plans import CLEAN, Plans, StreamSpec
from multissl.contract.preparation import Preparation
from multissl.random import RowRandom

if TYPE_CHECKING:
    import numpy as np

Need = Literal["local", "mask", "masks", "drop", "target", "condition", "corrupt", "coords", "size", "larger"]
"""What a plan may ask for beside clean and global views. drop: equally many hidden tokens in every row; masks: several
masks for a view; size: clean and global views of another size than the modality's own; larger: global views once more,
at a larger size."""
Baseline = Callable[[Views], Tensor]
"""Classical features that learning has to beat: from clean views to [R, F]."""


class NotFitted(RuntimeError):
    """A modality was asked for what only its training data, or the state of an earlier fit, can say."""


class Modality(Component, ABC):
    """Base of modalities: options in `Config`, no parameters."""

    group: ClassVar[str] = "modalities"
    needs: ClassVar[frozenset[Need]] = frozenset()
    """What plans may ask for; `provides` tells it of one stream under the options at hand."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """File types that a payload, `Sample.data`, comes in, the preferred first."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Usual names of a table's column that holds payloads."""
    payload: ClassVar[Literal["file", "text", "cells"]] = "file"
    """What a payload is: a path, bytes or an array; a text; or a mapping from column to cell."""

    shows: ClassVar[Mapping[str, tuple[str, float]]] = {}
    """What a clean view shows of a sample, in units of `extent`: the option that says it, and units of one of these."""
    label_option: ClassVar[str] = ""
    """The option that finds classes in names of files, "" where there is none."""
    group_option: ClassVar[str] = ""
    """The same for what belongs together, such as the recordings of a speaker."""
    plural: ClassVar[str] = "samples"
    """What its samples are called in a sentence: images, rows."""
    sizing: str = ""
    """What there is to say of the sizes that `fit` took from the training data, "" where the options, or data that is
    built in, say all."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of a modality."""

        owner: ClassVar[type[Modality]]
        sizes: ClassVar[tuple[str, ...]] = ()
        """Options that are 0 where the training data is to say them."""
        sides: ClassVar[tuple[str, str] | None] = None
        """The options that say how large local and global views are, in this order: the former are no larger."""

        def build(self) -> Modality:
            """Return the modality, before it has read anything."""
            return super(Modality.Config, self).build()

        def open_sizes(self) -> list[str]:
            """Return the options that are left to the training data, which `fit` fills in."""
            return [name for name in self.sizes if not getattr(self, name)]

        def with_sizes(self, saved: Mapping[str, Any]) -> Self:
            """Return the options with those that are left to the data as a recipe's file has them."""
            return self.replace(**{name: saved[name] for name in self.open_sizes() if name in saved})

        def with_tokens(self, sides: Mapping[str, int]) -> Self:
            """Return the options with tokens of these sides, by stream, where that is left to the data."""
            side = next(iter(sides.values()), 0)
            return self.with_sizes({"patch": side} if side else {})

        def reading(self, data: str, option: str) -> Self:
            """Return the options with other data, all else as it is.

            Raises a ValueError where the modality reads none; `option`, as it is typed, stands before the data there.
            """
            own = to_dict(self).get("data")
            if own is None:
                raise ValueError(f"{option}{data}: {config_name(type(self))} reads no data")
            return self.replace(data=(data,) if isinstance(own, list) else data)

    def __init__(self, cfg: Any) -> None:
        """Build it from its options; reads no file."""
        self.cfg = cfg

    def sizes_of(self, payloads: Sequence[Any] | None) -> tuple[dict[str, Any], str]:
        """Return values for `cfg.open_sizes()` that suit the training data, and a line that says both.

        Asked once, by `choose_sizes`, and only where there are such options.
        """
        raise NotImplementedError(
            f"{type(self).__name__} leaves {self.cfg.open_sizes()} to the data and reads none"
        )

    def choose_sizes(self, payloads: Sequence[Any] | None = None, *, said: bool = True) -> None:
        """Fill in the sizes that the options leave to the training data; from here on `cfg` says them.

        A part of `fit`. `said`: whether there is a line to say; of data that is built in there is none.
        """
        if self.cfg.open_sizes():
            sizes, line = self.sizes_of(payloads)
            self.cfg, self.sizing = self.cfg.replace(**sizes), line if said or payloads is not None else ""

    def sizes(self) -> dict[str, Any]:
        """Return the sizes in use, as a part of the state."""
        return {"sizes": {name: getattr(self.cfg, name) for name in self.cfg.sizes}}

    def restore_sizes(self, state: Mapping[str, Any]) -> None:
        """Take back the sizes of a state, where the options leave some open."""
        if self.cfg.open_sizes():
            self.cfg = self.cfg.with_sizes(state.get("sizes", {}))

    def fit(self, payloads: Sequence[Any] | None = None) -> Self:
        """Measure on the training data what the options leave open, once; returns the modality.

        With `payloads` (each a `Sample.data`) these are the training data, instead of the modality's own source.
        """
        return self

    def not_fitted(self) -> NotFitted:
        """Return the error for what is asked of it before `fit` or `restore`."""
        return NotFitted(
            f"{config_name(type(self.cfg))} is not fitted: first call fit(), which reads the training data, or "
            "restore(state) with the state of an earlier fit, such as modality.json of a run"
        )

    def state(self) -> dict[str, Any]:
        """Return what was fitted (statistics, schema, vocabulary) as JSON values."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave, so that new data is read as the training data was."""

    @abstractmethod
    def streams(self) -> dict[str, StreamSpec]:
        """Return the streams it feeds, by name."""

    def lacking(self) -> Mapping[str, tuple[int, int]]:
        """Return how many samples lack a stream, and of how many, by stream, for streams that some samples lack."""
        return {}

    @property
    def whole_option(self) -> str:
        """Return the option by which only samples that have every stream are read, or "" where there is none."""
        return ""

    def provides(self, stream: str) -> frozenset[Need]:
        """Return what plans may ask for in a stream."""
        return self.needs

    def check_plans(self, plans: Plans) -> None:
        """Raise a ValueError where plans ask for local views, and these are larger than global ones."""
        if self.cfg.sides is None or not any(plan.num_local for plan in plans.values()):
            return
        local, whole = (getattr(self.cfg, name) for name in self.cfg.sides)
        pairs = zip(
            *(size if isinstance(size, tuple) else (size, size) for size in (local, whole)), strict=True
        )
        if any(one > other for one, other in pairs):
            small, large = self.cfg.sides
            raise ValueError(
                f"modality.{small}={local} is more than modality.{large}={whole}: local views would show more than "
                f"global ones. Want {whole} or less, or no local views (objective.num_local=0)"
            )

    @property
    def mixing_option(self) -> str:
        """Return the option, if on, by which a view takes something of another training sample; "" where none is."""
        return ""

    @abstractmethod
    def dataset(self, split: str) -> Samples:
        """Return the samples of "train", "val", "test", or "all" but the test split."""

    @abstractmethod
    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        """Decode, crop, stack and draw masks, in a worker. Raises `Unreadable` for a sample it cannot read."""

    @abstractmethod
    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        """Make the views, on raw's device: a pure function of its arguments."""

    def contents(self, split: str) -> list[Sequence[Any]]:
        """Return columns of payloads of a split: samples that are equal in one of them are copies of each other.

        It is asked once, at the start, to count copies. None stands for what is compared with nothing; no columns:
        there is nothing to compare, as in data that is drawn.
        """
        return [DataOf(self.dataset(split))]

    def known_by(self, split: str) -> list[Sequence[Any]]:
        """Return columns that tell a split's samples from others, by which a run knows its data again.

        Each has an entry for every sample: a path, a part of a file, a text, a number. Files are known by name and
        size. By default what the samples hold, and their labels; no columns: data that is drawn from the options alone.
        """
        samples = self.dataset(split)
        return [DataOf(samples), samples.class_numbers()] if self.contents(split) else []

    def thumbnail(self, sample: Sample) -> np.ndarray | None:
        """Return a sample as a picture of 16 x 16 pixels, float32 [16, 16, C], by which near-duplicates are counted.

        None where it is no picture, or cannot be read.
        """
        return None

    def extent(self, sample: Sample) -> dict[str, float]:
        """Return how much a sample holds, by what it is counted in, such as seconds; it is read as a clean view is.

        Names are units or say theirs: width and height in pixels, seconds, "samples per second", frames, tokens.
        Raises `Unreadable` where it cannot be read. Nothing by default, where all samples hold the same.
        """
        self.collate([sample], dict.fromkeys(self.streams(), CLEAN), RowRandom((0, 0), 0, 1, 1))
        return {}

    def examined(self, sample: Sample) -> tuple[dict[str, float], np.ndarray | None]:
        """Return extent and thumbnail of a sample; a modality that has both reads it once. Raises as `extent` does."""
        return self.extent(sample), self.thumbnail(sample)

    def shown(self) -> dict[str, tuple[float, str]]:
        """Return how much a clean view shows, in units of `extent`, each with the option that says it."""
        return {unit: (by * getattr(self.cfg, option), option) for unit, (option, by) in self.shows.items()}

    def missing(self) -> dict[str, float]:
        """Return the share of training samples in which a value is missing or unknown, by its name; none by default."""
        return {}

    def preparation(self, stream: str) -> Preparation:
        """Return how tensors become clean views of a stream, for modules that need no data; after `fit` or `restore`.

        Raises a ValueError where the modality, or an option of it, has no such form.
        """
        name = config_name(type(self.cfg))
        raise ValueError(
            f"modality={name} does not say how tensors become its views: use Model.encode, or give {name} a method "
            "preparation"
        )

    def baselines(self) -> dict[str, Baseline]:
        """Return classical features that learning has to beat, by name; the raw input, flattened, by default."""
        return {"raw": flatten}

    def figures(self, batch: Batch) -> list[Figure]:
        """Draw a batch as the encoder sees it; nothing by default."""
        return []

    def pictures(self, views: Views) -> np.ndarray | None:
        """Return clean views as pictures, uint8 [R, H, W, 3], for the report; None where they are none."""
        return None

    def describe(self, sample: Sample) -> dict[str, str]:
        """Return what a table of features says of a sample besides its class, such as its file."""
        return {}


def flatten(views: Views) -> Tensor:
    """Return the input itself as features: [R, C*...] in fp32."""
    return views.x.flatten(1).float()
