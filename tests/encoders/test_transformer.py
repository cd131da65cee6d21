from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from multissl.contract.abilities import Shardable
from multissl.contract.data import Views
from multissl.contract.encoder import build_encoders
from multissl.contract.plans import StreamSpec
from multissl.encoders import figures as panels
from multissl.encoders.transformer import SIZES, TransformerEncoder, vit
from multissl.layers.positions import Position
from multissl.modalities.views import pack_masks
from tests.helpers.ranks import run_ranks

IMAGE = StreamSpec(kind="grid", shape=(3, 16, 16), num_tokens=16, patch=(4, 4))
TEXT = StreamSpec(kind="sequence", shape=(6,), num_tokens=6, vocab=11)
TABLE = StreamSpec(kind="columns", shape=(4,), num_tokens=4, cardinalities=(0, 3, 0, 2))


def build(spec: StreamSpec = IMAGE, **options: Any) -> TransformerEncoder:
    torch.manual_seed(0)
    given: dict[str, Any] = {"dim": 24, "depth": 2, "heads": 2} | options
    encoder = TransformerEncoder(TransformerEncoder.Config(**given), spec)
    for parameter in encoder.parameters():  # away from the special values of an initialization
        parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder


def views(x: Tensor, hidden: Tensor | None = None, valid: Tensor | None = None, num: int = 1) -> Views:
    masks = () if hidden is None else (pack_masks(hidden),)
    return Views(x=x, stream="s", role="global", num_views=num, masks=masks, valid=valid)


def test_all_view_sizes_share_a_pass_that_equals_single_ones() -> None:
    encoder = build(registers=2, layerscale=0.5)
    hidden = torch.rand(4, 16) < 0.4
    batch = [views(torch.randn(4, 3, 16, 16), hidden, num=2), views(torch.randn(6, 3, 8, 8), num=3)]
    together = encoder(batch, "replace", inner=1)
    for item, both in zip(batch, together, strict=True):
        (alone,) = encoder([item], "replace", inner=1)
        torch.testing.assert_close(both.pooled, alone.pooled)
        torch.testing.assert_close(both.tokens, alone.tokens)
        torch.testing.assert_close(both.inner, alone.inner)
    assert [f.tokens.shape for f in together] == [(4, 16, 24), (6, 4, 24)]
    assert [len(f.inner) for f in together] == [1, 1]


def test_replaced_tokens_do_not_leak_and_unmasked_views_stay() -> None:
    encoder, x = build(), torch.randn(2, 3, 16, 16)
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 5] = True
    other = x.clone()
    other[:, :, 4:8, 4:8] = torch.randn(2, 3, 4, 4)  # patch 5
    (a,), (b,) = encoder([views(x, hidden)], "replace"), encoder([views(other, hidden)], "replace")
    torch.testing.assert_close(a.tokens, b.tokens)
    (plain,), (none,) = encoder([views(x)]), encoder([views(x, hidden)], "none")
    torch.testing.assert_close(plain.tokens, none.tokens)
    assert (plain.tokens - a.tokens).abs().max() > 1e-3


def test_dropped_tokens_are_not_seen() -> None:
    encoder, x = build(pooling="mean"), torch.randn(2, 3, 16, 16)
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[0, :12], hidden[1, 4:] = True, True
    other = x.clone()
    other[0, :, :12] = 0  # three rows of patches
    (a,), (b,) = encoder([views(x, hidden)], "drop"), encoder([views(other, hidden)], "drop")
    assert a.tokens.shape == (2, 4, 24)
    torch.testing.assert_close(a.tokens, b.tokens)
    torch.testing.assert_close(a.pooled, a.tokens.mean(1))
    (all_hidden_none,) = encoder([views(x)], "drop")
    torch.testing.assert_close(all_hidden_none.tokens, encoder([views(x)])[0].tokens)


def test_causal_tokens_see_only_what_came_before() -> None:
    encoder = build(TEXT, pooling="last")
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    (a,) = encoder([views(ids)], "causal")
    (b,) = encoder([views(torch.tensor([[1, 2, 3, 9, 9, 9]]))], "causal")
    torch.testing.assert_close(a.tokens[:, :3], b.tokens[:, :3])
    assert (a.tokens[:, 3] - b.tokens[:, 3]).abs().max() > 1e-3
    torch.testing.assert_close(a.pooled, a.tokens[:, -1])


def test_a_causal_encoder_is_causal_in_evaluation_too() -> None:
    plain, causal = build(TEXT, pooling="mean"), build(TEXT, pooling="mean", causal=True)
    view = views(torch.randint(0, 11, (3, 6)))
    (want,), (found,) = plain([view], "causal"), causal([view])
    torch.testing.assert_close(found.pooled, want.pooled)
    torch.testing.assert_close(causal.layers(view, 1)[0].tokens, found.tokens)
    assert not torch.allclose(plain([view])[0].pooled, want.pooled)
    with pytest.raises(ValueError, match="causal=True: the class token"):
        build(TEXT, causal=True)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_not_seen_and_not_pooled(pooling: str, causal: bool) -> None:
    if causal and pooling == "cls":
        return
    encoder = build(TEXT, pooling=pooling)
    valid = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    ids = torch.randint(11, (2, 6))
    other = ids.clone()
    other[0, 4:] = (ids[0, 4:] + 1) % 11
    masking = "causal" if causal else "none"
    (a,), (b,) = encoder([views(ids, None, valid)], masking), encoder([views(other, None, valid)], masking)
    torch.testing.assert_close(a.pooled, b.pooled)
    torch.testing.assert_close(a.tokens[0, :4], b.tokens[0, :4])
    (short,) = encoder([views(ids[:1, :4])], masking)
    torch.testing.assert_close(a.pooled[:1], short.pooled)


def test_tables_and_their_masks() -> None:
    encoder = build(TABLE)
    rows = torch.tensor([[0.5, 2, -1.0, 0], [0.1, 0, 2.0, 1]])
    hidden = torch.tensor([[True, False, False, False], [False, True, False, True]])
    assert encoder([views(rows, hidden)], "replace")[0].tokens.shape == (2, 4, 24)


def test_maskings_are_told_before_and_refused_in_words() -> None:
    cfg = TransformerEncoder.Config(dim=24, depth=1, heads=2)
    assert cfg.maskings_for(IMAGE) == {"none", "drop", "replace"}
    assert cfg.replace(pooling="mean").maskings_for(IMAGE) == {"none", "drop", "replace", "causal"}
    with pytest.raises(ValueError, match=r"masking=causal.*pooling=mean"):
        cfg.build(IMAGE)([views(torch.randn(1, 3, 16, 16))], "causal")


def test_a_mask_token_that_is_never_used_is_frozen_but_stays_among_the_weights() -> None:
    encoder = build()
    encoder.prepare_for(frozenset({"none"}))
    assert not encoder.tokenizer.mask_token.requires_grad
    assert "tokenizer.mask_token" in encoder.state_dict()
    encoder.prepare_for(frozenset({"replace"}))
    assert encoder.tokenizer.mask_token.requires_grad


@pytest.mark.parametrize(
    "options", [{}, {"layerscale": 0.1, "registers": 2, "ffn": "swiglu"}, {"conv_stem": True}]
)
def test_every_trainable_tensor_gets_a_gradient(options: dict[str, Any]) -> None:
    encoder = build(**options)
    encoder.prepare_for(frozenset({"none"}))
    (features,) = encoder([views(torch.randn(2, 3, 16, 16))])
    (features.pooled.square().sum() + features.tokens.square().sum()).backward()
    without = {n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None}
    assert not without


def test_layers_are_the_inner_outputs_normed_or_not() -> None:
    encoder = build(depth=3)
    item = views(torch.randn(2, 3, 16, 16))
    (features,) = encoder([item], inner=3)
    raw = encoder.layers(item, 3, norm=False)
    torch.testing.assert_close(tuple(f.tokens for f in raw), features.inner)
    picked = encoder.layers(item, [2, 0])
    torch.testing.assert_close(picked[1].tokens, features.tokens)
    torch.testing.assert_close(picked[1].pooled, features.pooled)
    torch.testing.assert_close(picked[0].tokens, encoder.trunk.norm(features.inner[0]))
    for bad in (4, [3], []):
        with pytest.raises(ValueError, match="blocks 0 to 2"):
            encoder.layers(item, bad)


@pytest.mark.parametrize("depth", [1, 2])
def test_attention_is_a_distribution_over_tokens_and_prefix(depth: int) -> None:
    encoder = build(depth=depth, registers=3)
    weights = encoder.attention(views(torch.randn(2, 3, 16, 8)))
    assert weights.shape == (2, 2, 8)
    total = weights.sum(-1)
    assert ((total > 0) & (total < 1)).all()


def test_layer_ids_follow_dinov2() -> None:
    encoder = build(registers=1, depth=3)
    ids = {name: encoder.layer_id(name) for name, _ in encoder.named_parameters()}
    assert {i for n, i in ids.items() if n.startswith("tokenizer.")} == {0}
    assert ids["trunk.blocks.0.norm1.weight"] == 1
    assert ids["trunk.blocks.2.mlp.fc2.bias"] == 3
    assert ids["trunk.norm.weight"] == 4
    assert encoder.layer_id("encoders.image.trunk.blocks.2.mlp.fc2.bias") == 3
    assert len(encoder.shard_units()) == 3


@pytest.mark.parametrize("channels", [1, 3])
def test_panels_show_pictures_and_leave_the_mode(channels: int) -> None:
    spec = StreamSpec(kind="grid", shape=(channels, 16, 16), num_tokens=16, patch=(4, 4))
    encoder = build(spec, drop_path=0.5).train()
    tokens, attention = encoder.figures(views(torch.randn(10, channels, 16, 16)))
    assert encoder.training
    assert tokens.image.dtype == attention.image.dtype == np.uint8
    assert tokens.image.shape == (2 * 114, 8 * 114, 3)  # 8 pictures and their tokens, with gaps of 2
    assert attention.image.shape == (3 * 114, 8 * 114, 3)
    assert len(np.unique(tokens.image[114:].reshape(-1, 3), axis=0)) > 50
    np.testing.assert_array_equal(
        encoder.eval().figures(views(torch.zeros(2, channels, 16, 16)))[0].image.shape, [228, 228, 3]
    )
    assert build(TEXT).figures(views(torch.zeros(1, 6, dtype=torch.long))) == []


@pytest.mark.parametrize(
    ("size", "millions"), [("ti", 5.52), ("s", 22.06), ("b", 86.58), ("l", 304.37), ("g", 1136.48)]
)
def test_published_sizes(size: Any, millions: float) -> None:
    spec = StreamSpec(kind="grid", shape=(3, 518, 518), num_tokens=37**2, patch=(14, 14))
    if size == "ti":
        spec = StreamSpec(kind="grid", shape=(3, 224, 224), num_tokens=196, patch=(16, 16))
    with torch.device("meta"):
        encoder = vit(size, layerscale=0.0 if size == "ti" else 1e-5).build(spec)
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 2) == millions
    assert vit(size, depth=2).depth == 2
    assert set(SIZES) == {"ti", "s", "b", "l", "g"}


def test_streams_get_encoders_of_their_own() -> None:
    cfg = TransformerEncoder.Config(dim=24, depth=1, heads=2)
    encoders = build_encoders({"image": cfg, "text": cfg}, {"image": IMAGE, "text": TEXT})
    picture = Views(x=torch.randn(2, 3, 16, 16), stream="image", role="clean")
    words = Views(x=torch.randint(11, (2, 6)), stream="text", role="clean")
    found = encoders.encode([words, picture, words])
    assert [f.tokens.shape[1] for f in found] == [6, 16, 6]
    assert torch.equal(found[0].pooled, found[2].pooled)


def test_limits_name_the_option() -> None:
    for name, bad in {"dim": 0, "heads": 5, "drop_path": 1.0, "registers": -1, "layerscale": -1.0}.items():
        with pytest.raises(ValueError, match=f"{name}={bad}"):
            TransformerEncoder.Config(**{name: bad})
    misspelt: Any = {"register": 4}
    with pytest.raises(TypeError, match="did you mean registers"):
        TransformerEncoder.Config(**misspelt)
    assert TransformerEncoder.Config().position == Position()


class Root(Shardable):
    def __init__(self, encoder: TransformerEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, item: Views, attention: bool) -> Tensor:
        if attention:
            return self.encoder.attention(item)
        features = self.encoder([item, item.with_mask(None)], "replace")
        return torch.stack(
            [f.pooled.float().square().mean() + f.tokens.float().mean() for f in features]
        ).sum()

    def shard_units(self) -> list[torch.nn.Module]:
        return self.encoder.shard_units()

    def entry_points(self) -> list[str]:
        return []


def step(root: Root) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient of a weight, and attention."""
    from multissl.parallel.sharding import full

    torch.manual_seed(1)
    item = views(torch.randn(4, 3, 16, 16), torch.rand(4, 16) < 0.5)
    torch.manual_seed(2)
    loss = root.train()(item, False)
    loss.backward()
    gradient: Any = root.encoder.trunk.blocks[0].get_parameter("attn.qkv.weight").grad
    with torch.no_grad():
        weights = root.eval()(item, True)
    return loss.detach(), full(gradient), weights


def sharded(rank: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    from multissl.parallel.sharding import Parallel, parallelize

    found = []
    for precision in ("fp32", "bf16"):
        root = Root(build(registers=1, layerscale=0.5, drop_path=0.5))
        cfg = Parallel(shard=2, precision=precision, checkpoint_activations=True)
        parallelize(root, cfg, torch.device("cpu"))
        found.append(step(root))
    return found


@pytest.mark.ranks
def test_sharded_checkpointed_blocks_give_the_same_in_full_and_nearly_in_half_precision() -> None:
    expected = step(Root(build(registers=1, layerscale=0.5, drop_path=0.5)))
    for by_precision in run_ranks(2, sharded):
        for found, rtol in zip(by_precision, (1e-5, 0.05), strict=True):
            for ours, whole in zip(found, expected, strict=True):
                assert (ours.float() - whole).abs().max() <= rtol * whole.abs().max()


def test_panels_of_sound_run_to_the_right_with_low_tones_below() -> None:
    x = torch.zeros(2, 1, 12, 4)  # time, frequency
    x[:, :, :3, 0] = 1.0  # a low tone at the beginning
    shown = x.unflatten(2, (6, 2)).unflatten(4, (2, 2)).amax((1, 3, 5)).flatten(1)  # [R, 6 * 2 tokens]
    tokens, attention = panels.draw(x, shown[..., None] * torch.ones(3), shown[:, None], (2, 2))
    for figure in (tokens, attention):
        for part in np.split(figure.image.max(2), 2):
            high, width = part.shape[0], part.shape[1] // 2
            assert width > 2 * high
            below, early, late = int(0.9 * high), int(0.1 * width), int(0.9 * width)
            assert part[below, early] > 200
            assert max(part[high // 4, early], part[below, late], part[high // 4, late]) < 50
