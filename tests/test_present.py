"""Samples that lack a stream move nothing: every registered objective, on one rank and on two.

A stand-in has their rows, so that shapes never change. What it shows moves no loss, no gradient, no figure and no slow
state, and no gradient reaches it; the loss is that of the samples that are there; a rank without any of them joins in
what ranks do together. An objective that does not declare this is refused for data in which samples lack a stream.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from multissl import registry
from multissl.build import build
from multissl.contract.data import Batch
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.encoders.resnet import ResNetEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.objectives.clip import CLIP
from multissl.objectives.infonce import InfoNCE
from multissl.objectives.weighted import Weighted
from multissl.recipe import Recipe
from multissl.verify.small import shrunk
from tests.helpers import paired_data, rows
from tests.helpers.ranks import run_ranks
from tests.helpers.rows import BATCH, Careless, Found, differences
from tests.test_exact import MODALITIES, VARIANTS, cases

SOME = torch.tensor([i not in (1, 4, 5, 6, 10) for i in range(BATCH)])
OTHERS = torch.tensor([i not in (0, 5, 11) for i in range(BATCH)])
"""Who has the first stream, and who has the others."""
FIRST = torch.arange(BATCH) < BATCH // 4
"""Whole groups of KoLeo, none of them on the second of two ranks."""


class Case(NamedTuple):
    """An objective by name, a modality, and which of its options."""

    objective: str
    modality: str
    variant: int = -1


READ = [n for n in registry.names("objectives") if registry.resolve(n, "objectives").reads_present]
WEIGHTED = "weighted"
NAMES = [*READ, WEIGHTED]
CASES = [Case(*c) for c in cases() if c.objective in NAMES]


PLANTED = {"careless": Careless.Config(), "by_rank": Careless.Config(by_rank=True)}


def config(case: Case) -> Objective.Config:
    if case.objective in PLANTED:
        return PLANTED[case.objective]
    made = shrunk(registry.resolve(case.objective, "objectives").Config())
    return made.replace(**VARIANTS[case.objective][case.variant]) if case.variant >= 0 else made


@functools.cache
def modality(name: str) -> Modality:
    return MODALITIES[name].build().fit()


def made(case: Case, first: Tensor, others: Tensor) -> tuple[Any, Batch]:
    """The learner of a case and its first batch with holes."""
    learner, batch = rows.learner_and_batch(modality(case.modality), config(case))
    streams = [*learner.objective.plans()]
    present = {s: first if s == streams[0] else others for s in streams}
    return learner, rows.with_present(batch, present)


def violations(learner: Any, batch: Batch) -> list[str]:
    """What the stand-ins of a batch move."""
    found, right = rows.step(learner, rows.other_stand_ins(batch)), rows.step(learner, batch)
    return [*differences(found, right), *rows.gradients_at_stand_ins(learner, batch)]


def meaningful(case: Case) -> tuple[Any, Batch]:
    try:
        return made(case, SOME, OTHERS)
    except ValueError as error:  # that every objective has some pair with a meaning is a test of its own
        pytest.skip(str(error))


@functools.cache
def first_pair(objective: str) -> Case:
    """The first modality with which an objective has a meaning."""
    reasons = []
    for case in [c for c in CASES if c.objective == objective and c.variant < 0]:
        try:
            made(case, FIRST, FIRST)
            return case
        except ValueError as error:
            reasons.append(str(error))
    pytest.fail(f"{objective} has none: {'; '.join(reasons)}")


SHARED = "loss term gradient state"
"""What does not depend on how a batch is cut."""


def named(case: Any) -> str:
    return "-".join(str(p) for p in case if p != -1)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_stand_ins_move_nothing(case: Case) -> None:
    assert not violations(*meaningful(case))


@pytest.mark.parametrize("case", [c for c in CASES if c.modality not in ("pairs", "twins")], ids=named)
def test_the_loss_is_that_of_the_samples_that_are_there(case: Case) -> None:
    learner, _ = meaningful(case)
    _, batch = made(case, FIRST, FIRST)
    found, right = rows.step(learner, batch), rows.step(learner, rows.only_present(batch))
    assert not differences(found, right, "loss term gradient", limit=1e-6)


@pytest.mark.parametrize("objective", NAMES)
def test_chunks_give_the_gradient_of_the_whole_batch(objective: str) -> None:
    learner, batch = made(first_pair(objective), SOME, OTHERS)
    right = rows.step(learner, batch)
    learner.chunk = 3
    assert not differences(rows.step(learner, batch), right, SHARED, limit=1e-6)


def test_stand_ins_that_are_taken_for_samples_are_noticed() -> None:
    wrong = violations(*made(Case("careless", "lone"), SOME, OTHERS))
    assert {line.split()[0].rstrip(":") for line in wrong} == {"loss", "gradient"}
    assert "gradient at absent image, global" in wrong
    learner, batch = made(Case("careless", "lone"), FIRST, FIRST)
    assert differences(rows.step(learner, batch), rows.step(learner, rows.only_present(batch)), "loss")


# --------------------------------------------------------------------------------------------- ranks


def on_a_rank(_: int, wanted: list[Case]) -> dict[Case, Found]:
    return {case: rows.step(*made(case, FIRST, FIRST)) for case in wanted}


@functools.cache
def on_two_ranks() -> list[dict[Case, Found]]:
    wanted = [Case(name, "lone") for name in PLANTED]
    return run_ranks(2, on_a_rank, wanted + [first_pair(name) for name in NAMES])


def against_one_rank(case: Case) -> list[str]:
    """What two ranks, the second without any sample, give otherwise than one."""
    right = rows.step(*made(case, FIRST, FIRST))
    return [d for found in on_two_ranks() for d in differences(found[case], right, SHARED, limit=1e-6)]


@pytest.mark.ranks
@pytest.mark.parametrize("objective", NAMES)
def test_a_rank_without_any_sample_joins_and_the_gradient_is_that_of_one_rank(objective: str) -> None:
    assert not against_one_rank(first_pair(objective))


@pytest.mark.ranks
def test_means_over_the_samples_of_a_rank_are_noticed() -> None:
    assert against_one_rank(Case("by_rank", "lone"))


# ------------------------------------------------------------------------------------------- refusal


@pytest.fixture(scope="module")
def holes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A shard of 20 captions, of which every fourth has a picture."""
    files = paired_data.rows(20)
    for row, parts in enumerate(files):
        if row % 4 != 3:
            del parts["png"]
    return paired_data.shard(tmp_path_factory.mktemp("holes") / "pairs.tar", files)


def recipe(data: str, objective: Objective.Config, **options: Any) -> Recipe:
    encoder = TransformerEncoder.Config(dim=16, depth=2, heads=2)
    members = {"image": paired_data.IMAGE, "text": paired_data.TEXT}
    return Recipe(
        modality=paired_data.Paired.Config(data=(data,), members=members, **options),
        encoders={"image": encoder, "text": encoder},
        objective=objective,
        batch_size=4,
        steps=1,
    )


def sum_with(term: Objective.Config) -> Objective.Config:
    """CLIP of both streams and a term of the pictures."""
    return Weighted.Config(terms={"clip": shrunk(CLIP.Config()), "own": term}, streams={"own": ("image",)})


REFUSED = [n for n in registry.names("objectives") if n not in NAMES]


@pytest.mark.parametrize("objective", REFUSED)
def test_what_takes_stand_ins_for_samples_is_refused_with_a_way_out(objective: str, holes: str) -> None:
    term = shrunk(registry.resolve(objective, "objectives").Config())
    said = (
        rf"^objective.terms.own \({objective}\) takes every row of image for a sample, and 15 of 20 rows have no "
        r"image: set modality.whole=True"
    )
    with pytest.raises(ValueError, match=said):
        build(recipe(holes, sum_with(term)), torch.device("cpu"))
    with pytest.raises(ValueError, match=f"^{objective} takes every row"):
        build(recipe(holes, term), torch.device("cpu"))
    parts = build(recipe(holes, sum_with(term), whole=True), torch.device("cpu"))
    whole = parts.modality.dataset("all")
    assert len(whole) == 5
    assert not parts.modality.lacking()


def test_an_encoder_with_batch_norm_is_refused_with_ways_out(holes: str) -> None:
    made = recipe(holes, sum_with(shrunk(InfoNCE.Config())))
    made.encoders = {**made.encoders, "image": ResNetEncoder.Config(depth=10, width=4)}
    said = r"encoders\.image holds batch norm, whose statistics are those of all rows, and 15 of 20 rows have no image"
    with pytest.raises(ValueError, match=said):
        build(made, torch.device("cpu"))
    made.locked = ("image",)
    build(made, torch.device("cpu"))
    made.locked, made.modality = (), made.modality.replace(whole=True)
    build(made, torch.device("cpu"))


def test_a_split_without_a_whole_row_is_said(tmp_path: Path) -> None:
    files = paired_data.rows(20)
    for parts in files[2:]:
        del parts["png"]
    made = paired_data.pairs(paired_data.shard(tmp_path / "pairs.tar", files), whole=True).fit()
    with pytest.raises(ValueError, match=r"modality\.whole=True: no row of the val split has image and text"):
        made.dataset("val")


def test_a_batch_of_one_stream_has_no_stand_ins(holes: str) -> None:
    made = paired_data.pairs(holes).fit()
    samples = [s for s in paired_data.every(made) if s.data.parts.get("image") is not None]
    assert paired_data.clean(made, samples, {"image": paired_data.BOTH["image"]})["image"].present is None
    assert paired_data.clean(made, samples)["image"].present is not None
