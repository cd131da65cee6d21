"""Kernels and copies of a step, counted without a GPU: the rule, and the stored table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import launches, lowering
from benchmarks.launches import DEVICE, META, Launches, beyond, count, count_parts
from benchmarks.whole_step import without_content
from multissl.devices import constant
from multissl.modalities.image.ops import WHOLE
from multissl.parallel.compiling import Whole


def test_kernels_are_operations_on_the_device_and_lists_count_once() -> None:
    def part() -> None:
        x = torch.empty(4, 8, device=DEVICE)
        y = (x.t() + 1).mul_(2)  # two kernels of 32 numbers each in and out
        torch.ops.aten._foreach_add_.Scalar([x, y], 1.0)
        torch.zeros(3).add_(1)  # the host's

    assert count(part) == Launches(kernels=3, copies=0, blocking=0, bytes=2 * 2 * 128 + 2 * 2 * 128)


def test_copies_block_unless_their_source_is_page_locked_and_nobody_waits() -> None:
    def copies(part: Any) -> tuple[int, int]:
        counted = count(part)
        assert counted.kernels == 0
        return counted.copies, counted.blocking

    assert copies(lambda: torch.zeros(3).pin_memory().to(DEVICE, non_blocking=True)) == (1, 0)
    assert copies(lambda: torch.zeros(3).pin_memory().to(DEVICE)) == (1, 1)
    assert copies(lambda: torch.zeros(3).to(DEVICE, non_blocking=True)) == (1, 1)
    assert copies(lambda: torch.tensor([1.0, 2.0], device=DEVICE)) == (1, 1)
    assert copies(lambda: constant((1.0, 2.0), DEVICE)) == (0, 0)


def test_a_compiled_function_counts_as_the_kernels_that_are_left_of_it() -> None:
    def softened(x: torch.Tensor) -> torch.Tensor:
        return (x * 2 + 1).tanh().clamp_(0, 1).bfloat16()

    whole = Whole(softened)
    counted = count(lambda: whole(torch.empty(100, 100, device=DEVICE)))
    assert counted == Launches(kernels=1, copies=0, blocking=0, bytes=10_000 * (4 + 2))
    assert count(lambda: softened(torch.empty(100, 100, device=DEVICE))).kernels == 5


def test_what_an_operation_writes_into_is_not_read() -> None:
    def part() -> None:
        x = torch.empty(100, device=DEVICE)
        torch.mul(x, 2.0, out=torch.empty_like(x))

    assert count(part) == Launches(kernels=1, copies=0, blocking=0, bytes=2 * 400)


def test_a_backward_pass_is_counted_on_the_stand_in() -> None:
    def part() -> None:
        x = torch.empty(100, device=META, requires_grad=True)
        (x * 2).sum().backward()

    kernels = 2 + 2  # the product and the sum; their gradients, the first of which is 1
    assert count(part, backward=True).kernels == kernels


def test_a_compiled_module_counts_as_its_two_graphs_and_equals_are_lowered_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handed: list[int] = []
    kernels_of = lowering.kernels_of

    def noted(graph: Any, tensors: Any, options: Any) -> tuple[int, int]:
        handed.append(len(tensors))
        return kernels_of(graph, tensors, options)

    monkeypatch.setattr(lowering, "kernels_of", noted)

    def prepare(compiled: bool) -> Any:
        layers = [nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Tanh()) for _ in range(2)]
        blocks = nn.Sequential(*layers).to(META, torch.bfloat16)
        for block in blocks if compiled else ():
            block.compile()

        def run() -> Iterator[str]:
            out = blocks(torch.empty(128, 64, dtype=torch.bfloat16, device=META, requires_grad=True))
            yield "forward"
            out.backward(torch.empty_like(out))
            yield "backward"
            for parameter in blocks.parameters():  # else the second run adds to them
                parameter.grad = None

        return run

    parts = count_parts(lambda: prepare(True))
    assert parts["forward"].kernels == 2 * 2, "a product with its bias, and what follows it"
    assert parts["backward"].kernels == 2 * 3, "what follows with the bias's sum, and two products"
    assert len(handed) == 2
    written = count_parts(lambda: prepare(False))
    assert written["forward"].kernels == 2 * 3
    assert written["backward"].bytes > parts["backward"].bytes
    assert len(handed) == 2


def test_a_step_takes_tensors_of_the_host_for_copies() -> None:
    with without_content():
        counted = count(lambda: torch.tensor([1.0], device=META), backward=True)
    assert (counted.kernels, counted.copies, counted.blocking) == (0, 1, 1)


def test_a_count_above_its_limit_is_named() -> None:
    rows = {"views": {"kernels": 21, "copies": 2, "blocking": 0}, "batch": {"copies": 3, "blocking": 1}}
    assert beyond(rows) == [
        "views: 21 kernels, at most 20 are allowed",
        "batch: 1 blocking, at most 0 are allowed",
    ]


def test_views_copy_what_is_drawn_at_once_and_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    roles: list[Any] = []
    monkeypatch.setattr(launches, "lowered", lambda function, *_call: (roles.append(function), (1, 0))[1])
    counted = count(launches.views)
    assert roles[-2:] == [WHOLE] * 2
    assert counted == Launches(kernels=2, copies=1, blocking=0, bytes=0), "all else is in the two graphs"
    batch = count(launches.batch_to_device)
    assert (batch.kernels, batch.copies, batch.blocking) == (0, 3, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # of what enters a block
def test_the_stored_table_is_what_is_counted() -> None:
    stored = json.loads(launches.STORED.read_text())
    counted = launches.table()
    assert beyond(counted["rows"]) == []
    if counted["torch"] == stored["torch"]:
        assert counted == stored


def test_the_stored_table_keeps_its_limits() -> None:
    stored = json.loads(launches.STORED.read_text())
    assert stored["rows"].keys() == {*launches.ROWS, *launches.STEPS} == launches.LIMITS.keys()
    assert beyond(stored["rows"]) == []
