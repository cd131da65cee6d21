"""MAE: what the encoder sees, what the decoder gets back, what is refused; both ways of masking."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoders
from multissl.contract.learning import Progress
from multissl.contract.plans import StreamSpec, ViewPlan
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.learner import Learner
from multissl.layers.decoder import Decoder, gather_tokens, places
from multissl.modalities.image.crops import patchify
from multissl.modalities.masks import draw_masks
from multissl.modalities.views import pack_masks
from multissl.objectives.mae import MAE
from multissl.random import RowRandom

SPEC = StreamSpec(kind="grid", shape=(3, 16, 16), patch=(4, 4), num_tokens=16, target_dim=48)
START = Progress(step=0, total=10)
SMALL = Decoder.Config(dim=16, depth=1, heads=2)


def encoders() -> Encoders:
    return Encoders(
        {"pictures": TransformerEncoder(TransformerEncoder.Config(dim=16, depth=2, heads=2), SPEC)}
    )


def views(rows: int = 4) -> Views:
    x = torch.randn(rows, 3, 16, 16)
    plan = ViewPlan(num_global=1, mask_ratio=(0.75, 0.75))
    masks = tuple(draw_masks(plan, "random", (4, 4), rows, RowRandom((0, 0), 0, rows, rows)))
    return Views(x=x, stream="pictures", role="global", masks=masks, target=patchify(x, 4))


def test_three_quarters_of_196_tokens_leave_49() -> None:
    plan = ViewPlan(num_global=1, mask_ratio=(0.75, 0.75))
    mask = draw_masks(plan, "random", (14, 14), 2, RowRandom((0, 0), 0, 2, 2))[0]
    seen, hidden = places(mask)
    assert (seen.shape, hidden.shape) == ((2, 49), (2, 147))
    assert torch.equal(torch.cat([seen, hidden], 1).sort(1).values, torch.arange(196).expand(2, -1))


def test_hidden_pixels_reach_the_encoder_by_no_way() -> None:
    given, net = views(), encoders()
    given.x.requires_grad_()
    (features,) = net.encode([given], "drop")
    (features.tokens.square().sum() + features.pooled.square().sum()).backward()
    assert given.x.grad is not None
    by_token = patchify(given.x.grad, 4).abs().sum(2)  # [R, N]
    assert (by_token[given.masks[0].hidden] == 0).all()
    assert (by_token[~given.masks[0].hidden] > 0).all()


def test_the_loss_asks_for_hidden_tokens_only() -> None:
    given, net = views(), encoders()
    objective = MAE(MAE.Config(decoder=SMALL), net, {"pictures": SPEC})
    loss = objective(net, Batch([given]), START).total
    assert given.target is not None
    shown = ~given.masks[0].hidden[..., None]
    other = dataclasses.replace(given, target=given.target + shown * 7.0)
    assert torch.equal(objective(net, Batch([other]), START).total, loss)
    hidden = dataclasses.replace(given, target=given.target * torch.where(shown, 1.0, -1.0))
    assert not torch.equal(objective(net, Batch([hidden]), START).total, loss)


def test_the_decoder_puts_every_token_where_it_lies() -> None:
    """Rows whose tokens are seen in another order give the same answers."""
    decoder = SMALL.build(16, SPEC)
    tokens, order = torch.randn(2, 4, 16), torch.tensor([2, 0, 3, 1])
    at, wanted = torch.tensor([[1, 4, 9, 15], [0, 2, 3, 8]]), torch.tensor([[0, 7], [1, 15]])
    _, out = decoder(tokens, at, wanted)
    _, again = decoder(tokens[:, order], at[:, order], wanted)
    torch.testing.assert_close(out, again)
    _, elsewhere = decoder(tokens, at[:, order], wanted)
    assert (out - elsewhere).abs().max() > 1e-3
    assert (out[0, 0] - out[0, 1]).abs().max() > 1e-3  # wanted places differ


def test_padding_is_not_looked_at() -> None:
    decoder = SMALL.build(16, StreamSpec(kind="sequence", shape=(6,), num_tokens=6))
    tokens, at = torch.randn(1, 3, 16), torch.tensor([[0, 2, 5]])
    valid, wanted = torch.tensor([[True, True, False]]), torch.tensor([[1, 3]])
    _, out = decoder(tokens, at, wanted, valid=valid)
    noisy = tokens.clone()
    noisy[:, 2] += 5
    torch.testing.assert_close(decoder(noisy, at, wanted, valid=valid)[1], out)
    assert (decoder(noisy, at, wanted)[1] - decoder(tokens, at, wanted)[1]).abs().max() > 1e-4


def test_replace_reads_the_encoder_itself() -> None:
    given, net = views(), encoders()
    cfg = MAE.Config(masking="replace", metric="l1", norm_target="none")
    assert cfg.maskings() == {"replace"}
    assert MAE.Config().maskings() == {"drop"}
    objective = MAE(cfg, net, {"pictures": SPEC})
    assert not list(objective.shard_units())
    found = objective(net, Batch([given]), START)
    hidden = places(given.masks[0])[1]
    (features,) = net.encode([given], "replace")
    assert given.target is not None
    pred = objective.readout(gather_tokens(features.tokens, hidden))
    torch.testing.assert_close(found.total, (pred - gather_tokens(given.target, hidden)).abs().mean())


@pytest.mark.parametrize("masking", ["drop", "replace"])
def test_chunks_give_the_gradient_of_the_whole_batch(masking: Any) -> None:
    given = views(6)
    grads = []
    for chunk in (0, 4):
        torch.manual_seed(0)
        net = encoders()
        learner = Learner(
            net, MAE(MAE.Config(decoder=SMALL, masking=masking), net, {"pictures": SPEC}), chunk
        )
        learner.backward(learner(Batch([given]), START))
        grads.append({n: p.grad for n, p in learner.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, value in grads[0].items():
        torch.testing.assert_close(grads[1][name], value, rtol=1e-4, atol=1e-6)


def test_it_learns_what_a_constant_cannot() -> None:
    torch.manual_seed(0)
    net = Encoders(
        {
            "pictures": TransformerEncoder(
                TransformerEncoder.Config(dim=32, depth=2, heads=4, init_std=0), SPEC
            )
        }
    )
    cfg = MAE.Config(decoder=Decoder.Config(dim=32, depth=1, heads=4), norm_target="none")
    learner = Learner(net, cfg.build(net, {"pictures": SPEC}))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=5e-3)
    found: list[dict[str, Tensor]] = []
    for _ in range(25):
        given = views(8)
        given.x = torch.randn(8, 3, 1, 1).expand(-1, -1, 16, 16) + 0.1 * given.x  # one color a picture
        given.target = patchify(given.x, 4)
        losses = learner(Batch([given]), START)
        learner.backward(losses)
        optimizer.step()
        optimizer.zero_grad()
        found.append(losses.stats)
    assert found[0]["share_of_constant"] > 0.9
    assert found[-1]["share_of_constant"] < 0.6
    assert found[-1]["constant"] > 0.2


def test_bad_options_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"objective\.mask_ratio=1"):
        MAE.Config(mask_ratio=1.0)
    with pytest.raises(ValueError, match="heads=3 does not divide dim=16"):
        Decoder.Config(dim=16, heads=3)
    with pytest.raises(ValueError, match="decoder dim=18: want a multiple of 4"):
        Decoder(Decoder.Config(dim=18, heads=2), 16, SPEC)
    with pytest.raises(ValueError, match="mae rebuilds one stream, got a, b"):
        MAE(MAE.Config(), encoders(), {"a": SPEC, "b": SPEC})
    single = StreamSpec(kind="grid", shape=(1, 4, 4), patch=(1, 1), num_tokens=16, target_dim=1)
    net = Encoders(
        {"pictures": TransformerEncoder(TransformerEncoder.Config(dim=16, depth=1, heads=2), single)}
    )
    with pytest.raises(ValueError, match=r"norm_target=token needs 2 or more values.*norm_target=none"):
        MAE(MAE.Config(decoder=SMALL), net, {"pictures": single})
    objective = MAE(MAE.Config(decoder=SMALL), encoders(), {"pictures": SPEC})
    with pytest.raises(ValueError, match="wants a global view with a mask and a target"):
        objective(encoders(), Batch([views().with_mask(None)]), START)


def test_rows_that_hide_unequally_are_refused() -> None:
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[0, :3], hidden[1, :5] = True, True
    given: Tensor = torch.randn(2, 3, 16, 16)
    uneven = Views(
        x=given, stream="pictures", role="global", masks=(pack_masks(hidden),), target=patchify(given, 4)
    )
    net = encoders()
    with pytest.raises(ValueError, match="equally many hidden tokens"):
        MAE(MAE.Config(decoder=SMALL), net, {"pictures": SPEC})(net, Batch([uneven]), START)
