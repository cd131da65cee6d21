from __future__ import annotations

import pytest
import torch

from multissl.contract.data import Batch, Views
from multissl.layers.queue import MISSING, NOBODY, Queue, strangers
from multissl.objectives.pairing import ids_of


def keys(start: int, count: int) -> torch.Tensor:
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(-1, 2)


def test_keys_enter_after_the_step_and_the_end_wraps_around() -> None:
    queue = Queue(5, 2)
    start = queue.rows.clone()
    queue.put(keys(10, 3))
    assert torch.equal(queue.rows, start)
    queue.after_step()
    assert queue.rows[:3, 0].tolist() == [10, 11, 12]
    assert torch.equal(queue.rows[3:], start[3:])
    assert queue.share_filled() == 3 / 5
    queue.put(keys(20, 3))
    queue.after_step()
    queue.after_step()  # nothing waits: nothing moves
    assert queue.rows[:, 0].tolist() == [22, 11, 12, 20, 21]
    assert queue.pointer == 1
    assert queue.share_filled() == 1


def test_keys_that_do_not_fit_before_the_end_can_be_dropped() -> None:
    queue = Queue(5, 2, wrap="drop")
    for start in (10, 20):
        queue.put(keys(start, 3))
        queue.after_step()
    assert queue.rows[:, 0].tolist() == [10, 11, 12, 20, 21]
    assert queue.pointer == 0


def test_it_starts_as_random_unit_rows_of_nobody() -> None:
    queue = Queue(64, 8, labels=2)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(64))
    assert (queue.labels == NOBODY).all()
    assert queue.share_filled() == 0


def test_a_step_with_more_keys_than_rows_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"objective\.queue=4: smaller than the 6 keys of a step; set .* to 6"
    ):
        Queue(4, 2).put(keys(0, 6))


def test_state_dict_carries_rows_labels_and_pointer_on() -> None:
    queue, other = Queue(5, 2, labels=2), Queue(5, 2, labels=2)
    queue.put(keys(1, 3), torch.arange(6).view(3, 2))
    queue.after_step()
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.put(keys(7, 4))
        each.after_step()
    assert {"rows", "labels", "pointer", "filled"} == queue.state_dict().keys()
    for name, value in queue.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_keys_keep_no_graph() -> None:
    queue = Queue(4, 2)
    queue.put(torch.ones(2, 2, requires_grad=True) * 2)
    queue.after_step()
    assert not queue.rows.requires_grad


def test_keys_of_the_same_sample_or_group_or_of_a_missing_stream_are_no_negatives() -> None:
    labels = torch.tensor([[1, 10], [2, 20], [3, NOBODY], [MISSING, MISSING], [NOBODY, NOBODY]])
    ids = torch.tensor([[1, 20], [3, NOBODY]])
    assert strangers(ids, labels).tolist() == [
        [False, False, True, False, True],
        [True, True, False, False, True],
    ]


def test_ids_are_those_of_the_first_stream_that_knows_them() -> None:
    first = Views(x=torch.zeros(2, 1), stream="a", role="clean")
    second = Views(x=torch.zeros(2, 1), stream="b", role="clean", sample_id=torch.tensor([4, 5]))
    assert ids_of(Batch([first, second])).tolist() == [[4, NOBODY], [5, NOBODY]]
