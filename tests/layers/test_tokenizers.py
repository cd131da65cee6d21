from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from multissl.contract.data import Views
from multissl.contract.plans import Masking, StreamSpec
from multissl.layers import tokenizers
from multissl.layers.positions import Position
from multissl.layers.tokenizers import Patches, Tokenizer
from multissl.modalities.views import pack_masks


def tokenizer_for(spec: StreamSpec, dim: int, **options: Any) -> Tokenizer:
    given = {"registers": 0, "position": Position(), "conv_stem": False, "freeze_patches": False} | options
    return tokenizers.tokenizer_for(spec, dim, **given)


def grid(shape: Sequence[int] = (3, 8, 12), patch: Sequence[int] = (4, 4)) -> StreamSpec:
    tokens = torch.Size([n // p for n, p in zip(shape[1:], patch, strict=True)]).numel()
    return StreamSpec(kind="grid", shape=tuple(shape), num_tokens=tokens, patch=tuple(patch))


def views(x: Tensor, hidden: Tensor | None = None, valid: Tensor | None = None) -> Views:
    masks = () if hidden is None else (pack_masks(hidden),)
    return Views(x=x, stream="s", role="global", masks=masks, valid=valid)


def tokens(tokenizer: Tokenizer, *args: Any, masking: Masking = "none") -> Tensor:
    return tokenizer(views(*args), masking)[0]


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((2, 12), (4,)), ((3, 8, 12), (4, 4)), ((1, 4, 8, 8), (2, 4, 4)), ((3, 6, 8), (2, 4))],
)
def test_patches_equal_the_convolution(shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    patches = Patches(shape[0], 5, patch)
    x = torch.randn(2, *shape)
    torch.testing.assert_close(patches(x), patches.proj(x).movedim(1, -1))


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((2, 12), (4,)), ((3, 28, 14), (14, 14)), ((3, 6, 8), (3, 4)), ((1, 4, 8, 8), (2, 4, 4))],
)
def test_a_conv_stem_makes_the_same_grid(shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    tokenizer = tokenizer_for(grid(shape, patch), 16, conv_stem=True)
    x = torch.randn(2, *shape)
    assert tokens(tokenizer, x).shape == (2, 1 + grid(shape, patch).num_tokens, 16)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in tokenizer.modules())
    tokens(tokenizer, x).square().sum().backward()
    assert all(p.grad is not None for n, p in tokenizer.named_parameters() if "patch_embed" in n)


def test_order_is_class_registers_patches_and_registers_have_no_place() -> None:
    tokenizer = tokenizer_for(grid(), 8, registers=2)
    assert tokenizer.pos_embed is not None
    assert tokenizer.register_tokens is not None
    assert tokenizer.cls_token is not None
    out = tokens(tokenizer, torch.zeros(2, 3, 8, 12))
    assert out.shape == (2, 1 + 2 + 6, 8)
    torch.testing.assert_close(
        out[:, :1], (tokenizer.cls_token + tokenizer.pos_embed[:, :1]).expand(2, -1, -1)
    )
    torch.testing.assert_close(out[:, 1:3], tokenizer.register_tokens.expand(2, -1, -1))
    bias = cast(Patches, tokenizer.patch_embed).proj.bias
    torch.testing.assert_close(out[:, 3:], (bias + tokenizer.pos_embed[:, 1:]).expand(2, -1, -1))


def test_the_mask_token_replaces_and_keeps_its_place() -> None:
    tokenizer = tokenizer_for(grid(), 8)
    nn.init.normal_(tokenizer.mask_token)
    hidden = torch.rand(2, 6) < 0.5
    hidden[0, 0], hidden[1, 0] = True, False
    x = torch.randn(2, 3, 8, 12)
    plain, masked = tokens(tokenizer, x), tokens(tokenizer, x, hidden, masking="replace")
    torch.testing.assert_close(plain[:, 1:][~hidden], masked[:, 1:][~hidden])
    assert tokenizer.pos_embed is not None
    places = tokenizer.pos_embed[:, 1:].expand(2, -1, -1)
    torch.testing.assert_close(masked[:, 1:][hidden], (tokenizer.mask_token + places)[hidden])
    torch.testing.assert_close(tokens(tokenizer, x, hidden, masking="none"), plain)
    torch.testing.assert_close(tokens(tokenizer, x, hidden, masking="causal"), plain)


def test_dropped_tokens_leave_the_visible_ones_in_order() -> None:
    tokenizer = tokenizer_for(grid(), 8)
    hidden = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1]]).bool()
    valid = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]).bool()
    x = torch.randn(2, 3, 8, 12)
    plain = tokens(tokenizer, x)
    dropped, real = tokenizer(views(x, hidden, valid), "drop")
    assert dropped.shape == (2, 1 + 3, 8)
    for row in range(2):
        torch.testing.assert_close(dropped[row, 1:], plain[row, 1:][~hidden[row]])
        assert real[row].tolist() == [True, *valid[row][~hidden[row]].tolist()]


def test_dropping_needs_equal_counts() -> None:
    tokenizer = tokenizer_for(grid(), 8)
    hidden = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 1]]).bool()
    with pytest.raises(ValueError, match="mask_ratio"):
        tokenizer(views(torch.zeros(2, 3, 8, 12), hidden), "drop")
    with pytest.raises(ValueError, match="mask of"):
        tokenizer(views(torch.zeros(2, 3, 8, 8), hidden), "replace")


def test_views_of_another_size_resample_positions() -> None:
    tokenizer = tokenizer_for(grid(), 8)
    assert tokens(tokenizer, torch.zeros(1, 3, 4, 20)).shape == (1, 1 + 5, 8)
    with pytest.raises(ValueError, match="views of 4x21 do not divide into patches of 4x4"):
        tokens(tokenizer, torch.zeros(1, 3, 4, 21))


def test_a_table_may_be_stored_on_another_grid() -> None:
    tokenizer = tokenizer_for(grid(), 8, position=Position(grid=(5, 5)))
    assert tokenizer.pos_embed is not None
    assert tokenizer.pos_embed.shape == (1, 26, 8)
    assert tokens(tokenizer, torch.zeros(1, 3, 8, 12)).shape == (1, 7, 8)


def test_fixed_and_absent_positions_are_no_weights() -> None:
    x = torch.zeros(1, 3, 8, 12)
    fixed = tokenizer_for(grid(), 8, position=Position(kind="sincos"))
    assert "pos_embed" not in fixed.state_dict()
    assert (tokens(fixed, x)[0, 1] - tokens(fixed, x)[0, 2]).abs().max() > 0.1
    absent = tokenizer_for(grid(), 8, position=Position(kind="none"))
    torch.testing.assert_close(tokens(absent, x)[0, 1], tokens(absent, x)[0, 2])


def test_frozen_patches_are_left_to_no_optimizer() -> None:
    tokenizer = tokenizer_for(grid(), 8, freeze_patches=True)
    frozen = {name for name, p in tokenizer.named_parameters() if not p.requires_grad}
    assert frozen == {"patch_embed.proj.weight", "patch_embed.proj.bias"}


def test_sequences_are_embedded_and_may_be_shorter() -> None:
    tokenizer = tokenizer_for(StreamSpec(kind="sequence", shape=(6,), num_tokens=6, vocab=11), 8)
    ids = torch.randint(11, (2, 6))
    out, valid = tokenizer(views(ids, None, torch.tensor([[True] * 6, [True] * 4 + [False] * 2])))
    assert out.shape == (2, 7, 8)
    assert valid.tolist()[1] == [True] * 5 + [False] * 2
    torch.testing.assert_close(tokens(tokenizer, ids[:, :4]), out[:, :5])
    with pytest.raises(ValueError, match="7 tokens are more than the 6"):
        tokens(tokenizer, torch.zeros(2, 7, dtype=torch.long))


def test_neighboring_tokens_are_mixed_and_neither_padding_nor_what_is_hidden_is_seen() -> None:
    spec = StreamSpec(kind="sequence", shape=(6,), num_tokens=6, vocab=9)
    tokenizer = tokenizer_for(spec, 8, token_conv=3)
    nn.init.normal_(tokenizer.mask_token)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    changed = torch.tensor([[1, 2, 3, 4, 8, 6]])
    moved = (tokens(tokenizer, ids) - tokens(tokenizer, changed)).abs().amax(2)[0, 1:]
    assert (moved > 0).tolist() == [False, False, False, True, True, True]
    valid, hidden = torch.tensor([[True] * 4 + [False] * 2]), torch.tensor([[False] * 4 + [True] + [False]])
    short = tokens(tokenizer, ids, None, valid), tokens(tokenizer, changed, None, valid)
    assert torch.equal(short[0][:, :5], short[1][:, :5])
    alone = tokens(tokenizer, ids[:, :4])
    torch.testing.assert_close(short[0][:, :5], alone)
    for masking in ("replace", "drop"):
        kept = [tokens(tokenizer, x, hidden, masking=masking) for x in (ids, changed)]
        assert torch.equal(*kept)
    with pytest.raises(ValueError, match="token_conv=3 is for sequences"):
        tokenizer_for(grid(), 8, token_conv=3)


def test_embeddings_and_positions_start_as_wide_as_asked() -> None:
    spec = StreamSpec(kind="sequence", shape=(64,), num_tokens=64, vocab=500)
    tokenizer: Any = tokenizer_for(spec, 32, embedding_std=0.5, position=Position(std=0.2))
    assert tokenizer.embedding.weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert tokenizer.pos_embed.std().item() == pytest.approx(0.2, rel=0.05)


def test_every_column_has_its_own_embedding() -> None:
    spec = StreamSpec(kind="columns", shape=(4,), num_tokens=4, cardinalities=(0, 3, 0, 2))
    tokenizer = tokenizer_for(spec, 8, position=Position(kind="none"))
    rows = torch.tensor([[0.5, 2, -1.0, 0], [0.5, 0, 2.0, 1]])
    out = tokens(tokenizer, rows)[:, 1:]
    assert out.shape == (2, 4, 8)
    weights = dict(tokenizer.named_parameters())
    levels = weights["levels.weight"]
    torch.testing.assert_close(out[0, 1], levels[2])
    torch.testing.assert_close(out[:, 3], levels[3:5])
    torch.testing.assert_close(out[0, 0], out[1, 0])
    torch.testing.assert_close(out[1, 2], 2 * weights["scale"][1] + weights["bias"][1])


def test_options_of_grids_are_refused_elsewhere() -> None:
    spec = StreamSpec(kind="columns", shape=(4,), num_tokens=4)
    with pytest.raises(ValueError, match="conv_stem"):
        tokenizer_for(spec, 8, conv_stem=True)
    with pytest.raises(ValueError, match=r"position\.grid"):
        tokenizer_for(spec, 8, position=Position(grid=(4,)))
    with pytest.raises(ValueError, match="conv_stem=True halves even patches"):
        tokenizer_for(grid((3, 9, 9), (3, 3)), 8, conv_stem=True)
    with pytest.raises(ValueError, match="antialias"):
        tokenizer_for(grid((1, 8), (4,)), 8, position=Position(antialias=True))


def test_initial_values_are_dinov2_s() -> None:
    torch.manual_seed(0)
    tokenizer = tokenizer_for(grid(), 64, registers=4)
    assert tokenizer.pos_embed is not None
    assert tokenizer.register_tokens is not None
    assert tokenizer.cls_token is not None
    assert not tokenizer.mask_token.any()
    assert 0 < tokenizer.cls_token.abs().max() < 1e-5
    assert 0 < tokenizer.register_tokens.abs().max() < 1e-5
    assert abs(tokenizer.pos_embed.std().item() - 0.02) < 0.004
