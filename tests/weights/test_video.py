"""A picture encoder's weights in an encoder of clips."""

from __future__ import annotations

import pytest
import torch

from multissl.contract.data import Views
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.weights.loading import load_state
from multissl.weights.resampling import inflate


def spec(*space: int, patch: tuple[int, ...]) -> StreamSpec:
    tokens = 1
    for n, p in zip(space, patch, strict=True):
        tokens *= n // p
    return StreamSpec(kind="grid", shape=(3, *space), patch=patch, num_tokens=tokens)


def test_a_clip_that_stands_still_gives_the_tokens_of_its_picture() -> None:
    torch.manual_seed(0)
    cfg = TransformerEncoder.Config(dim=16, depth=2, heads=2)
    picture = TransformerEncoder(cfg, spec(16, 16, patch=(4, 4))).eval()
    clip = TransformerEncoder(cfg, spec(6, 16, 16, patch=(2, 4, 4))).eval()
    load_state(clip, picture.state_dict())
    x = torch.randn(2, 3, 16, 16)
    still = Views(x=x[:, :, None].expand(-1, -1, 6, -1, -1), stream="video", role="clean")
    tokens, _ = picture.tokenizer(Views(x=x, stream="image", role="clean"))
    found, _ = clip.tokenizer(still)
    torch.testing.assert_close(found[:, 1:], tokens[:, 1:].repeat(1, 3, 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, :1], tokens[:, :1])
    # Attention over equal copies of the tokens gives what it gives over one.
    seen = clip([still])[0].tokens.unflatten(1, (3, 16))
    torch.testing.assert_close(seen, seen[:, :1].expand_as(seen), atol=1e-5, rtol=1e-5)


def test_inflation_repeats_along_time_and_divides_by_the_length() -> None:
    weight = torch.randn(4, 3, 2, 2)
    found = inflate(weight, 3)
    assert found.shape == (4, 3, 3, 2, 2)
    torch.testing.assert_close(found.sum(2), weight)
    assert torch.equal(found[:, :, 0], found[:, :, 2])


def test_a_larger_picture_table_is_resampled_and_repeated() -> None:
    cfg = TransformerEncoder.Config(dim=16, depth=1, heads=2)
    picture = TransformerEncoder(cfg, spec(32, 32, patch=(4, 4)))
    clip = TransformerEncoder(cfg, spec(4, 16, 16, patch=(2, 4, 4)))
    load_state(clip, picture.state_dict())
    table = clip.tokenizer.pos_embed
    assert table is not None
    assert table.shape == (1, 1 + 2 * 16, 16)
    assert torch.equal(table[:, 1:17], table[:, 17:])


def test_a_table_of_clips_is_not_taken_for_a_square_picture() -> None:
    cfg = TransformerEncoder.Config(dim=16, depth=1, heads=2)
    long = TransformerEncoder(cfg, spec(8, 32, 32, patch=(2, 4, 4)))  # 4 x 8 x 8 tokens, as many as 16 x 16
    short = TransformerEncoder(cfg, spec(4, 32, 32, patch=(2, 4, 4)))
    with pytest.raises(ValueError, match=r"pos_embed is \(1, 257, 16\) where the encoder has \(1, 129, 16\)"):
        load_state(short, long.state_dict())
