"""Views, masks and batches: no field is left behind when rows or samples are taken, and masks travel whole."""

from __future__ import annotations

import pickle
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.data import DataLoader, Dataset

from multissl.contract.data import PER_ROW, PER_SAMPLE, Batch, Mask, Unreadable, Views

ROWS, TOKENS = 6, 4
"""Two views of three samples."""
MARKED = [f for f in fields(Views) if f.metadata]


def bits(numbers: Sequence[int]) -> Tensor:
    """Numbers below 16 as rows of four flags."""
    return torch.tensor([[bool(n >> k & 1) for k in range(TOKENS)] for n in numbers])


def numbered(start: int, count: int, *shape: int) -> Tensor:
    """Rows start, start + 1, ... with their number in every place."""
    return torch.arange(start, start + count).view(-1, *[1] * len(shape)).expand(-1, *shape).clone()


def mask(hidden: Tensor, weight: float, num_hidden: int | None) -> Mask:
    """A mask whose index is padded with three zeros."""
    index = torch.nn.functional.pad(hidden.flatten().nonzero().flatten(), (0, 3))
    weights = torch.full((len(index),), weight)
    weights[-3:] = 0
    return Mask(hidden=hidden, index=index, weight=weights, num_hidden=num_hidden)


def full() -> Views:
    """Views with every field set; each tensor tells its field and its row or sample."""
    return Views(
        x=numbered(0, ROWS, 5),
        stream="image",
        role="global",
        num_views=2,
        masks=(mask(bits([1, 2, 4, 8, 1, 2]), 1.0, 1), mask(bits([3, 5, 6, 9, 10, 12]), 0.5, 2)),
        target=numbered(100, ROWS, TOKENS, 3),
        valid=bits([7, 11, 13, 14, 15, 5]),
        condition=numbered(200, ROWS, 2),
        coords=numbered(300, ROWS, TOKENS, 2),
        present=torch.tensor([True, False, True]),
        sample_id=numbered(400, 3),
        group_id=numbered(500, 3, 2),
        place=numbered(600, 3),
        larger=numbered(700, ROWS, 7),
    )


def tensors(given: Views | Mask) -> dict[str, Tensor]:
    """Every tensor of views, those of masks too, by name."""
    found = {f.name: value for f in fields(given) if isinstance(value := getattr(given, f.name), Tensor)}
    for number, each in enumerate(given.masks if isinstance(given, Views) else ()):
        found |= {f"masks.{number}.{name}": value for name, value in tensors(each).items()}
    return found


# ------------------------------------------------------------------------------------ marks of fields


def unmarked(views: type) -> list[str]:
    """The fields of a class of views that hold tensors and do not say what they have an entry for."""
    hints, lengths = typing.get_type_hints(views), (PER_ROW, PER_SAMPLE)
    assert is_dataclass(views)
    return [f.name for f in fields(views) if mentions(hints[f.name]) and dict(f.metadata) not in lengths]


def mentions(hint: Any) -> bool:
    """Whether a type is one of tensors."""
    return hint is Tensor or any(mentions(part) for part in typing.get_args(hint))


@dataclass(kw_only=True, slots=True)
class WithDepth(Views):
    """Views to which somebody adds tensors and forgets what they have an entry for."""

    depth: Tensor | None = None
    layers: tuple[Tensor, ...] = ()


def test_every_tensor_of_views_is_one_of_rows_or_of_samples() -> None:
    assert unmarked(Views) == []
    assert {f.name for f in MARKED} == {name for name in tensors(full()) if "." not in name}


def test_a_mark_says_how_many_entries_there_are() -> None:
    for f in MARKED:
        assert len(getattr(full(), f.name)) == (ROWS if f.metadata == PER_ROW else 3), f.name


def test_a_field_without_a_mark_is_noticed() -> None:
    assert unmarked(WithDepth) == ["depth", "layers"]


def test_the_views_of_these_tests_set_every_field() -> None:
    views, plain = full(), Views(x=torch.zeros(1, 1), stream="", role="clean")
    for f in fields(Views):
        value = getattr(views, f.name)
        if not isinstance(value, Tensor):
            assert value != getattr(plain, f.name), f.name
    assert len({tuple(t.flatten().tolist()) for t in tensors(views).values()}) == len(tensors(views))


# --------------------------------------------------------------------------------------- what counts


def test_tokens_count_that_are_no_padding_of_samples_that_are_there() -> None:
    views = full()
    assert views.present_rows is not None
    assert views.present_rows.tolist() == [True, False, True, True, False, True]
    real = views.real_tokens(TOKENS)
    assert real is not None
    assert torch.equal(real, bits([7, 0, 13, 14, 0, 5]))
    with pytest.raises(
        ValueError, match="image says of 4 tokens which are padding, and its encoder gives 9: take"
    ):
        views.real_tokens(9)
    views.present = None
    assert views.real_tokens(TOKENS) is views.valid
    views.valid, views.present = None, torch.tensor([True, False, True])
    real = views.real_tokens(TOKENS)
    assert real is not None
    assert torch.equal(real, bits([15, 0, 15, 15, 0, 15]))
    views.present = None
    assert views.present_rows is None
    assert views.real_tokens(TOKENS) is None


def test_a_mask_counts_the_real_of_its_hidden_tokens_alone() -> None:
    """Rows hide tokens 0 and 1, 0 and 2, ...; of row 1 one is real, of row 2 none."""
    given = full().masks[1]
    counting = given.counting(bits([15, 1, 8, 9, 15, 15]))
    assert torch.equal(counting.hidden, given.hidden)
    assert torch.equal(counting.index, given.index)
    assert counting.weight.tolist() == [0.5, 0.5, 1, 0, 0, 0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0, 0, 0]
    assert given.counting(None) is given


# -------------------------------------------------------------------------------- what stays in step


def test_a_view_of_several_keeps_its_rows_of_every_field() -> None:
    views = full()
    second = views.part(1, 1)
    assert (second.num_views, second.batch) == (1, 3)
    assert second.x[:, 0].tolist() == [3, 4, 5]
    for f in MARKED:
        rows = slice(3, 6) if f.metadata == PER_ROW else slice(None)
        assert torch.equal(getattr(second, f.name), getattr(views, f.name)[rows]), f.name
        assert getattr(second, f.name).untyped_storage().data_ptr() == (
            getattr(views, f.name).untyped_storage().data_ptr()
        ), f"{f.name} is a copy"
    one, two = second.masks
    assert torch.equal(one.hidden, bits([8, 1, 2]))
    assert one.index.tolist() == [0, 0, 0, 3, 4, 9, 0, 0, 0]  # 15, 16 and 21 of the whole
    assert one.weight.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert two.index.tolist() == [0] * 6 + [0, 3, 5, 7, 10, 11] + [0] * 3
    assert two.weight.tolist() == [0] * 6 + [0.5] * 6 + [0] * 3
    assert (one.num_hidden, two.num_hidden) == (1, 2)


def test_all_views_are_the_views_themselves() -> None:
    views = full()
    assert views.part(0, 2) is views


def test_some_samples_keep_their_rows_of_every_view() -> None:
    views, index = full(), torch.tensor([2, 0])
    assert views.rows_of(index).tolist() == [2, 0, 5, 3]
    some = views.samples(index)
    assert (some.num_views, some.batch) == (2, 2)
    assert some.x[:, 0].tolist() == [2, 0, 5, 3]
    assert some.sample_id is not None
    assert some.sample_id.tolist() == [402, 400]
    for f in MARKED:
        places = [2, 0, 5, 3] if f.metadata == PER_ROW else [2, 0]
        assert torch.equal(getattr(some, f.name), getattr(views, f.name)[places]), f.name
    for each, patterns, count in zip(some.masks, ([4, 1, 2, 8], [6, 3, 12, 9]), (1, 2), strict=True):
        assert torch.equal(each.hidden, bits(patterns))
        assert (len(each.index), len(each.weight), each.num_hidden) == (0, 0, count)


def test_a_function_reaches_every_tensor_and_changes_no_original() -> None:
    views, changed = full(), full().map(lambda t: t.double() + 1)
    assert tensors(changed).keys() == tensors(views).keys()
    for name, value in tensors(changed).items():
        assert torch.equal(value, tensors(full())[name].double() + 1), name
        assert torch.equal(tensors(views)[name], tensors(full())[name]), name
    for f in ("stream", "role", "num_views"):
        assert getattr(changed, f) == getattr(views, f)
    assert [m.num_hidden for m in changed.masks] == [1, 2]


def test_every_tensor_goes_to_another_device() -> None:
    moved = full().to(torch.device("meta"))
    assert {name: t.device.type for name, t in tensors(moved).items()} == dict.fromkeys(
        tensors(full()), "meta"
    )
    assert (moved.num_views, [m.num_hidden for m in moved.masks]) == (2, [1, 2])


def test_fields_that_are_not_there_stay_away() -> None:
    plain = Views(x=numbered(0, ROWS, 5), stream="image", role="global", num_views=2)
    for views in (
        plain.map(torch.clone),
        plain.to(torch.device("meta")),
        plain.part(1, 1),
        plain.samples(torch.tensor([0])),
    ):
        assert tensors(views).keys() == {"x"}
        assert views.mask is None


def test_views_take_another_mask_or_none() -> None:
    views = full()
    first, second = views.masks
    assert views.mask is first
    assert views.with_mask(second).masks == (second,)
    bare = views.with_mask(None)
    assert bare.masks == ()
    assert bare.x is views.x
    assert views.masks == (first, second)


# ------------------------------------------------------------------------------------- masks travel


@pytest.mark.parametrize("num_hidden", [None, 1])
def test_a_tree_of_masks_keeps_their_kind_and_their_count(num_hidden: int | None) -> None:
    given = mask(bits([1, 2]), 1.0, num_hidden)
    assert [t.data_ptr() for t in tree_leaves(given)] == [
        t.data_ptr() for t in (given.hidden, given.index, given.weight)
    ]
    found: dict[str, Any] = tree_map_only(
        Tensor, lambda t: t.double() + 1, {"image": {"mask": given, "x": torch.zeros(2)}, "count": 3}
    )
    changed = found["image"]["mask"]
    assert isinstance(changed, Mask)
    assert torch.equal(changed.hidden, given.hidden.double() + 1)
    assert torch.equal(changed.index, given.index.double() + 1)
    assert torch.equal(changed.weight, given.weight.double() + 1)
    assert changed.num_hidden == num_hidden
    assert (found["image"]["x"].tolist(), found["count"]) == ([1, 1], 3)


def test_a_tree_knows_every_field_of_a_mask() -> None:
    shapes = tree_map(lambda t: tuple(t.shape), mask(bits([1, 2]), 1.0, 1))
    assert {f.name: getattr(shapes, f.name) for f in fields(Mask)} == {
        "hidden": (2, 4), "index": (5,), "weight": (5,), "num_hidden": 1,
    }  # fmt: skip


class Drawn(Dataset[dict[str, Any]]):
    """What `collate` gives for a step, with a mask of its own."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, step: int) -> dict[str, Any]:
        return {"image": {"x": numbered(step, 2, 5), "mask": mask(bits([step, 8]), 1.0, 1)}}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mask_comes_from_a_worker_as_it_was_drawn(workers: int) -> None:
    loader = DataLoader(Drawn(), batch_size=None, num_workers=workers)
    loaded = list(loader)
    assert len(loaded) == 3
    for step, raw in enumerate(loaded):
        found, expected = raw["image"], Drawn()[step]["image"]
        assert isinstance(found["mask"], Mask)
        assert torch.equal(found["x"], expected["x"])
        for name, value in tensors(expected["mask"]).items():
            assert torch.equal(tensors(found["mask"])[name], value), name
        assert found["mask"].num_hidden == 1


# ----------------------------------------------------------------------------------------- batches


def batch() -> Batch:
    return Batch(
        [
            Views(x=numbered(0, 3, 5), stream="image", role="clean"),
            full(),
            Views(x=numbered(50, 3, 7), stream="text", role="clean"),
        ]
    )


def test_views_are_found_by_stream_and_role() -> None:
    made = batch()
    assert made.of("image", "clean") is made.find("image", "clean") is made[0]
    assert made.of("image", "global") is made[1]
    assert made.of("text", "clean") is made[-1]
    assert made.find("text", "global") is None
    assert made.find("audio", "clean") is None


@pytest.mark.parametrize(
    ("stream", "role", "views"),
    [("text", "local", "local views of text"), ("a", "clean", "clean views of a")],
)
def test_views_that_are_not_there_are_told_beside_those_that_are(stream: str, role: Any, views: str) -> None:
    with pytest.raises(ValueError, match="the batch holds no ") as error:
        batch().of(stream, role)
    assert str(error.value) == (
        f"the batch holds no {views}, only Batch(1 clean image, 2 global image, 1 clean text): "
        "ask for them in plans()"
    )


def test_a_batch_is_a_sequence_of_views_and_a_slice_of_it_a_batch() -> None:
    made = batch()
    assert len(made) == 3
    assert [v.stream for v in made] == ["image", "image", "text"]
    first, *rest = made
    assert first is made[0]
    some = made[1:]
    assert isinstance(some, Batch)
    assert [*some] == rest
    assert some[0] is made[1]
    assert some.find("image", "clean") is None
    with pytest.raises(IndexError):
        made[3]


def test_a_batch_tells_what_it_holds() -> None:
    assert repr(batch()) == "Batch(1 clean image, 2 global image, 1 clean text)"
    assert repr(Batch()) == "Batch()"
    assert len(Batch()) == 0


def test_a_batch_is_made_of_any_views_and_keeps_them() -> None:
    views = [*batch()]
    made = Batch(v for v in views)
    views.clear()
    assert len(made) == 3


def test_a_batch_is_changed_and_moved_as_its_views_are() -> None:
    made = batch()
    for changed, expected in (
        (made.map(lambda t: t.double() + 1), [v.map(lambda t: t.double() + 1) for v in made]),
        (made.to(torch.device("cpu")), [*made]),
    ):
        assert isinstance(changed, Batch)
        assert len(changed) == len(expected)
        for one, other in zip(changed, expected, strict=True):
            assert (one.stream, one.role, one.num_views) == (other.stream, other.role, other.num_views)
            assert tensors(one).keys() == tensors(other).keys()
            assert all(torch.equal(t, tensors(other)[name]) for name, t in tensors(one).items())
    assert {t.device.type for v in made.to(torch.device("meta")) for t in tensors(v).values()} == {"meta"}


def test_what_takes_lists_apart_leaves_a_batch_whole() -> None:
    made = batch()
    assert tree_leaves([made, {"batch": made}]) == [made, made]


def test_a_batch_travels_to_another_process() -> None:
    made = batch()
    again = pickle.loads(pickle.dumps(made))
    assert repr(again) == repr(made)
    for one, other in zip(again, made, strict=True):
        assert all(torch.equal(t, tensors(other)[name]) for name, t in tensors(one).items())


def test_why_a_sample_cannot_be_read_travels_to_another_process() -> None:
    again = pickle.loads(pickle.dumps(Unreadable(3, "it is empty")))
    assert (again.index, again.reason, str(again)) == (3, "it is empty", "it is empty")
