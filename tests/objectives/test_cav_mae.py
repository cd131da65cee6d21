from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import EncodeFunction, Encoders, build_encoders
from multissl.contract.learning import Features, Progress
from multissl.contract.plans import Masking, StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.decoder import Decoder
from multissl.modalities.views import pack_masks
from multissl.objectives.cav_mae import CAVMAE
from multissl.parallel.ranks import world
from tests.helpers.ranks import run_ranks

START = Progress(step=0, total=10)
SPECS = {
    "a": StreamSpec(kind="grid", shape=(1, 8, 8), num_tokens=16, patch=(2, 2), target_dim=4),
    "b": StreamSpec(kind="grid", shape=(2, 4, 8), num_tokens=8, patch=(2, 2), target_dim=8),
    "c": StreamSpec(kind="sequence", shape=(8,), num_tokens=8, vocab=9, target_dim=9, target_kind="classes"),
}
CFG = CAVMAE.Config(heads=2, decoder=Decoder.Config(dim=16, depth=1, heads=2))


def build(cfg: CAVMAE.Config = CFG, streams: str = "ab", dim: int = 16) -> tuple[Encoders, Any]:
    torch.manual_seed(0)
    specs = {s: SPECS[s] for s in streams}
    small = TransformerEncoder.Config(dim=dim, depth=1, heads=2, pooling="mean", init_std=0.0)
    encoders = build_encoders(dict.fromkeys(specs, small), specs)
    return encoders, cfg.build(encoders, specs)


def batch_of(rows: int = 8, streams: str = "ab", seed: int = 1, **more: Any) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    batch = []
    for s in streams:
        spec = SPECS[s]
        order = torch.rand(rows, spec.num_tokens, generator=draw).argsort(1)
        mask = pack_masks(order < round(0.75 * spec.num_tokens))
        if spec.kind == "grid":
            x = torch.randn(rows, *spec.shape, generator=draw)
            target = torch.randn(rows, spec.num_tokens, spec.target_dim, generator=draw)
        else:
            x = torch.randint(9, (rows, *spec.shape), generator=draw)
            target = x
        mine: dict[str, Any] = {
            n: value.get(s) if isinstance(value, dict) else value for n, value in more.items()
        }
        batch.append(Views(x=x, stream=s, role="global", masks=(mask,), target=target, **mine))
    return Batch(batch)


def losses_of(batch: Batch, cfg: CAVMAE.Config = CFG) -> Any:
    encoders, objective = build(cfg, "".join(v.stream for v in batch))
    return objective(encoders, batch, START)


@pytest.mark.parametrize("streams", ["ab", "ac", "abc"])
def test_every_parameter_learns(streams: str) -> None:
    encoders, objective = build(streams=streams)
    for stream, encoder in encoders.items():
        encoder.prepare_for(frozenset({"drop"}))
        assert objective.plans()[stream].target
    losses = objective(encoders, batch_of(streams=streams), START)
    assert losses.terms.keys() == {*(f"rebuild_{s}" for s in streams), "contrast"}
    losses.total.backward()
    for name, p in [*encoders.named_parameters(), *objective.named_parameters()]:
        assert p.grad is not None or not p.requires_grad, name
        assert p.grad is None or bool(p.grad.isfinite().all()), name


def test_the_total_is_rebuilding_and_a_hundredth_of_the_contrast() -> None:
    losses = losses_of(batch_of())
    t = losses.terms
    torch.testing.assert_close(losses.total, t["rebuild_a"] + t["rebuild_b"] + 0.01 * t["contrast"])
    assert 0.5 < float(losses.stats["share_of_constant"]) < 3


def test_the_later_stream_looks_for_the_earlier_at_one_temperature() -> None:
    """As the official code does: a softmax over the first stream's samples for each of the second's."""
    _, objective = build()
    z = torch.randn(2, 6, 16)
    loss, _ = objective.contrasted(z, batch_of(6))
    first, second = F.normalize(z, dim=2)
    torch.testing.assert_close(loss, F.cross_entropy(second @ first.T / 0.05, torch.arange(6)))
    both, _ = build(CFG.replace(both_ways=True))[1].contrasted(z, batch_of(6))
    other = F.cross_entropy(first @ second.T / 0.05, torch.arange(6))
    torch.testing.assert_close(both, (loss + other) / 2)


def test_each_stream_rebuilds_with_the_help_of_the_other() -> None:
    """What the other stream shows changes a stream's rebuilding; what it hides does not."""
    base, other = batch_of(), batch_of()
    before = losses_of(base).terms["rebuild_a"]
    assert other[1].mask is not None
    at = other[1].mask.hidden.unflatten(1, (2, 4)).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    other[1].x = torch.where(at, torch.zeros_like(other[1].x), other[1].x)
    torch.testing.assert_close(losses_of(other).terms["rebuild_a"], before, rtol=0, atol=0)
    other[1].x = torch.where(at, other[1].x, torch.zeros_like(other[1].x))
    assert float((losses_of(other).terms["rebuild_a"] - before).abs()) > 1e-6


def test_samples_that_lack_a_stream_take_part_with_what_they_have() -> None:
    """What stands in for the missing picture has no say in anything."""
    here = torch.tensor([True] * 5 + [False] * 3)
    one, other = (batch_of(present={"b": here}) for _ in range(2))
    other[1].x[5:] = 7.0
    assert other[1].target is not None
    other[1].target[5:] = 7.0
    a, b = losses_of(one), losses_of(other)
    for name in a.terms:
        torch.testing.assert_close(a.terms[name], b.terms[name], rtol=1e-6, atol=1e-6)
    full = losses_of(Batch(v.samples(torch.arange(5)) for v in batch_of()))
    torch.testing.assert_close(a.terms["rebuild_b"], full.terms["rebuild_b"])
    torch.testing.assert_close(a.terms["contrast"], full.terms["contrast"])


def test_padding_counts_nowhere() -> None:
    valid = torch.ones(8, 8, dtype=torch.bool)
    valid[:, 6:] = False
    one, other = (batch_of(streams="ac", valid={"c": valid}) for _ in range(2))
    other[1].x[:, 6:] = 0
    other[1].target = other[1].x.clone()
    for name, value in losses_of(one).terms.items():
        torch.testing.assert_close(losses_of(other).terms[name], value, rtol=1e-6, atol=1e-6)


def test_a_tower_is_the_joint_block_alone() -> None:
    encoders, objective = build()
    shipped = objective.exported(encoders)
    view = Views(x=torch.randn(3, 1, 8, 8), stream="a", role="clean")
    (features,) = shipped.encode([view])
    tokens = encoders.encode([view])[0].tokens
    torch.testing.assert_close(features.embedding, objective.joint(tokens, "a").mean(1))
    state = shipped.state_dict()
    again = build()[1].exported(build()[0])
    again.load_state_dict({n: t.clone() for n, t in state.items()})


def test_encoders_see_visible_tokens_once() -> None:
    encoders, objective = build()
    calls: list[tuple[str, int]] = []

    class Counting(EncodeFunction):
        def encode(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
            calls.append((masking, len(views)))
            return encoders.encode(views, masking, inner)

    objective(Counting(), batch_of(), START)
    assert calls == [("drop", 2)]


def gradient(rank: int, missing: bool) -> list[Tensor]:
    encoders, objective = build()
    here = torch.tensor([True, False, True, True, True, True, False, False])
    batch = batch_of(present={"b": here}) if missing else batch_of()
    rows = 8 // world()
    mine = Batch(v.samples(torch.arange(rank * rows, (rank + 1) * rows)) for v in batch)
    trained = [p for m in (encoders, objective) for p in m.parameters() if p.requires_grad]
    total = objective(encoders, mine, START).total
    found = torch.autograd.grad(total, trained, allow_unused=True)
    return [torch.zeros(()) if g is None else g / world() for g in found]


@pytest.mark.ranks
@pytest.mark.parametrize("missing", [False, True])
def test_two_ranks_give_the_gradient_of_one(missing: bool) -> None:
    parts = run_ranks(2, gradient, missing)
    for a, b, whole in zip(*parts, gradient(0, missing), strict=True):
        torch.testing.assert_close(a + b, whole, rtol=1e-4, atol=1e-6)


def test_it_learns_what_two_streams_share() -> None:
    """Both streams show one of four pictures: after some steps both find and rebuild each other better."""
    encoders, objective = build(CFG.replace(contrast=0.1))
    kinds = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(5)), torch.randn(4, 2, 4, 8)
    trained = torch.optim.AdamW([*encoders.parameters(), *objective.parameters()], lr=5e-3)
    seen = []
    for step in range(40):
        batch, which = batch_of(16, seed=step), torch.arange(16) % 4
        for v, pictures in zip(batch, kinds, strict=True):
            v.x = pictures[which]
            v.target = v.x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
            v.sample_id = which
        losses = objective(encoders, batch, START)
        seen.append((float(losses.stats["share_of_constant"]), float(losses.terms["contrast"])))
        trained.zero_grad()
        losses.total.backward()
        trained.step()
    assert seen[-1][0] < 0.8 * seen[0][0]
    assert seen[-1][1] < 0.7 * seen[0][1]
    assert math.isfinite(seen[-1][1])


@pytest.mark.parametrize(
    ("options", "streams", "says"),
    [
        ({}, "a", "cav_mae joins streams, got only a: use mae"),
        ({"heads": 3}, "ab", "objective.heads=3 does not divide"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], streams: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build(CFG.replace(**options), streams)


def test_encoders_of_two_widths_are_refused() -> None:
    encoders, _ = build()
    wider = build(dim=32)[0]
    with pytest.raises(ValueError, match=r"encoders.a.dim=16, encoders.b.dim=32; set one dim"):
        CFG.build(Encoders({"a": encoders["a"], "b": wider["b"]}), {s: SPECS[s] for s in "ab"})


@pytest.mark.parametrize("bad", [{"mask_ratio": 1.0}, {"contrast": -1.0}, {"temperature": 0.0}, {"heads": 0}])
def test_bad_options_say_what_they_want(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(ValueError, match=rf"objective\.{name}="):
        CAVMAE.Config(**bad)
