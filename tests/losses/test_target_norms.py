"""Targets normalized by hand, where eps decides: MAE's and VideoMAE's patches, I-JEPA's teacher tokens."""

from __future__ import annotations

import pytest
import torch

from multissl.losses.ijepa import latent_targets
from multissl.losses.rebuild import Norm, normalize


@pytest.mark.parametrize("norm", ["token", "channel"])
def test_a_patch_of_one_value_becomes_zero(norm: Norm) -> None:
    assert torch.equal(normalize(torch.full((2, 12), 0.5), norm, 3), torch.zeros(2, 12))


def test_a_patch_has_its_unbiased_variance_and_1e_6_under_the_root() -> None:
    # mean 1e-3, squares of the differences 2e-6 together: variance 2e-6 over 2 - 1 values
    target = normalize(torch.tensor([[0.0, 2e-3]], dtype=torch.float64), "token")
    by_hand = 1e-3 / (2e-6 + 1e-6) ** 0.5
    torch.testing.assert_close(target, torch.tensor([[-by_hand, by_hand]], dtype=torch.float64))
    assert by_hand == pytest.approx(0.57735, abs=1e-5)


def test_a_channel_of_a_patch_has_its_unbiased_deviation_and_1e_6_beside_it() -> None:
    # two channels in turn, one of them of a single value
    target = normalize(torch.tensor([[0.0, 0.5, 2e-6, 0.5]], dtype=torch.float64), "channel", 2)
    by_hand = 1e-6 / (2**0.5 * 1e-6 + 1e-6)
    torch.testing.assert_close(target, torch.tensor([[-by_hand, 0.0, by_hand, 0.0]], dtype=torch.float64))
    assert by_hand == pytest.approx(0.41421, abs=1e-5)


def test_the_teacher_s_tokens_are_layer_normed_with_1e_5_under_the_root() -> None:
    # mean 4e-3, variance 9e-6 over both values: 3e-3 / sqrt(1.9e-5)
    tokens = torch.tensor([[1e-3, 7e-3], [0.2, 0.2], [-3.0, 5.0]], dtype=torch.float64)
    by_hand = 3e-3 / (9e-6 + 1e-5) ** 0.5
    expected = torch.tensor([[-by_hand, by_hand], [0.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(latent_targets(tokens), expected, rtol=1e-6, atol=0)
    assert by_hand == pytest.approx(0.68825, abs=1e-5)
