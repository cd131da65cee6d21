"""I-JEPA: the context sees no target, the teacher gets no gradient, it follows linearly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoders
from multissl.contract.learning import Progress
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.decoder import Decoder, gather_tokens, places
from multissl.layers.teacher import Teacher
from multissl.losses.ijepa import latent_loss, latent_targets
from multissl.modalities.image.crops import patchify
from multissl.modalities.masks.multiblock import as_masks, draw_multiblock
from multissl.objectives.ijepa import IJEPA
from multissl.random import RowRandom

SPEC = StreamSpec(kind="grid", shape=(3, 24, 24), patch=(4, 4), num_tokens=36)
START = Progress(step=0, total=10)


def built(**options: Any) -> tuple[Encoders, IJEPA]:
    net = Encoders(
        {
            "pictures": TransformerEncoder(
                TransformerEncoder.Config(dim=16, depth=2, heads=2, init_std=0), SPEC
            )
        }
    )
    cfg = IJEPA.Config(predictor=Decoder.Config(dim=16, depth=1, heads=2), **options)
    return net, IJEPA(cfg, net, {"pictures": SPEC})


def views(objective: IJEPA, rows: int = 3) -> Views:
    plan = objective.plans()["pictures"]
    contexts, targets = draw_multiblock(plan, "block", (6, 6), RowRandom((0, 0), 0, rows, rows))
    masks = as_masks(contexts, targets, 36, 12)
    return Views(x=torch.randn(rows, 3, 24, 24), stream="pictures", role="global", masks=masks)


def test_the_student_s_gradient_comes_from_the_context_alone() -> None:
    net, objective = built()
    given = views(objective)
    given.x.requires_grad_()
    objective(net, Batch([given]), START).total.backward()
    assert given.x.grad is not None
    by_token = patchify(given.x.grad, 4).abs().sum(2)
    assert (by_token[given.masks[0].hidden] == 0).all()
    assert (by_token[~given.masks[0].hidden] > 0).all()
    assert all(p.grad is None for p in objective.teacher.parameters())


def test_targets_are_the_teacher_s_tokens_of_the_whole_view() -> None:
    net, objective = built()
    given = views(objective)
    whole = objective.teach(given)
    torch.testing.assert_close(whole.mean(-1), torch.zeros(3, 36), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.var(-1, correction=0), torch.ones(3, 36), atol=1e-2, rtol=0)
    torch.testing.assert_close(whole, latent_targets(net.encode([given.with_mask(None)])[0].tokens))


@pytest.mark.parametrize("options", [{}, {"metric": "power", "power": 1.5}], ids=["smooth", "power"])
@pytest.mark.parametrize("contexts", [1, 3])
def test_its_loss_is_the_mean_over_contexts_targets_and_rows_one_by_one(contexts: int, options: Any) -> None:
    net, objective = built(contexts=contexts, **options)
    given = views(objective)
    assert len(given.masks) == contexts + 4
    whole, losses = objective.teach(given), []
    for shown in given.masks[:contexts]:
        (context,) = net.encode([given.with_mask(shown)], "drop")
        for mask in given.masks[contexts:]:
            for row in range(3):
                one = slice(row, row + 1)
                seen, wanted = places(shown)[0][one], places(mask)[1][one]
                pred = objective.predict(context.tokens[one], seen, wanted)
                difference = (pred - gather_tokens(whole[one], wanted)).abs()
                if options:
                    losses.append((difference**1.5 / 1.5).mean())
                else:
                    losses.append(torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean())
    torch.testing.assert_close(objective(net, Batch([given]), START).total, torch.stack(losses).mean())


def test_the_teacher_follows_linearly_and_is_what_is_shipped() -> None:
    net, objective = built()
    assert objective.exported(net) is objective.teacher["encoders"]
    momentum = objective.teacher.momentum
    assert [round(momentum.at(s, 10), 6) for s in (0, 5, 10)] == [0.996, 0.998, 1.0]
    with torch.no_grad():
        for p in net.parameters():
            p += 1
    before = torch.cat([p.flatten() for p in objective.teacher["encoders"].parameters()])
    objective.after_step(net, START)
    after = torch.cat([p.flatten() for p in objective.teacher["encoders"].parameters()])
    torch.testing.assert_close(after - before, torch.full_like(after, 0.004), rtol=1e-3, atol=1e-6)
    cosine = Teacher(Teacher.Config(ema=0.996, final_ema=1.0), {"encoders": net}).momentum
    assert cosine.at(2, 10) < momentum.at(2, 10)


def test_powers_are_v_jepa_s() -> None:
    pred, target = torch.tensor([[3.0, -1.0]]), torch.tensor([[1.0, 1.0]])
    assert latent_loss(pred, target, "power", 1.0) == 2
    assert latent_loss(pred, target, "power", 2.0) == 2
    assert latent_loss(pred, target) == 1.5
    half = latent_loss(torch.randn(99, 16).bfloat16(), torch.zeros(99, 16))
    assert half.dtype == torch.float32


def test_it_says_which_masks_it_wants() -> None:
    net, objective = built()
    with pytest.raises(ValueError, match=r"1 \+ 4 masks, for contexts and targets, got 0"):
        objective(net, Batch([views(objective).with_mask(None)]), START)
    with pytest.raises(ValueError, match=r"objective\.target_ratio=\(0\.3, 0\.2\)"):
        IJEPA.Config(target_ratio=(0.3, 0.2))
    with pytest.raises(ValueError, match=r"objective\.targets=0"):
        IJEPA.Config(targets=0)
    with pytest.raises(ValueError, match=r"objective\.contexts=0"):
        IJEPA.Config(contexts=0)
    with pytest.raises(ValueError, match=r"objective\.target_aspect=\(2\.0, 1\.0\): want 0 < low"):
        IJEPA.Config(target_aspect=(2.0, 1.0))
    with pytest.raises(ValueError, match="ijepa reads one stream, got a, b"):
        IJEPA(IJEPA.Config(), net, {"a": SPEC, "b": SPEC})
