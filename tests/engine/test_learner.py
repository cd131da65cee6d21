from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import EncodeFunction, Encoders, build_encoders
from multissl.contract.learning import Losses, Progress
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.chunked import Chunk, Chunked
from multissl.engine.learner import Learner
from multissl.modalities.views import pack_masks
from multissl.random import RowRandom
from tests.helpers.stubs import Net, Points, Spread

PROGRESS = Progress(step=0, total=10)


class Normed(Net):
    """Has batch norm."""

    def __init__(self, cfg: Net.Config, spec: StreamSpec) -> None:
        super().__init__(cfg, spec)
        self.norm = nn.BatchNorm1d(3)


def learner(chunk: int, dropout: float = 0.0) -> tuple[Learner, Batch]:
    torch.manual_seed(0)
    modality = Points.Config().build()
    specs = modality.streams()
    encoders = build_encoders({"points": Net.Config(dropout=dropout)}, specs)
    objective = Spread.Config().build(encoders, specs)
    rng = RowRandom((0, 0), 0, 10, 10)
    samples = modality.dataset("train")
    raw = modality.collate([samples[i] for i in range(10)], objective.plans(), rng)
    return Learner(encoders, objective, chunk), modality.views(raw, objective.plans(), rng)


def gradients(chunk: int, dropout: float = 0.0) -> tuple[Losses, dict[str, Tensor]]:
    made, batch = learner(chunk, dropout)
    torch.manual_seed(1)
    losses = made(batch, PROGRESS)
    made.backward(losses)
    return losses, {n: p.grad for n, p in made.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunk", [1, 3, 5, 10, 64])
def test_chunks_give_the_gradient_of_the_whole_batch(chunk: int) -> None:
    losses, whole = gradients(0)
    again, chunked = gradients(chunk)
    torch.testing.assert_close(again.total, losses.total)
    assert whole.keys() == chunked.keys()
    for name in whole:
        torch.testing.assert_close(chunked[name], whole[name], rtol=1e-5, atol=1e-7)


def test_a_replay_draws_what_the_first_pass_drew() -> None:
    """With dropout, the gradient is that of the very features the loss saw."""
    made, batch = learner(4, dropout=0.5)
    seen = []
    made.encoders["points"].register_forward_hook(lambda _m, _i, out: seen.append(out[0].pooled.detach()))
    made.backward(made(batch, PROGRESS))
    half = len(seen) // 2
    assert half == 3
    for first, again in zip(seen[:half], seen[half:], strict=True):
        torch.testing.assert_close(first, again, rtol=0, atol=0)


def test_batch_norm_in_an_encoder_refuses_chunks() -> None:
    made, _ = learner(0)
    encoders = build_encoders({"points": Normed.Config()}, Points.Config().build().streams())
    with pytest.raises(ValueError, match=r"chunk=2: an encoder holds batch norm"):
        Learner(encoders, made.objective, 2)


def test_clip_groups_are_encoders_and_heads() -> None:
    made, _ = learner(0)
    assert set(made.clip_groups("all")) == {"all"}
    assert set(made.clip_groups("module")) == {"encoders.points", "objective.heads"}
    assert len(made.clip_groups("parameter")) == len(list(made.parameters()))


def test_chunks_pass_on_masking_and_inner_outputs_both_times() -> None:
    spec = StreamSpec(kind="grid", shape=(3, 8, 8), patch=(4, 4), num_tokens=4)
    found = []
    for chunk in (0, 2):
        torch.manual_seed(0)
        encoders = Encoders(
            {"a": TransformerEncoder.Config(dim=8, depth=2, heads=2, init_std=0.0).build(spec)}
        )
        hidden = torch.tensor([[True, False, False, True], [False, True, True, False]] * 3)
        views = Views(x=torch.randn(6, 3, 8, 8), stream="a", role="global", masks=(pack_masks(hidden),))
        record: list[Chunk] = []
        encode: EncodeFunction = Chunked(encoders, chunk, record) if chunk else encoders
        (masked,), (dropped,) = encode.encode([views], "replace", 2), encode.encode([views], "drop")
        assert dropped.tokens.shape == (6, 2, 8)
        parts = [masked.pooled, masked.tokens, *masked.inner, dropped.tokens]
        assert len(parts) == 5
        loss = sum((p * torch.randn(p.shape)).sum() for p in parts)
        assert isinstance(loss, torch.Tensor)
        learner = Learner(encoders, Spread.Config().build(encoders, {"a": spec}), chunk)
        learner._replay = record
        learner.backward(Losses(total=loss, terms={}))
        assert len(record) == (6 if chunk else 0)
        found.append([*parts, *(p.grad for p in encoders.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 20
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-5)
