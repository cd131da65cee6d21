"""Losses over prototypes, compiled: one graph each, the numbers of the written form, few bytes a logit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch._dynamo
from torch import Tensor

from benchmarks.sinkhorn import compiled, measure
from multissl.losses.sinkhorn import centered, sinkhorn
from multissl.losses.targets import Targets, cross_entropy, weighted_sum
from multissl.parallel import compiling
from multissl.parallel.compiling import Whole
from tests.helpers.compiling import traced_functions


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Compile with a backend that only traces; the list gets the name of every function at each of its graphs."""
    names: list[str] = []
    torch._dynamo.reset()
    monkeypatch.setattr(Whole, "_compiled", traced_functions(names))
    monkeypatch.setattr(compiling, "trouble", lambda _: "")
    compiling.choose(True)
    yield names
    compiling.choose(None)
    torch._dynamo.reset()


def everything(temperature: float, teacher: Tensor, student: Tensor, real: Tensor) -> list[Tensor]:
    """Targets of two kinds, a mean, and the loss with its gradient by both teachers of a row."""
    targets: list[Targets] = [
        sinkhorn(teacher, temperature, real),
        centered(teacher, temperature, teacher[0].float()),
    ]
    student = student.detach().requires_grad_()
    rows = torch.stack([torch.arange(len(student)), torch.arange(len(student)).flip(0)], 1)
    losses = cross_entropy(student, targets[0], rows, 0.1)
    (losses * torch.arange(len(losses))).sum().backward()
    assert student.grad is not None
    potentials = [p for t in targets for p in (t.a, t.b)]
    return [*potentials, weighted_sum(real.float(), teacher), losses.detach(), student.grad]


def sides(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a teacher and a student [12, 40], and which rows are real."""
    noise = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(12, 40, generator=noise).to(dtype) for _ in range(2))
    return teacher, student, torch.arange(12) < 9


def test_each_function_is_one_graph_and_another_temperature_adds_none(graphs: list[str]) -> None:
    for temperature in (0.04, 0.05, 0.07):
        everything(temperature, *sides())
    assert sorted(graphs) == sorted(set(graphs))
    assert len(graphs) == 6


def test_one_graph_gives_the_numbers_of_the_written_form(graphs: list[str]) -> None:
    compiled = everything(0.05, *sides())
    assert graphs
    compiling.choose(False)
    torch.testing.assert_close(compiled, everything(0.05, *sides()))


def test_no_rows_need_no_graph(graphs: list[str]) -> None:
    targets = sinkhorn(torch.zeros(0, 6), 0.07)
    assert cross_entropy(torch.zeros(0, 6), targets, torch.zeros(0, 1, dtype=torch.long), 0.1).shape == (0,)
    assert not graphs


@pytest.mark.slow
def test_inductor_gives_the_same_numbers_and_reads_few_bytes() -> None:
    written = everything(0.05, *sides(torch.bfloat16))
    with compiled(True):
        numbers = everything(0.05, *sides(torch.bfloat16))
    torch.testing.assert_close(numbers, written, atol=1e-5, rtol=1e-2)  # the gradient is bf16
    torch.testing.assert_close(numbers[:-1], written[:-1], atol=1e-5, rtol=1e-5)
    costs = measure(512, 4096, timed=False)
    assert costs["targets, compiled"].bytes <= 0.2 * costs["targets, matrix form"].bytes
    assert costs["loss and gradient, compiled"].bytes <= 10.05  # potentials are read beside 4,096 logits
