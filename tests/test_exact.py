"""Every registered objective: ranks with different data and micro-batches give the gradient of the whole batch.

One run of two steps on 1 rank is compared with the same run on 2 and on 4 gloo ranks and with the same run in chunks:
losses, gradients averaged over ranks, and all weights and slow state after each step; on 2 ranks also with everything
sharded (FSDP2). In fp64, so that what is left is error and not noise; the limit is 1e-5 of the largest entry of each
tensor. A new objective is covered by being
registered. One spawn serves all objectives of a number of ranks.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor

from multissl import registry
from multissl.contract.modality import Modality
from multissl.contract.plans import StreamSpec
from multissl.encoders.resnet import ResNetEncoder
from multissl.engine.learner import Learner
from multissl.layers.heads import MLPHead
from multissl.layers.teacher import Teacher
from multissl.modalities.image.adapter import Image
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.tabular.adapter import Tabular
from multissl.modalities.text.adapter import Text
from multissl.parallel import collectives
from multissl.parallel.ranks import world
from multissl.verify import traces
from multissl.verify.cases import learner_of
from multissl.verify.small import shrunk
from multissl.verify.traces import differences
from tests.helpers.ranks import run_ranks
from tests.helpers.toys import Pairs

BATCH, STEPS, CHUNK, SHARDS = 16, 2, 3, 2
README = str(Path(__file__).parents[1] / "README.md")
SMALL_IMAGE = Image.Config(size=16, local_size=8, patch=4, mask_group=4)
MODALITIES: dict[str, Modality.Config] = {
    "lone": SMALL_IMAGE,
    "pairs": Pairs.Config(),
    "padded": Text.Config(data=README, vocab=300, length=16, local_length=8, mask_group=4, pack=False),
    "infill": Text.Config(data=README, vocab=300, length=16, local_length=8, mask_group=4, infill=0.3),
    "rows": Tabular.Config(),
    "twins": Paired.Config(members={"left": SMALL_IMAGE, "right": SMALL_IMAGE}, join="label"),
}
"""A real modality of one stream, a toy of two for the objectives that pair streams, texts and rows for theirs, pairs
of pictures of one class."""
OWN = {"mlm": "padded", "next_token": "padded", "infilling": "infill", "vime": "rows", "cav_mae": "twins"}
"""Objectives that want symbols, rows or two masked streams, which the others do not."""
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "dino": [{"centering": "ema", "tied_heads": True}, {"centering": "ema", "center_lazy": True}],
    "infonce": [
        {"decoupled": True, "sigma": 0.5},
        {"relic": 1.0, "learn_temperature": True},
        {"clean": True, "num_views": 3},
    ],
    "moco": [
        {"queue": 0, "symmetric": True, "predictor": MLPHead.Config(hidden=16, out=16, layers=2)},
        {"queue": 48, "symmetric": True},
    ],
    "nnclr": [{"two_view": True}],
    "byol": [{"target": "student"}],
    "simdino": [{"patch_weight": 0.0, "expand": "student"}],
    "tico": [{"symmetric": True}],
    "mmcr": [{"compression": 0.5, "teacher": Teacher.Config(ema=0.5)}],
    "data2vec": [{"masks": 2, "row_weight": 1.0}],
    "distill": [{"balance": "phi_s", "tokens": "mixed", "pooled": "mse", "num_views": 2}],
    "swav": [{"queue": 16}],
    "msn": [{"sinkhorn_rounds": 3, "prior": "power_law"}],
    "mae": [{"masking": "replace", "metric": "l1", "norm_target": "none"}],
    "mlm": [{"boundary_weight": 1.0}],
}
"""Options beside the defaults that take another path through an objective's collectives."""

ALWAYS: dict[str, dict[str, Any]] = {"wmse": {"eps": 0.1}}
"""Options that a small net with drop path needs: rows without attention are equal, and groups of them have no rank."""


class Case(NamedTuple):
    """What is run: an objective by name, a modality, and options."""

    objective: str
    modality: str
    variant: int = -1

    @property
    def options(self) -> dict[str, Any]:
        return VARIANTS[self.objective][self.variant] if self.variant >= 0 else {}


def fitting(objective: str) -> list[str]:
    """The modalities on which an objective is compared."""
    return [OWN[objective]] if objective in OWN else [m for m in MODALITIES if m not in OWN.values()]


def cases() -> list[Case]:
    found = []
    for name in registry.names("objectives"):
        for modality in fitting(name):
            found += [Case(name, modality, v) for v in range(-1, len(VARIANTS.get(name, [])))]
    return found


@functools.cache
def fitted(name: str) -> Modality:
    """One of the modalities, fitted once in a process."""
    return MODALITIES[name].build().fit()


def make(case: Case, chunk: int = 0) -> tuple[Learner, Modality]:
    """The learner of a case, in fp64; a ValueError says why the pair has no meaning."""
    torch.manual_seed(0)
    cfg = shrunk(registry.resolve(case.objective, "objectives").Config()).replace(
        **ALWAYS.get(case.objective, {}) | case.options
    )
    modality = fitted(case.modality)
    return learner_of(cfg, MODALITIES[case.modality], modality, chunk), modality


def trace(case: Case, chunk: int = 0, steps: int = STEPS, sharded: bool = False) -> dict[str, Tensor]:
    """Losses, gradients and state of a short run, by name; losses and gradients averaged over ranks."""
    learner, modality = make(case, chunk)
    return traces.trace(learner, modality, torch.device("cpu"), BATCH, steps, sharded)


def attempt(case: Case, **options: Any) -> dict[str, Tensor] | str:
    """The trace, or the error in words: one broken objective must not hide the others."""
    try:
        return trace(case, **options)
    except Exception as error:  # compared and shown by the test of this case
        return "".join(traceback.format_exception_only(error)).strip()


@functools.cache
def alone(case: Case) -> dict[str, Tensor] | str:
    """The reference, on this process."""
    return attempt(case)


# ------------------------------------------------------------------------------------------- plants

How = Literal["detached", "local"]


class Plant(NamedTuple):
    """One collective taken out of an objective: which, and what stands in its place."""

    objective: str
    collective: Literal["gather", "sum_ranks"]
    how: How
    modality: str = "lone"


PLANTS = [
    Plant("vicreg", "gather", "detached"),
    Plant("infonce", "gather", "detached"),
    Plant("clip", "gather", "detached", "pairs"),
    Plant("siglip", "gather", "detached", "pairs"),
    Plant("wmse", "gather", "local"),
    Plant("lejepa", "sum_ranks", "detached"),
    Plant("visreg", "gather", "detached"),
    Plant("tico", "sum_ranks", "local"),
    Plant("mmcr", "gather", "local"),
    Plant("simdino", "sum_ranks", "detached"),
    Plant("barlow", "sum_ranks", "local"),
    Plant("msn", "sum_ranks", "detached"),
    Plant("byol", "sum_ranks", "local"),  # the batch norms of its heads
    Plant("dino", "gather", "local"),
    Plant("swav", "gather", "local"),
    Plant("moco", "gather", "local"),
]
"""At least one for each way in which objectives talk to other ranks."""


@contextlib.contextmanager
def removed(collective: str, how: How) -> Iterator[None]:
    """The collective without its gradient, or as if every other rank held what this one does, wherever it is used."""
    right: Callable[[Tensor], Tensor] = getattr(collectives, collective)

    def detached(x: Tensor) -> Tensor:
        return right(x).detach()

    def local(x: Tensor) -> Tensor:
        return x * world() if collective == "sum_ranks" else torch.cat([x] * world())

    wrong = detached if how == "detached" else local
    places = [
        m for n, m in sys.modules.items() if n.startswith("multissl.") and vars(m).get(collective) is right
    ]
    for place in places:
        setattr(place, collective, wrong)
    try:
        yield
    finally:
        for place in places:
            setattr(place, collective, right)


def on_a_rank(
    _: int, wanted: list[Case], sharded: list[Case], plants: list[Plant]
) -> dict[Any, dict[str, Tensor] | str]:
    found: dict[Any, dict[str, Tensor] | str] = {case: attempt(case) for case in wanted}
    found |= {("sharded", case): attempt(case, sharded=True) for case in sharded}
    for plant in plants:
        with contextlib.suppress(ImportError):  # told by the test of the objective itself
            importlib.import_module(f"multissl.objectives.{plant.objective}")
        with removed(plant.collective, plant.how):
            found[plant] = attempt(Case(plant.objective, plant.modality), steps=1)
    return found


@functools.cache
def on_ranks(count: int) -> list[dict[Any, dict[str, Tensor] | str]]:
    """What every rank found, for every case that runs on one rank; sharded are those of `always_sharded`."""
    sharded = running(always_sharded()) if count == SHARDS else []
    return run_ranks(count, on_a_rank, running(cases()), sharded, PLANTS)


@functools.cache
def sharded_on_ranks() -> list[dict[Any, dict[str, Tensor] | str]]:
    """What every rank found of the cases that are sharded in the slow tests alone."""
    some = always_sharded()
    return run_ranks(SHARDS, on_a_rank, [], running([c for c in cases() if c not in some]), [])


def running(wanted: list[Case]) -> list[Case]:
    """The cases that run on one rank."""
    return [case for case in wanted if not isinstance(alone(case), str)]


def always_sharded() -> list[Case]:
    """Each objective with its defaults on one modality; those that pair streams on the pairs."""
    return [Case(name, fitting(name)[0]) for name in registry.names("objectives")] + [
        Case(name, "pairs") for name in ("clip", "siglip")
    ]


# -------------------------------------------------------------------------------------------- tests


def reference(case: Case) -> dict[str, Tensor]:
    """The trace of one rank; skips where the pair has no meaning, which test_grid judges."""
    found = alone(case)
    if isinstance(found, str):
        if found.startswith("ValueError"):
            pytest.skip(found)
        pytest.fail(found)
    return found


def named(case: Any) -> str:
    return "-".join(str(p) for p in case if p != -1)


@pytest.mark.parametrize("objective", registry.names("objectives"))
def test_every_objective_is_compared_on_some_modality(objective: str) -> None:
    found = {m: alone(Case(objective, m)) for m in fitting(objective)}
    assert any(isinstance(f, dict) for f in found.values()), found
    assert running([case for case in always_sharded() if case.objective == objective])


@pytest.mark.ranks
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", cases(), ids=named)
def test_ranks_with_different_data_give_the_gradient_of_one(case: Case, count: int) -> None:
    right = reference(case)
    for number, results in enumerate(on_ranks(count)):
        found = results[case]
        assert isinstance(found, dict), found
        wrong = differences(found, right)
        assert not wrong, f"rank {number} of {count}:\n" + "\n".join(wrong)


@pytest.mark.ranks
@pytest.mark.parametrize(
    "case",
    [c if c in always_sharded() else pytest.param(c, marks=pytest.mark.slow) for c in cases()],
    ids=named,
)
def test_sharded_over_ranks_is_the_same_run(case: Case) -> None:
    right = reference(case)
    found = (on_ranks(SHARDS) if case in always_sharded() else sharded_on_ranks())[0]["sharded", case]
    assert isinstance(found, dict), found
    wrong = differences(found, right)
    assert not wrong, "\n".join(wrong)


@pytest.mark.ranks
@pytest.mark.parametrize("plant", PLANTS, ids=named)
def test_a_missing_collective_is_noticed(plant: Plant) -> None:
    right = {n: t for n, t in reference(Case(plant.objective, plant.modality)).items() if n.startswith("0 ")}
    found = on_ranks(2)[0][plant]
    assert isinstance(found, dict), found
    assert differences(found, right), f"{plant.collective} can go missing from {plant.objective} unnoticed"


@pytest.mark.parametrize("case", cases(), ids=named)
def test_micro_batches_give_the_gradient_of_the_whole_batch(case: Case) -> None:
    right = reference(case)
    wrong = differences(trace(case, chunk=CHUNK), right)
    assert not wrong, "\n".join(wrong)


def test_micro_batches_of_an_encoder_with_batch_norm_are_refused() -> None:
    learner, _ = make(Case("vicreg", "lone"))
    learner.encoders["norm"] = ResNetEncoder.Config(depth=10, width=4).build(
        StreamSpec(kind="grid", shape=(3, 16, 16), num_tokens=1)
    )
    with pytest.raises(ValueError, match="chunk=2: an encoder holds batch norm"):
        Learner(learner.encoders, learner.objective, 2)
