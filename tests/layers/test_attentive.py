"""Attentive probes beside sums written out, with padding, and the order of their blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from multissl.layers.attentive import (
    CrossAttention,
    CrossAttentionClassifier,
    MeanAttentiveClassifier,
    PlainAttentiveClassifier,
    attend,
)


def randomized(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def summed(q: Tensor, k: Tensor, v: Tensor, heads: int, valid: Tensor) -> Tensor:
    """Attention written out: queries [Q, D], tokens [N, D], of which valid [N] count."""
    width = q.shape[1] // heads
    out = torch.zeros_like(q)
    for i in range(len(q)):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            weights = [
                math.exp(float(q[i, part] @ k[n, part]) / width**0.5) * float(valid[n]) for n in range(len(k))
            ]
            for n, weight in enumerate(weights):
                out[i, part] += weight / sum(weights) * v[n, part]
    return out


VALID = torch.tensor([[True] * 5, [True, False, True, True, False]])


def test_attention_is_the_sum_written_out() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 6, dtype=torch.float64) for n in (2, 5, 5))
    ours = attend(q, k, v, 3, VALID)
    for row in range(2):
        torch.testing.assert_close(ours[row], summed(q[row], k[row], v[row], 3, VALID[row]))


def test_cross_attention_splits_keys_before_values() -> None:
    layer, x = randomized(CrossAttention(6, 2)), torch.randn(2, 5, 6, dtype=torch.float64)
    assert isinstance(layer, CrossAttention)
    key, value = x @ layer.kv.weight[:6].T + layer.kv.bias[:6], x @ layer.kv.weight[6:].T + layer.kv.bias[6:]
    torch.testing.assert_close(layer(x, x, VALID), attend(layer.q(x), key, value, 2, VALID))


PROBES = {
    "V-JEPA": CrossAttentionClassifier(8, 3, heads=2, depth=2),
    "V-JEPA 2": CrossAttentionClassifier(8, 3, heads=2, depth=3, order="tokens"),
    "CAPI": PlainAttentiveClassifier(8, 3, heads=2),
    "AIM": MeanAttentiveClassifier(8, 3, heads=2, queries=2),
}


@pytest.mark.parametrize("name", PROBES)
def test_padding_counts_nothing(name: str) -> None:
    probe, x = randomized(PROBES[name]), torch.randn(2, 5, 8, dtype=torch.float64)
    padded = torch.where(VALID[..., None], x, 1e3)
    torch.testing.assert_close(probe(padded, VALID)[1:], probe(x[1:, [0, 2, 3]]))
    torch.testing.assert_close(probe(padded, VALID)[:1], probe(x[:1]))


@pytest.mark.parametrize(("name", "mixes"), [("V-JEPA", False), ("V-JEPA 2", True)])
def test_only_v_jepa_2_mixes_tokens_before_the_query_looks(name: str, mixes: bool) -> None:
    """A value that the query ignores reaches it through other tokens alone."""
    probe, x = randomized(PROBES[name]), torch.randn(1, 4, 8, dtype=torch.float64)
    assert isinstance(probe, CrossAttentionClassifier)
    first = probe.pooler.cross_attention_block.register_forward_pre_hook(
        lambda _, args: (args[0], args[1][:, :1])
    )
    changed = torch.cat([x[:, :1], torch.randn(1, 3, 8, dtype=torch.float64)], 1)
    assert torch.allclose(probe(x), probe(changed)) is not mixes
    first.remove()


def test_the_mean_probe_normalizes_channels_and_averages_its_queries() -> None:
    probe, x = randomized(PROBES["AIM"]), 3 + torch.randn(2, 5, 8, dtype=torch.float64)
    assert isinstance(probe, MeanAttentiveClassifier)
    probe.bn.running_mean, probe.bn.running_var = x.mean((0, 1)), x.var((0, 1), correction=0)
    z = (x - x.mean((0, 1))) / (x.var((0, 1), correction=0) + 1e-6).sqrt()
    seen = attend(probe.cls_token.expand(2, -1, -1), z @ probe.k.weight.T, z @ probe.v.weight.T, 2, None)
    torch.testing.assert_close(probe(x), (seen[:, 0] + seen[:, 1]) / 2 @ probe.linear.weight.T)


def test_batch_norm_of_the_mean_probe_leaves_padding_out_while_it_trains() -> None:
    probe, x = MeanAttentiveClassifier(8, 3, heads=2), torch.randn(2, 5, 8)
    probe.train()(torch.where(VALID[..., None], x, 1e3), VALID)
    torch.testing.assert_close(probe.bn.running_mean, 0.1 * x[VALID].mean(0))


def test_a_width_that_heads_of_64_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="a width of 96 is no multiple of 64"):
        PlainAttentiveClassifier(96, 3)
