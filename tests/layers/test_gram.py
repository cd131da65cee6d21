"""The frozen copy of a Gram anchor: which views it sees, on which grid it is compared, when it is renewed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from multissl.contract.data import Views
from multissl.contract.encoder import Encoders
from multissl.contract.learning import Progress
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.gram import GramAnchor
from multissl.losses.gram import gram_loss, shrink

SPEC = StreamSpec(kind="grid", shape=(3, 8, 8), num_tokens=4, patch=(4, 4))


def encoders() -> Encoders:
    torch.manual_seed(0)
    made = Encoders({"image": TransformerEncoder(TransformerEncoder.Config(dim=16, depth=1, heads=2), SPEC)})
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return made.eval()


def views(larger: int = 0) -> Views:
    torch.manual_seed(1)
    more = torch.randn(4, 3, larger, larger) if larger else None
    return Views(x=torch.randn(4, 3, 8, 8), stream="image", role="global", num_views=2, larger=more)


def anchor(teacher: Encoders, **options: object) -> GramAnchor:
    return GramAnchor(GramAnchor.Config(weight=1.0, **options), teacher, "image", SPEC)  # type: ignore[arg-type]


def test_a_student_that_is_the_copy_costs_nothing_and_gets_all_the_gradient() -> None:
    teacher = encoders()
    made = anchor(teacher)
    (seen,) = teacher.encode([views()])
    assert made(seen.tokens, views()).item() == pytest.approx(0.0, abs=1e-9)
    other = torch.randn_like(seen.tokens).requires_grad_()
    made(other, views()).backward()
    assert other.grad is not None
    assert other.grad.abs().max() > 0
    assert not any(p.requires_grad for p in made.parameters())


def test_larger_views_are_what_the_copy_sees_and_are_compared_on_the_grid_of_the_student() -> None:
    teacher, tokens = encoders(), torch.randn(4, 4, 16)
    made = anchor(teacher, size=(16, 16))
    shown = views(larger=16)
    with torch.no_grad():
        (seen,) = teacher.encode([replace(shown, x=shown.larger, larger=None)])
    expected = gram_loss(tokens, shrink(seen.tokens, (4, 4), (2, 2)))
    assert torch.equal(made(tokens, shown), expected)
    with pytest.raises(ValueError, match="no larger views"):
        made(tokens, views())


def test_the_copy_is_renewed_at_its_times_and_no_oftener() -> None:
    teacher = encoders()
    made, renewed = anchor(teacher, every=3, refreshes=2), []
    for step in range(12):
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.add_(1.0)
        made.after_step({"encoders": teacher}, Progress(step=step, total=12))
        pairs = zip(made.teacher.parameters(), teacher.parameters(), strict=True)
        renewed += [step + 1] * all(torch.equal(a, b) for a, b in pairs)
    assert renewed == [3, 6]


def test_a_step_that_does_not_count_renews_nothing() -> None:
    teacher = encoders()
    made = anchor(teacher, every=1)
    before = [p.clone() for p in made.parameters()]
    nn.init.zeros_(teacher["image"].tokenizer.cls_token)  # type: ignore[arg-type]
    made.after_step({"encoders": teacher}, Progress(step=0, total=2, counted=torch.tensor(False)))
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True))
