from __future__ import annotations

import signal
from typing import Any, ClassVar

import pytest
import torch

from multissl.contract.data import Batch, Raw, Sample
from multissl.contract.plans import Plans
from multissl.engine.batches import ENDING, Data, StepBatches, batches_of
from multissl.random import RowRandom
from tests.helpers.stubs import Points, ViewPlan

PLANS = {"points": ViewPlan(num_global=2)}
CPU = torch.device("cpu")


def steps(count: int = 96, batch: int = 16, rank: int = 0, world: int = 1, **options: Any) -> StepBatches:
    modality = Points.Config(count=count, **options).build()
    return StepBatches(modality, PLANS, batch, 0, rank, world, final=False)


def ids(made: StepBatches, step: int) -> list[int]:
    return made[step][0]["id"].tolist()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_an_epoch_sees_every_sample_once_on_any_number_of_ranks(world: int) -> None:
    ranks = [steps(rank=r, world=world) for r in range(world)]
    seen = [i for step in range(6) for rank in ranks for i in ids(rank, step)]
    assert sorted(seen) == list(range(96))
    assert seen == [i for step in range(6) for i in ids(steps(), step)]


def test_batches_straddle_epochs() -> None:
    made = steps(count=40)
    drawn = [i for step in range(5) for i in ids(made, step)]
    assert sorted(drawn[:40]) == sorted(drawn[40:]) == list(range(40))
    assert drawn[:40] != drawn[40:]


def test_a_broken_sample_is_listed_and_replaced_by_the_next() -> None:
    whole, made = steps(), steps(broken=(7,))
    step = next(s for s in range(6) if 7 in ids(whole, s))
    raw, skipped = made[step]
    assert skipped == [(7, "broken on purpose")]
    assert raw["id"].tolist() == [8 if i == 7 else i for i in ids(whole, step)]


def test_data_that_cannot_be_read_at_all_stops_the_run() -> None:
    with pytest.raises(ValueError, match=r"modality.data: 4 of 4 samples cannot be read.*broken on purpose"):
        steps(count=4, batch=4, broken=(0, 1, 2, 3))[0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["device", "worker"])
def test_views_do_not_depend_on_workers_or_on_where_they_are_made(workers: int, where: str) -> None:
    made = StepBatches(Points.Config().build(), PLANS, 16, 0, 0, 1, final=where == "worker")
    found = list(batches_of(made, 2, 4, Data(workers=workers), 1, CPU))
    expected = steps()
    for step, fetched in zip((2, 3), found, strict=True):
        views = expected.views(expected[step][0], step)[0]
        torch.testing.assert_close(fetched.batch[0].x, views.x, rtol=0, atol=0)
        assert fetched.batch[0].sample_id is not None


class Aware(Points):
    """Says with every batch which signals end the process, and how many threads it has."""

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        deaf = [signal.getsignal(number) == signal.SIG_IGN for number in ENDING]
        return {
            **super().collate(samples, plans, rng),
            "deaf": torch.tensor([*deaf, torch.get_num_threads() == 1]),
        }


def test_workers_are_deaf_to_signals_that_the_trainer_answers_and_have_one_thread(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    torch.set_num_threads(2)
    # what a shell puts into the background is deaf to it from the beginning
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    told: list[list[bool]] = []
    views = StepBatches.views

    def listen(self: StepBatches, raw: Raw, *rest: Any) -> Any:
        told.append(raw["deaf"].tolist())
        return views(self, raw, *rest)

    monkeypatch.setattr(StepBatches, "views", listen)
    for workers, deaf in ((0, False), (1, True)):
        made = StepBatches(Aware(Points.Config()), PLANS, 16, 0, 0, 1, final=False)
        told.clear()
        assert len(list(batches_of(made, 0, 2, Data(workers=workers), 1, CPU))) == 2
        assert told == [[deaf] * (len(ENDING) + 1)] * 2


class Keyed(Points):
    """Notes the keys of the random numbers that it is handed."""

    keys: ClassVar[list[tuple[int, ...]]] = []

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        self.keys.append(tuple(rng.key))
        return super().collate(samples, plans, rng)

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        self.keys.append(tuple(rng.key))
        return super().views(raw, plans, rng)


def test_no_two_draws_of_a_run_are_made_from_one_key() -> None:
    Keyed.keys.clear()
    made = StepBatches(Keyed(Points.Config()), PLANS, 16, 5, 0, 1, final=False)
    for step in range(8):
        made.views(made[step][0], step)
    assert Keyed.keys == [(5, step, line) for step in range(8) for line in (0, 1)]
    assert len(set(Keyed.keys)) == 16


def test_the_wait_for_a_batch_is_that_of_reading_it_and_of_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading takes a second of a clock that nothing else moves, and what is done with a batch takes a minute."""
    now = 100.0
    inner = StepBatches.__getitem__

    def slow(self: StepBatches, step: int) -> Any:
        nonlocal now
        now += 1.0
        return inner(self, step)

    monkeypatch.setattr(StepBatches, "__getitem__", slow)
    monkeypatch.setattr("multissl.engine.batches.time.perf_counter", lambda: now)
    waits = []
    for fetched in batches_of(steps(), 0, 3, Data(workers=0), 1, CPU):
        waits.append(fetched.waited)
        now += 60.0
    assert waits == [1.0, 1.0, 1.0]
