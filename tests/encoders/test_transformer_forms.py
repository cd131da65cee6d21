"""What the transformer can be besides DINOv2's: the options that published networks need, each against its equation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.positions import Position, sincos
from multissl.layers.relative import index_steps
from multissl.layers.rope import Rotation, axial_angles, axial_periods, clip_angles
from multissl.layers.transformer import activate
from multissl.modalities.views import pack_masks

IMAGE = StreamSpec(kind="grid", shape=(3, 16, 16), num_tokens=16, patch=(4, 4))
CLIP = StreamSpec(kind="grid", shape=(3, 4, 16, 16), num_tokens=32, patch=(2, 4, 4))
ROPE, RELATIVE = Position(kind="rope"), Position(kind="relative")
FORMS: list[dict[str, Any]] = [
    {"class_token": False, "pooling": "mean"},
    {"class_token": False, "registers": 2, "pooling": "prefix"},
    {"norm_pre": True, "act": "quick_gelu"},
    {"norm_order": "post", "final_norm": "none"},
    {"key_bias": False, "position": ROPE, "registers": 2},
    {"position": RELATIVE, "final_norm": "pooled", "pooling": "mean"},
    {"final_norm": "split", "registers": 1},
    {"class_token": False, "pooling": "attention", "act": "tanh_gelu"},
]


def build(spec: StreamSpec = IMAGE, **options: Any) -> TransformerEncoder:
    torch.manual_seed(0)
    given: dict[str, Any] = {"dim": 24, "depth": 2, "heads": 2} | options
    encoder = TransformerEncoder(TransformerEncoder.Config(**given), spec)
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder


def views(x: Tensor, hidden: Tensor | None = None) -> Views:
    return Views(x=x, stream="s", role="global", masks=() if hidden is None else (pack_masks(hidden),))


@pytest.mark.parametrize("options", FORMS, ids=lambda o: "-".join(o))
def test_all_tensors_learn_and_views_do_not_mix(options: dict[str, Any]) -> None:
    encoder = build(**options)
    encoder.prepare_for(frozenset({"none"}))
    first, second = views(torch.randn(2, 3, 16, 16)), views(torch.randn(3, 3, 16, 16))
    together = encoder([first, second])
    torch.testing.assert_close(together[1].pooled, encoder([second])[0].pooled)
    torch.testing.assert_close(together[0].tokens, encoder([first])[0].tokens)
    (together[0].pooled.square().sum() + together[0].tokens.square().sum()).backward()
    assert not {n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None}


@pytest.mark.parametrize("options", FORMS, ids=lambda o: "-".join(o))
def test_rows_that_skip_a_branch_leave_the_others_as_they_are(options: dict[str, Any]) -> None:
    encoder = build(**options, drop_path=0.5)
    x = torch.randn(2, 3, 16, 16)
    whole = encoder.eval()([views(x)])[0].pooled
    torch.testing.assert_close(encoder([views(x)])[0].pooled, whole)
    torch.manual_seed(3)
    dropped = encoder.train()([views(x)])[0].pooled
    assert torch.isfinite(dropped).all()
    assert not torch.equal(dropped, whole)


@pytest.mark.parametrize(
    "options", [o for o in FORMS if o.get("position") != RELATIVE], ids=lambda o: "-".join(o)
)
def test_tokens_that_are_left_out_are_those_that_nobody_sees(options: dict[str, Any]) -> None:
    """A mask that hides the same tokens by leaving them out or by an attention mask gives the same features."""
    encoder = build(**options).eval()
    x, hidden = torch.randn(2, 3, 16, 16), torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, [1, 5, 6]] = True
    (kept,) = encoder([views(x, hidden)], "drop")
    seen = Views(x=x, stream="s", role="global", valid=~hidden)
    (masked,) = encoder([seen])
    torch.testing.assert_close(kept.tokens, masked.tokens[~hidden].view(2, 13, -1))
    torch.testing.assert_close(kept.pooled, masked.pooled)


def test_without_a_class_token_tables_have_no_row_for_it() -> None:
    for kind in ("learned", "sincos"):
        encoder = build(class_token=False, pooling="mean", position=Position(kind=kind))
        table = encoder.tokenizer.pos_embed
        assert table is not None
        assert table.shape == (1, 16, 24)
        if kind == "sincos":
            assert torch.allclose(table, sincos((4, 4), 24)[:, 1:], atol=1e-6)
        assert encoder([views(torch.randn(1, 3, 8, 8))])[0].tokens.shape == (1, 4, 24)
    assert "tokenizer.cls_token" not in encoder.state_dict()


def test_activations_are_those_of_their_papers() -> None:
    x = torch.linspace(-4, 4, 100)
    torch.testing.assert_close(activate(x, "gelu"), x * 0.5 * (1 + torch.erf(x / 2**0.5)))
    inner = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    torch.testing.assert_close(activate(x, "tanh_gelu"), 0.5 * x * (1 + inner.tanh()))
    torch.testing.assert_close(activate(x, "quick_gelu"), x / (1 + (-1.702 * x).exp()))


def test_keys_without_bias_are_those_of_a_bias_of_zero() -> None:
    plain, without = build(), build(key_bias=False)
    without.load_state_dict(plain.state_dict())
    blocks: Any = plain.trunk.blocks
    for block in blocks:
        block.attn.qkv.bias.data[24:48] = 0
    x = views(torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(without([x])[0].tokens, plain([x])[0].tokens)
    without([x])[0].tokens.square().sum().backward()
    grad = without.get_parameter("trunk.blocks.0.attn.qkv.bias").grad
    assert grad is not None
    assert not grad[24:48].any()
    assert grad[:24].any()


def test_blocks_that_normalize_afterwards_follow_bert() -> None:
    encoder = build(norm_order="post", final_norm="none")
    x = torch.randn(2, 3, 16, 16)
    tokens, _ = encoder.tokenizer(views(x))
    blocks: Any = encoder.trunk.blocks
    for block in blocks:
        q, k, v = block.attn.qkv(tokens).unflatten(2, (3, 2, 12)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = block.norm1(tokens + block.attn.proj(seen))
        tokens = block.norm2(tokens + block.mlp(tokens))
    torch.testing.assert_close(encoder([views(x)])[0].tokens, tokens[:, 1:])


def test_final_norms_are_for_what_they_say() -> None:
    x = views(torch.randn(2, 3, 16, 16))
    whole = build(depth=2)
    (usual,) = whole([x], inner=1)
    pooled, none, split = (
        build(final_norm=f, pooling="mean" if f == "pooled" else "cls") for f in ("pooled", "none", "split")
    )
    for encoder in (pooled, none, split):
        encoder.load_state_dict(whole.state_dict(), strict=False)
    norm = whole.trunk.norm
    torch.testing.assert_close(pooled([x])[0].tokens, usual.inner[0])
    torch.testing.assert_close(pooled([x])[0].pooled, norm(usual.inner[0].mean(1)))
    torch.testing.assert_close(none([x])[0].tokens, usual.inner[0])
    torch.testing.assert_close(split([x])[0].tokens, usual.tokens)
    own = split.trunk.prefix_norm
    assert own is not None
    torch.testing.assert_close(split([x])[0].pooled, own(none([x])[0].pooled))


def test_pooling_by_attention_leaves_padding_out() -> None:
    encoder = build(class_token=False, pooling="attention").eval()
    x = torch.randn(2, 3, 16, 16)
    other = x.clone()
    other[:, :, 12:, 12:] = 0.0  # the last patch
    valid = torch.ones(2, 16, dtype=torch.bool)
    valid[:, -1] = False
    both = [encoder([Views(x=each, stream="s", role="clean", valid=valid)])[0].pooled for each in (x, other)]
    torch.testing.assert_close(*both)


# rotary positions


def test_axial_angles_are_those_of_centers_in_minus_one_to_one() -> None:
    periods = axial_periods(8, 100.0)
    torch.testing.assert_close(periods, torch.tensor([1.0, 10.0]))
    angles = axial_angles((2, 4), periods)  # centers -0.5, 0.5 and -0.75 .. 0.75
    expected = 2 * torch.pi * torch.tensor([-0.5, -0.05, 0.25, 0.025])  # row 0, column 2
    torch.testing.assert_close(angles[2], expected.tile(2))


def test_clip_angles_are_tiled_and_leave_the_rest() -> None:
    angles = clip_angles((2, 2, 3), 16, 10000.0, torch.device("cpu"))  # three parts of 4, and 4 that stay
    frame, row, column = 1, 0, 2
    place = frame * 6 + row * 3 + column
    rates = torch.tensor([1.0, 0.01])
    expected = torch.cat([frame * rates.tile(2), row * rates.tile(2), column * rates.tile(2), torch.zeros(4)])
    torch.testing.assert_close(angles[place], expected)


@pytest.mark.parametrize("adjacent", [True, False])
def test_channels_turn_in_pairs(adjacent: bool) -> None:
    angle = torch.tensor([0.3, 0.3, 0.3, 0.3]).view(1, 1, 4)
    turned = Rotation(angle.cos(), angle.sin(), adjacent).turn(torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]))
    partner = 1 if adjacent else 2
    expected = torch.zeros(4)
    expected[0], expected[partner] = angle.flatten()[0].cos(), angle.flatten()[0].sin()
    torch.testing.assert_close(turned.flatten(), expected)


@pytest.mark.parametrize("spec", [IMAGE, CLIP])
def test_rotary_encoders_have_no_table_and_take_any_size(spec: StreamSpec) -> None:
    encoder = build(spec, position=ROPE).eval()
    assert not any("pos_embed" in name for name in encoder.state_dict())
    assert ("tokenizer.rope_periods" in encoder.state_dict()) == (spec is IMAGE)
    small = torch.randn(1, *spec.shape[:-2], 8, 12)
    (features,) = encoder([views(small)])
    assert features.tokens.shape[1] == 6 * (2 if spec is CLIP else 1)
    moved = encoder([views(small.flip(-1))])[0]
    assert not torch.allclose(features.pooled, moved.pooled, atol=1e-4)  # where patches lie matters


def test_attention_of_the_class_token_is_that_of_the_blocks() -> None:
    """What is drawn agrees with what the last block computes, for positions that only attention knows."""
    for position in (ROPE, RELATIVE):
        encoder = build(position=position, depth=1).eval()
        item = views(torch.randn(2, 3, 16, 16))
        weights = encoder.attention(item)  # [R, H, N]
        block: Any = encoder.trunk.blocks[0]
        tokens, _ = encoder.tokenizer(item)
        value = block.attn.qkv(block.norm1(tokens)).unflatten(2, (3, 2, 12))[:, :, 2]  # [R, N, H, d]
        rest = 1 - weights.sum(-1)  # of the class token itself
        whole = torch.cat([rest[:, :, None], weights], 2)
        seen = torch.einsum("rhn,rnhd->rhd", whole, value).flatten(1)
        x = tokens[:, 0] + block.attn.proj(seen)
        x = x + block.mlp(block.norm2(x))
        torch.testing.assert_close(encoder.trunk.norm(x), encoder([item])[0].pooled)


# relative positions


def test_steps_are_counted_as_in_beit() -> None:
    index = index_steps((2, 3), 1)
    assert index.shape == (7, 7)
    rows = (2 * 2 - 1) * (2 * 3 - 1) + 3
    assert index[0, 0] == rows - 1
    assert set(index[0, 1:].tolist()) == {rows - 3}
    assert set(index[1:, 0].tolist()) == {rows - 2}
    assert index[1, 1] == index[6, 6]  # no step
    assert index[1, 2] == index[4, 5]  # one to the right
    assert index[1, 4] == index[3, 6]  # one down
    assert len(set(index.flatten().tolist())) == 3 + 3 * 5
    assert torch.equal(index_steps((2, 3), 0), index[1:, 1:])


def test_relative_positions_are_of_one_grid_and_leave_nothing_out() -> None:
    encoder = build(position=RELATIVE)
    with pytest.raises(ValueError, match=r"knows the steps of \(4, 4\) tokens, this view has \(2, 2\)"):
        encoder([views(torch.randn(1, 3, 8, 8))])
    assert "drop" not in encoder.maskings
    assert "replace" in encoder.maskings


# what is refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"class_token": False}, "pooling=cls without a class token: set pooling=mean"),
        ({"class_token": False, "pooling": "prefix"}, "pooling=prefix without class_token and registers"),
        ({"act": "tanh_gelu", "ffn": "swiglu"}, "act=tanh_gelu is of ffn=mlp"),
        ({"causal": True, "pooling": "attention"}, "set pooling=mean or last"),
        ({"position": ROPE, "dim": 20}, "turns a multiple of 4 channels of a head, dim / heads is 10"),
        ({"position": RELATIVE, "registers": 2}, "without registers, this one has 2 axes and registers=2"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        build(**options)


def test_rotary_and_relative_positions_are_for_grids() -> None:
    sequence = StreamSpec(kind="sequence", shape=(6,), num_tokens=6, vocab=11)
    wave = StreamSpec(kind="grid", shape=(1, 16), num_tokens=4, patch=(4,))
    for kind in ("rope", "relative"):
        with pytest.raises(ValueError, match=f"position.kind={kind} is for grids"):
            build(sequence, position=Position(kind=kind))
        with pytest.raises(ValueError, match=f"position.kind={kind} knows"):
            build(wave, position=Position(kind=kind))
    with pytest.raises(ValueError, match=r"position\.base=1"):
        Position(base=1.0)
