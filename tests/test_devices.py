"""Tensors that travel together, and constants that are made once."""

from __future__ import annotations

import torch
from torch import Tensor

from multissl import devices
from multissl.contract.data import Mask
from multissl.devices import constant, copied, made_once, packed, unpacked


def test_tensors_of_every_type_come_back_out_of_one_buffer() -> None:
    tensors = [
        torch.tensor([True, False, True]),
        torch.arange(7) - 2**40,
        torch.zeros(0, 3),
        torch.tensor(2.5),
        torch.rand(4, 6).T,
        torch.arange(5, dtype=torch.uint8),
        torch.rand(3, 2, dtype=torch.float64).bfloat16(),
    ]
    buffer = packed(tensors)
    assert buffer.dtype == torch.uint8
    parts = unpacked(buffer, tensors)
    for part, tensor in zip(parts, tensors, strict=True):
        assert part.dtype == tensor.dtype
        assert torch.equal(part, tensor)
        assert part.data_ptr() % devices.ALIGNED == buffer.data_ptr() % devices.ALIGNED or not part.numel()


def test_what_lies_there_already_is_not_copied() -> None:
    mask = Mask(hidden=torch.zeros(2, 4, dtype=torch.bool), index=torch.arange(3), weight=torch.ones(3))
    raw = {"masks": {"0": mask}, "sample_id": torch.arange(2)}
    moved = copied(raw, "cpu")
    assert moved["sample_id"] is raw["sample_id"]
    assert moved["masks"]["0"].index is mask.index


def test_a_tree_keeps_its_shapes_and_types_on_another_device() -> None:
    mask = Mask(hidden=torch.zeros(2, 4, dtype=torch.bool), index=torch.arange(3), weight=torch.ones(3))
    large = torch.zeros(devices.SMALL, dtype=torch.uint8).view(2, -1)
    raw = {"masks": {"0": mask}, "global": large, "sample_id": torch.arange(2)}
    moved = copied(raw, "meta")
    there = moved["masks"]["0"]
    assert isinstance(there, Mask)
    for before, after in (
        (mask.hidden, there.hidden),
        (mask.index, there.index),
        (mask.weight, there.weight),
        (large, moved["global"]),
        (raw["sample_id"], moved["sample_id"]),
    ):
        assert after.is_meta
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
    small = [there.hidden, there.index, there.weight, moved["sample_id"]]
    assert len({t.untyped_storage()._cdata for t in small}) == 1, "small tensors are views of one copy"
    assert moved["global"].untyped_storage().nbytes() == large.nbytes


def test_a_constant_is_made_once_and_has_its_numbers() -> None:
    cpu = torch.device("cpu")
    values = (0.485, 0.456, 1 / 3)
    assert constant(values, cpu) is constant(values, cpu)
    assert torch.equal(constant(values, cpu), torch.tensor(values))
    double = constant(values, cpu, torch.float64)
    assert torch.equal(double, torch.tensor(values, dtype=torch.float64))
    calls: list[int] = []

    def make(count: int) -> Tensor:
        calls.append(count)
        return torch.ones(count)

    for _ in range(2):
        assert made_once(make, (3,), cpu, torch.float64).dtype == torch.float64
    assert calls == [3]


def test_a_constant_of_an_evaluation_serves_training() -> None:
    with torch.inference_mode():
        constant((0.25, 8.0), torch.device("cpu"))
    weight = torch.ones(2, requires_grad=True)
    (weight * constant((0.25, 8.0), torch.device("cpu"))).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [0.25, 8.0]
