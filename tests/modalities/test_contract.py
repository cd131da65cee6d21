"""What every modality owes the rest, asked of all registered ones on their built-in data, and of a package's own.

Shapes and types against the `StreamSpec`; the same bytes for 0, 1 and 3 workers and after a restart in the middle of
the stream; two ranks together are one; equal counts of hidden tokens; views of a sample that differ; clean views that
take no notice of the draws. What only some of them do (tubes, bands, padding, corruption) is tested beside them.
Shapes: B samples, V views, R = V*B rows, N tokens, M hidden ones of a batch, T values or classes of a target.
"""

# long file: what every modality owes is read in one place

from __future__ import annotations

import builtins
import functools
import io
import json
import os
import pickle
import random
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from multissl import registry
from multissl.contract.data import Batch, Mask, Role, Views
from multissl.contract.modality import Modality, Need, NotFitted
from multissl.contract.plans import CLEAN, ViewPlan
from multissl.engine.batches import Data, StepBatches, batches_of
from multissl.random import RowRandom
from tests.plugin.multissl_accelerometer import Accelerometer
from tests.test_grid import MODALITIES

SMALL: dict[str, Modality.Config] = {**MODALITIES, "accelerometer": Accelerometer.Config(mask_group=4)}
"""How a modality is made small; one that is not named here runs with its defaults."""
APART: dict[str, dict[str, Any]] = {"text": {"pack": False, "crop": (0.3, 0.7)}}
"""Options under which views show different parts: texts are otherwise told apart by what is hidden."""
BATCH, STEPS, SEED = 8, 4, 5
CPU = torch.device("cpu")
NAMES = [n for n in dict.fromkeys([*registry.names("modalities"), "accelerometer"]) if n != "paired"]
"""Pairs feed several streams; test_paired asks the same of them."""
every_modality = pytest.mark.parametrize("name", NAMES)


def config(name: str) -> Modality.Config:
    return SMALL.get(name) or registry.resolve(name, "modalities").Config()


@functools.cache
def fitted(name: str) -> Modality:
    """The modality with what it fits to its data; skipped where its extra is not installed."""
    try:
        made = config(name).build().fit()
        made.dataset("train")
    except ImportError as error:
        pytest.skip(str(error))
    return made


def another(name: str) -> Modality:
    """The same one as a later process has it: built anew, its state read from JSON."""
    made = config(name).build()
    made.restore(json.loads(json.dumps(fitted(name).state())))
    return made


def plan_of(modality: Modality, ratio: tuple[float, float] = (0.5, 0.5)) -> ViewPlan:
    """Everything that it provides and that goes together."""
    provided = provided_by(modality)
    return ViewPlan(
        num_clean=1,
        num_global=2,
        num_local=2 if "local" in provided else 0,
        mask_ratio=ratio if "mask" in provided else None,
        target="target" in provided,
        coords="coords" in provided,
    )


def provided_by(modality: Modality) -> frozenset[Need]:
    """What plans may ask for in the only stream."""
    (name,) = modality.streams()
    return modality.provides(name)


def steps(modality: Modality, rank: int = 0, world: int = 1, seed: int = SEED) -> StepBatches:
    (name,) = modality.streams()
    return StepBatches(modality, {name: plan_of(modality)}, BATCH, seed, rank, world, final=False)


def batch(made: StepBatches, step: int = 0) -> Batch:
    raw, skipped = made[step]
    assert not skipped
    return made.views(raw, step)


def by_name(views: Views) -> dict[str, Tensor]:
    """Every tensor of the views."""
    found = {f.name: v for f in fields(views) if isinstance(v := getattr(views, f.name), Tensor)}
    for i, mask in enumerate(views.masks):
        found |= {f"mask {i} {part}": getattr(mask, part) for part in ("hidden", "index", "weight")}
    return found


def same(one: Batch, other: Batch) -> None:
    assert [(v.stream, v.role, v.num_views) for v in one] == [(v.stream, v.role, v.num_views) for v in other]
    for a, b in zip(one, other, strict=True):
        left, right = by_name(a), by_name(b)
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert value.dtype == right[name].dtype, name
            assert torch.equal(value, right[name]), f"{a.role} {name}"


# three phases: build, fit or restore, read


def without_files(patch: pytest.MonkeyPatch) -> None:
    """Let every reading of a file or folder fail."""

    def refused(*args: Any, **options: Any) -> Any:
        raise AssertionError(f"reads {args[:1]}")

    for owner, names in {
        builtins: ["open"],
        io: ["open"],
        os: ["open", "listdir", "scandir", "stat"],
    }.items():
        for each in names:
            patch.setattr(owner, each, refused)


EVERY = [*NAMES, "paired"]
SOURCES = {
    "tabular": ["multissl.modalities.tabular.adapter.read_source"],
    "text": ["multissl.modalities.text.adapter.read_texts"],
    "rl": ["multissl.modalities.rl.adapter.RL.replay"],
    "paired": ["multissl.modalities.paired.adapter.Paired.pairs"],
}
"""What reads the training data apart from `dataset`."""


@pytest.mark.parametrize("name", EVERY)
def test_building_reads_no_file(name: str) -> None:
    cfg = config(name)
    if "data" in {f.name for f in fields(cfg)} and name != "paired":
        cfg = cfg.replace(data="nowhere.npz")
    with pytest.MonkeyPatch.context() as patch:
        without_files(patch)
        cfg.build()


@pytest.mark.parametrize("name", EVERY)
def test_streams_are_those_of_the_fitted_or_ask_for_a_fit(name: str) -> None:
    made = config(name).build()
    try:
        before = made.streams()
    except NotFitted as error:
        assert "is not fitted: first call fit()" in str(error)  # noqa: PT017
    else:
        assert before == fitted(name).streams()


@pytest.mark.parametrize("name", EVERY)
def test_a_restored_one_shows_samples_of_its_own_where_no_data_is(name: str) -> None:
    known, later = fitted(name), config(name).build()
    samples = [known.dataset("val")[i] for i in range(3)]
    state = json.loads(json.dumps(known.state()))
    plans = dict.fromkeys(known.streams(), CLEAN)
    rng = RowRandom((SEED,), 0, len(samples), len(samples))
    expected = known.views(known.collate(samples, plans, rng), plans, rng)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(later), "dataset", refuse)
        for source in SOURCES.get(name, ()):
            patch.setattr(source, refuse)
        later.restore(state)
        assert later.streams() == known.streams()
        same(later.views(later.collate(samples, plans, rng), plans, rng), expected)


def refuse(*_: Any) -> Any:
    raise AssertionError("the training data is not here")


# shapes and types


@every_modality
def test_views_are_what_the_stream_says(name: str) -> None:
    modality = fitted(name)
    ((stream_name, spec),) = modality.streams().items()
    plan, made = plan_of(modality), steps(modality)
    found = batch(made)
    counts = {"clean": plan.num_clean, "global": plan.num_global, "local": plan.num_local}
    assert {v.role: v.num_views for v in found} == {r: n for r, n in counts.items() if n}
    assert [v.role for v in found] == [r for r, n in counts.items() if n]
    for views in found:
        rows, tokens = BATCH * views.num_views, spec.num_tokens
        assert views.stream == stream_name
        assert views.x.dtype == (torch.int64 if spec.kind == "sequence" else torch.float32)
        assert len(views.x) == rows
        assert views.x.isfinite().all()
        if views.role == "local":
            assert views.x.dim() == 1 + len(spec.shape)
            assert all(n <= m for n, m in zip(views.x.shape[1:], spec.shape, strict=True))
        else:
            assert tuple(views.x.shape[1:]) == spec.shape
        if spec.kind == "sequence":
            assert 0 <= views.x.min() <= views.x.max() < spec.vocab
        for column, levels in enumerate(spec.cardinalities):
            cells = views.x[:, column]
            assert not levels or (cells == cells.round()).all()
            assert not levels or 0 <= cells.min() <= cells.max() < levels
        assert views.sample_id is not None
        assert (views.sample_id.dtype, views.sample_id.shape) == (torch.int64, (BATCH,))
        assert views.group_id is None or (views.group_id.dtype, len(views.group_id)) == (torch.int64, BATCH)
        assert views.condition is None or views.condition.shape == (rows, spec.condition_dim)
        if views.role == "local":
            tokens = views.coords.shape[1] if views.coords is not None else tokens
        if views.valid is not None and views.role != "local":
            assert (views.valid.dtype, views.valid.shape) == (torch.bool, (rows, tokens))
            assert views.valid.any(1).all()
        if plan.coords and views.role != "clean":
            assert views.coords is not None
            assert views.coords.shape == (rows, tokens, max(len(spec.patch), 1))
        targets = {"values": (rows, tokens, spec.target_dim), "classes": (rows, spec.target_tokens or tokens)}
        if plan.target and views.role == "global":
            assert views.target is not None
            assert tuple(views.target.shape) == targets.get(spec.target_kind, (rows, *spec.shape))
            assert (views.target.dtype == torch.int64) == (spec.target_kind == "classes")
        else:
            assert views.target is None
    assert {n: v.shape for b in found for n, v in by_name(b).items()} == {
        n: v.shape for b in batch(made, 3) for n, v in by_name(b).items()
    }, "shapes change from step to step"


@every_modality
def test_what_a_worker_hands_over_is_tensors_and_masks(name: str) -> None:
    def check(value: Any) -> None:
        assert isinstance(value, dict | Tensor | Mask)
        for inner in value.values() if isinstance(value, dict) else ():
            check(inner)

    check(steps(fitted(name))[0][0])


# the same bytes


@every_modality
def test_workers_and_a_restart_in_the_middle_do_not_change_the_stream(name: str) -> None:
    modality = fitted(name)
    expected = [batch(steps(modality), step) for step in range(STEPS)]
    for workers, first in ((0, 0), (1, 0), (3, 2)):
        later = steps(another(name) if first else modality)
        loaded = batches_of(later, first, STEPS, Data(workers=workers), 1, CPU)
        for fetched, known in zip(loaded, expected[first:], strict=True):
            same(fetched.batch, known)
    assert not torch.equal(expected[0][1].x, expected[1][1].x)
    assert not torch.equal(expected[0][1].x, batch(steps(modality, seed=SEED + 1))[1].x)


def generators() -> tuple[bytes, ...]:
    """Return the states of the global generators."""
    numpy_state = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), pickle.dumps(numpy_state), pickle.dumps(random.getstate())


@every_modality
def test_no_global_generator_is_drawn_from_or_seeded(name: str) -> None:
    modality = another(name)
    before = generators()
    modality.dataset("train")
    batch(steps(modality))
    assert generators() == before


def holds(value: Any, kinds: tuple[type, ...], seen: set[int]) -> bool:
    """Return whether an object of one of some kinds can be reached through attributes and containers."""
    if isinstance(value, kinds):
        return True
    if id(value) in seen or isinstance(value, type | np.ndarray | Tensor | str | bytes):
        return False
    seen.add(id(value))
    inner = list(vars(value).values()) if hasattr(value, "__dict__") else []
    inner += value.values() if isinstance(value, dict) else ()
    inner += value if isinstance(value, list | tuple | set) else ()
    return any(holds(each, kinds, seen) for each in inner)


@every_modality
def test_it_holds_no_parameters_and_no_modules(name: str) -> None:
    modality = fitted(name)
    batch(steps(modality))
    assert not holds(modality, (nn.Module, nn.Parameter), set())


def test_a_module_inside_a_modality_would_be_seen() -> None:
    modality: Any = Accelerometer(Accelerometer.Config(mask_group=4))
    modality.helper = {"deep": [nn.Linear(2, 2)]}
    assert holds(modality, (nn.Module, nn.Parameter), set())


@every_modality
def test_it_travels_to_a_process_that_is_started_afresh(name: str) -> None:
    modality = pickle.loads(pickle.dumps(fitted(name)))
    modality.restore(json.loads(json.dumps(fitted(name).state())))
    same(batch(steps(modality), 1), batch(steps(fitted(name)), 1))


@every_modality
def test_two_ranks_make_the_views_of_one(name: str) -> None:
    modality = fitted(name)
    halves = [batch(steps(modality, rank, 2), 1) for rank in (0, 1)]
    for i, views in enumerate(batch(steps(modality), 1)):
        parts = [by_name(half[i]) for half in halves]
        for key, whole in by_name(views).items():
            if key.endswith(
                ("index", "weight")
            ):  # places among the rows of a rank; they follow from `hidden`
                continue
            count = 1 if len(whole) == BATCH else views.num_views
            cut = [part[key].unflatten(0, (count, -1)) for part in parts]
            # a product of matrices rounds by its number of rows on some CPUs: the mel bands of a sound
            torch.testing.assert_close(
                torch.cat(cut, 1).flatten(0, 1), whole, rtol=0, atol=1e-5, msg=f"{views.role} {key}"
            )


# what views show


@every_modality
def test_clean_views_take_no_draws_and_views_of_a_sample_differ(name: str) -> None:
    options = APART.get(name, {})
    modality = config(name).replace(**options).build() if options else fitted(name)
    if options:
        modality.restore(fitted(name).state())
    (stream_name,) = modality.streams()
    made = StepBatches(
        modality, {stream_name: ViewPlan(num_clean=1, num_global=2)}, BATCH, SEED, 0, 1, final=False
    )
    raw = [made.modality.collate(samples_of(made), made.plans, made.random(s, 0)) for s in (0, 1)]
    clean, large = zip(*(made.views(r, s) for s, r in enumerate(raw)), strict=True)
    assert torch.equal(clean[0].x, clean[1].x)
    first, second = large[0].x.unflatten(0, (2, -1)).flatten(2)
    assert (first != second).any(1).all(), "two views of a sample are equal"
    last = [
        views.x[-BATCH:].flatten(1) for views in large
    ]  # the first may be the sample itself (SCARF's anchor)
    assert (last[0] != last[1]).any(1).all(), "a view is the same in two steps"


def samples_of(made: StepBatches) -> list[Any]:
    return [made.samples[made.index(position)] for position in range(BATCH)]


# masks


@every_modality
def test_another_role_leaves_the_draws_of_a_role_alone(name: str) -> None:
    modality = fitted(name)
    (stream_name,) = modality.streams()
    plan = replace(plan_of(modality), num_global=1)  # more of them move what others show of an episode
    alone: dict[Role, ViewPlan] = {
        "global": replace(plan, num_clean=0, num_local=0),
        "local": replace(plan, num_clean=0, num_global=0, mask_ratio=None, target=False),
    }
    everything = batch(StepBatches(modality, {stream_name: plan}, BATCH, SEED, 0, 1, final=False))
    for role, smaller in alone.items():
        if plan.count(role):
            made = StepBatches(modality, {stream_name: smaller}, BATCH, SEED, 0, 1, final=False)
            same(batch(made), Batch([everything.of(stream_name, role)]))


@every_modality
def test_another_mask_leaves_the_draws_of_the_others_alone(name: str) -> None:
    modality = fitted(name)
    if "masks" not in provided_by(modality):
        pytest.skip(f"{name} provides one mask only")
    (stream_name,) = modality.streams()
    plan = ViewPlan(num_global=2, mask_ratio=(0.1, 0.6))
    one, three = (
        batch(
            StepBatches(modality, {stream_name: replace(plan, num_masks=n)}, BATCH, SEED, 0, 1, final=False)
        )[0]
        for n in (1, 3)
    )
    assert len(three.masks) == 3
    same(Batch([one]), Batch([replace(three, masks=three.masks[:1])]))


@every_modality
def test_every_row_hides_as_many_tokens_at_every_step_and_no_padding(name: str) -> None:
    modality = fitted(name)
    if "mask" not in provided_by(modality):
        pytest.skip(f"{name} provides no masks")
    counts, seen = set(), []
    for step in range(STEPS):
        (views,) = (v for v in batch(steps(modality), step) if v.role == "global")
        assert views.mask is not None
        hidden, index, weight = views.mask.hidden, views.mask.index, views.mask.weight
        (spec,) = modality.streams().values()
        assert (hidden.dtype, hidden.shape) == (torch.bool, (len(views.x), spec.num_tokens))
        real = weight > 0
        assert torch.equal(hidden.flatten().nonzero().flatten(), index[real])
        assert torch.allclose(weight[real] * hidden.sum(1)[index[real] // spec.num_tokens], torch.ones(1))
        assert views.valid is None or not (hidden & ~views.valid).any()
        assert views.mask.num_hidden is not None
        counts |= {views.mask.num_hidden, *hidden.sum(1).tolist()}
        seen.append(hidden)
    (count,) = counts
    assert 0 < count < seen[0].shape[1]
    assert not torch.equal(seen[0], seen[1])


@every_modality
def test_a_range_of_ratios_pads_the_index_to_one_length(name: str) -> None:
    modality = fitted(name)
    if "mask" not in provided_by(modality):
        pytest.skip(f"{name} provides no masks")
    (stream_name,) = modality.streams()
    plan = ViewPlan(num_global=2, mask_ratio=(0.1, 0.6), mask_share=0.5)
    made = StepBatches(modality, {stream_name: plan}, BATCH, SEED, 0, 1, final=False)
    masks = [batch(made, step)[0].mask for step in range(STEPS)]
    assert all(m is not None for m in masks)
    assert len({len(m.index) for m in masks if m}) == 1
    for mask in filter(None, masks):
        assert (mask.weight > 0).sum() == mask.hidden.sum()
        assert 0 < mask.hidden.any(1).sum() <= BATCH  # half of 2 * BATCH rows; a block may find no room
        assert not mask.index[mask.weight == 0].any()
