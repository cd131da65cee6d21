from typing import Any, cast

import pytest
import torch
from torch import Tensor

from multissl.layers.drop_path import Subset
from multissl.layers.kernels.base import Layout
from multissl.layers.transformer import Block, Trunk, ffn_width

SIZES = ((4, 6), (8, 3))


def trunk(**options: Any) -> Trunk:
    torch.manual_seed(0)
    made = Trunk(16, 3, 2, layerscale=0.5, **options)
    for parameter in made.parameters():  # away from the special values of an initialization
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def subsets(made: Trunk, packing: Layout, block: int = 0) -> tuple[Subset, Subset]:
    """Return the rows drawn for the branches of a block, which leaves some out."""
    drawn = made._subsets(packing, torch.device("cpu"), ())[block]
    assert drawn is not None
    return drawn


def groups() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(r, n, 16) for r, n in SIZES]


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("causal", [False, True])
def test_packed_equals_separate(ffn: str, causal: bool) -> None:
    made = trunk(ffn=ffn)
    together, taps = made(groups(), causal=causal, inner=2)
    for i, group in enumerate(groups()):
        (alone,), alone_taps = made([group], causal=causal, inner=2)
        torch.testing.assert_close(together[i], alone)
        for both, one in zip(taps, alone_taps, strict=True):
            torch.testing.assert_close(both[i], one[0])
    torch.testing.assert_close(made.norm(taps[-1][0]), together[0])


def test_gradients_packed_equal_separate() -> None:
    def gradients(parts: list[list[Tensor]]) -> list[Tensor]:
        made = trunk()
        for part in parts:
            torch.stack([g.square().sum() for g in made(part)[0]]).sum().backward()
        return [cast(Tensor, p.grad) for p in made.parameters()]

    a, b = groups()
    torch.testing.assert_close(gradients([[a, b]]), gradients([[a], [b]]))


def test_causal_tokens_do_not_see_what_follows() -> None:
    made, x = trunk(), groups()[0]
    changed = x.clone()
    changed[:, 4:] += torch.randn(4, 2, 16)
    (before,), (after,) = made([x], causal=True)[0], made([changed], causal=True)[0]
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4] - after[:, 4]).abs().max() > 1e-3


def test_padding_changes_nothing_real() -> None:
    made, x = trunk(), groups()[0]
    valid = torch.ones(4, 6, dtype=torch.bool)
    valid[:, 4:] = False
    (padded,), _ = made([x], [valid])
    (short,), _ = made([x[:, :4]])
    torch.testing.assert_close(padded[:, :4], short)


def test_drop_path_computes_a_scaled_subset_of_rows() -> None:
    made = Trunk(16, 1, 2, drop_path=0.75)
    x = torch.randn(12, 3, 16)
    block = cast(Block, made.blocks[0])
    torch.nn.init.zeros_(block.mlp.get_parameter("fc2.weight"))
    torch.nn.init.normal_(block.attn.proj.weight)
    made.train()
    (raw,) = made([x], inner=1)[1][0]
    changed = (raw - x).abs().amax((1, 2)) > 0
    assert int(changed.sum()) == 3  # 12 * (1 - 0.75)
    (full,) = made.eval()([x], inner=1)[1][0]
    torch.testing.assert_close((raw - x)[changed], (full - x)[changed] * 4)


def test_drop_path_rests_in_eval_mode() -> None:
    made, x = Trunk(8, 2, 2, drop_path=0.9).eval(), torch.randn(2, 3, 8)
    state = torch.get_rng_state()
    torch.testing.assert_close(made([x])[0], made([x])[0])
    assert torch.equal(state, torch.get_rng_state())


def test_drop_path_of_padded_rows_keeps_their_masks() -> None:
    made = trunk(drop_path=0.5).train()
    x, valid = groups()[0], torch.ones(4, 6, dtype=torch.bool)
    valid[:, 4:] = False
    noise = x.clone()
    noise[:, 4:] += torch.randn(4, 2, 16)
    torch.manual_seed(3)
    (a,), _ = made([x], [valid])
    torch.manual_seed(3)
    (b,), _ = made([noise], [valid])
    torch.testing.assert_close(a[:, :4], b[:, :4])


def test_drop_path_follows_the_global_generator() -> None:
    made = trunk(drop_path=0.5).train()
    inputs, outs = groups(), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        outs.append(made(inputs)[0][0])
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_blocks_work_under_activation_checkpointing() -> None:
    from torch.distributed._composable.checkpoint_activation import checkpoint

    def gradients(recompute: bool) -> list[Tensor]:
        made, inputs = trunk(drop_path=0.5).train(), groups()
        for block in made.blocks if recompute else ():
            checkpoint(block)
        torch.manual_seed(4)
        made(inputs)[0][0].square().sum().backward()
        return [cast(Tensor, p.grad) for p in made.parameters()]

    torch.testing.assert_close(gradients(True), gradients(False), rtol=0, atol=0)


# The tracer itself looks at the gradient of activations.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_blocks_are_traced_without_a_break() -> None:
    made, inputs = trunk(drop_path=0.5).train(), groups()
    torch.manual_seed(2)
    expected = made(inputs)[0]
    for block in made.blocks:
        block.compile(backend="eager", fullgraph=True, dynamic=False)
    torch.manual_seed(2)
    torch.testing.assert_close(made(inputs)[0], expected)


def test_names_are_the_official_ones() -> None:
    swiglu = set(Trunk(8, 1, 2, ffn="swiglu", layerscale=1.0).state_dict())
    assert {"blocks.0.mlp.w12.weight", "blocks.0.mlp.w3.bias", "blocks.0.ls1.gamma"} <= swiglu
    plain = set(Trunk(8, 1, 2).state_dict())
    assert {"blocks.0.norm1.weight", "blocks.0.attn.qkv.bias", "blocks.0.attn.proj.weight"} <= plain
    assert {"blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.bias", "norm.weight"} <= plain
    assert not any("ls1" in name for name in plain)


def test_widths_are_dinov2_s() -> None:
    assert ffn_width(1024, "mlp") == 4096
    assert ffn_width(1024, "swiglu") == 2736
    assert ffn_width(1536, "swiglu") == 4096


def test_asking_for_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="outputs of 4 blocks"):
        trunk()(groups(), inner=4)


def test_linear_drop_path_rises_with_depth_and_leaves_no_row_out_of_the_first_block() -> None:
    made = Trunk(8, 3, 2, drop_path=0.5, drop_path_shape="linear")
    assert made.drop_paths == [0.0, 0.25, 0.5]
    packing = made._layout([torch.zeros(8, 2, 8)], (), False)
    assert made._subsets(packing, torch.device("cpu"), ())[0] is None
    for block, kept in ((1, 6), (2, 4)):
        assert all(s.layout.sizes == ((kept, 2),) for s in subsets(made, packing, block))
    assert Trunk(8, 1, 2, drop_path=0.5, drop_path_shape="linear").drop_paths == [0.0]
