"""Working parameters: the gradients of sharded training, summed in fp32, wherever a module keeps its parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.dinov2_step import stepper, toy
from multissl.build import build
from multissl.parallel.ranks import process_group
from multissl.parallel.replicas import replicate
from multissl.parallel.sharding import Parallel, full
from tests.helpers.ranks import run_ranks


class Tied(nn.Module):
    """A recurrent network, which keeps a list of its weights, and a weight with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(5, 6, batch_first=True)
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.spare = nn.Parameter(torch.ones(3))
        self.fixed = nn.Parameter(torch.randn(6), requires_grad=False)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen = [self.first.weight.dtype, self.fixed.dtype, self.scale.dtype]
        h, _ = self.recurrent(x.to(self.first.weight.dtype))
        return (self.second(self.first(h)) + self.fixed).float().mul(self.scale).square().mean()

    def encode(self, x: Tensor) -> Tensor:
        return self(x)


def tied() -> Tied:
    torch.manual_seed(0)
    return Tied()


def test_modules_compute_in_half_precision_and_show_fp32_masters() -> None:
    module, plain, x = tied(), tied(), torch.randn(4, 3, 5)
    replicate(module, ["encode"], torch.bfloat16, [module.scale])
    module(x).backward()
    assert module.seen == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert module.second.weight is module.first.weight
    state = module.state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert {t.dtype for t in state.values()} == {torch.float32}
    for name, value in plain.state_dict().items():
        assert torch.equal(state[name], value), name
    plain(x).backward()
    for (name, p), right in zip(module.named_parameters(), plain.parameters(), strict=True):
        if right.grad is None:
            assert p.grad is None, name
            continue
        assert p.grad is not None
        assert p.grad.dtype == torch.float32
        torch.testing.assert_close(p.grad, right.grad, atol=2e-3, rtol=0.05)


def test_what_an_optimizer_writes_is_what_computes_next() -> None:
    module, x = tied(), torch.randn(4, 3, 5)
    replicate(module, ["encode"], torch.bfloat16, [])
    before = module(x).item()
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert before > 0
    with torch.inference_mode():
        assert module.encode(x).item() == 0
    loss = module(x)
    assert loss.item() == 0
    loss.backward()
    assert module.encode(x).item() == 0


def test_gradients_of_several_backward_passes_are_summed_in_fp32() -> None:
    module = nn.Linear(1, 1, bias=False)
    replicate(module, [], torch.bfloat16, [])
    for value in (256.0, 1.0, 1.0):  # in bf16, 256 + 1 is 256
        module(torch.full((1, 1), value).bfloat16()).sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.item() == 258


def test_an_error_leaves_the_masters_in_place() -> None:
    module = tied()
    replicate(module, ["encode"], torch.bfloat16, [])
    for call in (module, module.encode):
        with pytest.raises(RuntimeError):
            call(torch.zeros(1, 1, 7))
        assert {p.dtype for p in module.parameters()} == {torch.float32}


def trained(parallel: Parallel) -> dict[str, Tensor]:
    """The state of a small DINOv2 after three steps."""
    with process_group() as device:
        made = toy(4)
        made.parallel = parallel
        parts = build(made, device)
        step = stepper(parts, made, device)
        for number in range(3):
            step(number)
        return {n: full(t).clone() for n, t in parts.learner.state_dict().items()}


@pytest.mark.parametrize("checkpointed", [False, True])
def test_half_precision_trains_as_sharded_parameters_do(checkpointed: bool) -> None:
    options: dict[str, Any] = {"precision": "bf16", "checkpoint_activations": checkpointed}
    ours = trained(Parallel(**options))
    right = trained(Parallel(**options, fully_shard="always"))
    assert ours.keys() == right.keys()
    for name, value in right.items():
        torch.testing.assert_close(ours[name], value, atol=1e-6, rtol=1e-5, msg=name)


def gradient_of(_rank: int, half: torch.dtype | None) -> tuple[Tensor, bool]:
    module = nn.Linear(3, 2, bias=False)
    nn.init.ones_(module.weight)
    replicate(module, [], half, [])
    for _ in range(2):
        module(torch.full((1, 3), _rank + 1.0).to(half or torch.float32)).sum().backward()
    assert module.weight.grad is not None
    return module.weight.grad, module.weight.dtype == torch.float32


@pytest.mark.ranks
@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_ranks_average_what_each_backward_pass_adds(half: torch.dtype | None) -> None:
    for grad, wide in run_ranks(2, gradient_of, half):
        assert wide
        assert torch.equal(grad, torch.full((2, 3), 3.0))
