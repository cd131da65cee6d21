from typing import Any

import pytest
import torch
from torch import Tensor

from multissl import registry
from multissl.contract.encoder import build_encoders
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.attention import Attention
from multissl.layers.decoder import Decoder
from multissl.layers.kernels.base import kernel, layout
from multissl.layers.transformer import Trunk
from multissl.objectives.mae import MAE

CPU = torch.device("cpu")
SIZES = ((3, 5), (2, 9), (1, 1))


def dense(attention: Attention, x: Tensor, seen: Tensor) -> Tensor:
    """One row [N, D] by the formula; seen bool [N, N]."""
    q, k, v = attention.qkv(x).view(len(x), 3, attention.heads, -1).permute(1, 2, 0, 3)  # [H, N, d]
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, float("-inf"))
    return attention.proj((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_packed_rows_see_only_themselves(causal: bool, padded: bool) -> None:
    attention = Attention(8, 2)
    groups = [torch.randn(r, n, 8) for r, n in SIZES]
    valid = [torch.rand(r, n) < 0.6 for r, n in SIZES] if padded else []
    for v in valid:
        v[:, 0] = True
    packed = torch.cat([g.flatten(0, 1) for g in groups])
    out = attention(packed, layout(SIZES, CPU, attention.kernel, causal=causal, valid=valid))
    expected: list[Tensor] = []
    for i, group in enumerate(groups):
        for j, row in enumerate(group):
            n = len(row)
            seen = torch.ones(n, n, dtype=torch.bool)
            if causal:
                seen = seen.tril()
            if padded:
                seen = seen & valid[i][j]
            expected.append(dense(attention, row, seen))
    torch.testing.assert_close(out, torch.cat(expected))


def test_the_first_token_s_weights_are_those_used() -> None:
    attention = Attention(8, 2)
    with torch.no_grad():
        attention.proj.weight.copy_(torch.eye(8))
        attention.proj.bias.zero_()
    x = torch.randn(2 * 5, 8)
    packing = layout(
        [(2, 5)], CPU, attention.kernel, valid=[torch.tensor([[True] * 5, [True] * 3 + [False] * 2])]
    )
    weights = attention.first_token(x, packing)  # [R, H, N]
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2))
    assert not weights[1, :, 3:].any()
    v = attention.qkv(x)[:, 16:].view(2, 5, 2, 4).transpose(1, 2)  # [R, H, N, d]
    mixed = (weights[:, :, None] @ v).flatten(1)  # [R, D]
    torch.testing.assert_close(attention(x, packing).view(2, 5, 8)[:, 0], mixed)


@pytest.mark.parametrize("backend", ["varlen", "xformers"])
def test_fast_kernels_say_where_they_run(backend: str) -> None:
    attention = Attention(8, 2, backend)
    with pytest.raises(
        ValueError, match=f"attention={backend} runs on CUDA.*cpu.*float32.*use attention=sdpa"
    ):
        attention(torch.randn(10, 8), layout([(2, 5)], CPU, attention.kernel))


def test_kernels_refuse_what_they_cannot_mask() -> None:
    with pytest.raises(ValueError, match="knows no padding"):
        layout([(1, 2)], CPU, kernel("varlen"), valid=[torch.ones(1, 2, dtype=torch.bool)])
    with pytest.raises(ValueError, match="attention=varlen is not causal"):
        layout([(1, 2)], CPU, kernel("varlen"), causal=True)
    with pytest.raises(ValueError, match="heads=3 does not divide dim=8"):
        Attention(8, 3)


def test_row_starts_count_through_all_groups() -> None:
    assert layout(SIZES, CPU, kernel("varlen")).prepared.tolist() == [0, 5, 10, 15, 24, 33, 34]


def test_every_registered_kernel_knows_its_name() -> None:
    assert {name: kernel(name).name for name in registry.names("kernels")} == {
        name: name for name in registry.names("kernels")
    }


def test_a_decoder_takes_the_kernel_of_its_encoder() -> None:
    spec = StreamSpec(kind="grid", shape=(3, 8, 8), patch=(4, 4), num_tokens=4, target_dim=48)
    encoder = TransformerEncoder.Config(dim=8, depth=1, heads=2, attention="xformers")
    encoders = build_encoders({"image": encoder}, {"image": spec})
    objective = MAE.Config(decoder=Decoder.Config(dim=8, depth=1, heads=2)).build(encoders, {"image": spec})
    kernels = {m.kernel.name for m in objective.modules() if isinstance(m, Attention | Trunk)}
    assert kernels == {"xformers"}


def test_an_unknown_kernel_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="attention=xformer: no such kernel; did you mean xformers"):
        TransformerEncoder.Config(attention="xformer")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["varlen", "xformers"])
@pytest.mark.parametrize("causal", [False, True])
def test_fast_kernels_equal_sdpa(backend: str, causal: bool) -> None:
    if backend == "xformers":
        pytest.importorskip("xformers", exc_type=ImportError)
    elif causal:
        pytest.skip("varlen is not causal")
    sizes = ((4, 257), (16, 50))
    qkv = torch.randn(4 * 257 + 16 * 50, 3, 6, 64, device="cuda", dtype=torch.bfloat16)
    results: list[tuple[Tensor, Any]] = []
    for name in ("sdpa", backend):
        leaf = qkv.clone().requires_grad_()
        attend = kernel(name)
        out = attend(leaf, layout(sizes, leaf.device, attend, causal))
        out.float().square().sum().backward()
        results.append((out.detach().float(), leaf.grad.float() if leaf.grad is not None else None))
    torch.testing.assert_close(results[0], results[1], rtol=2e-2, atol=2e-2)
