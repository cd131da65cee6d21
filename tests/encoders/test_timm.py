from typing import Any

import pytest
import torch

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoders
from multissl.contract.learning import Progress
from multissl.contract.plans import StreamSpec
from multissl.encoders.timm import TimmEncoder
from multissl.engine.learner import Learner
from multissl.layers.heads import MLPHead
from multissl.objectives.vicreg import VICReg
from multissl.parallel.sharding import Parallel, parallelize

timm = pytest.importorskip("timm")
SPEC = StreamSpec(kind="grid", shape=(2, 32, 32), num_tokens=4, patch=(16, 16))
TINY = {"embed_dim": 12, "depth": 3, "num_heads": 2}


def vit(**options: Any) -> TimmEncoder:
    return TimmEncoder(TimmEncoder.Config(name="vit_tiny_patch16_224", options=TINY | options), SPEC)


def pictures(size: int = 32, rows: int = 2) -> Views:
    x = torch.randn(rows, 2, size, size, generator=torch.Generator().manual_seed(size))
    return Views(x=x, stream="image", role="global")


def test_a_vit_takes_any_size_and_pools_as_its_head_does() -> None:
    encoder = vit(reg_tokens=2).eval()
    big, small = encoder([pictures(), pictures(16)])
    assert big.tokens.shape == (2, 4, 12)
    assert small.tokens.shape == (2, 1, 12)
    torch.testing.assert_close(big.pooled, encoder.net(pictures().x))
    assert not torch.allclose(big.pooled, big.tokens.mean(1))


def test_inner_tokens_are_those_of_the_last_blocks() -> None:
    encoder = vit().eval()
    (features,) = encoder([pictures()], inner=2)
    (plain,) = encoder([pictures()])
    torch.testing.assert_close(features.pooled, plain.pooled)
    assert [t.shape for t in features.inner] == [(2, 4, 12)] * 2
    torch.testing.assert_close(encoder.net.norm(features.inner[-1]), features.tokens)


@pytest.mark.parametrize(
    ("name", "width", "places"),
    [("resnet10t", 512, 1), ("convnext_atto", 320, 1), ("swin_tiny_patch4_window7_224", 768, 1)],
)
def test_maps_of_either_layout_become_tokens(name: str, width: int, places: int) -> None:
    spec = StreamSpec(kind="grid", shape=(3, 32, 32), num_tokens=4, patch=(16, 16))
    encoder = TimmEncoder(TimmEncoder.Config(name=name, drop_path=0.1), spec).eval()
    x = torch.randn(2, 3, 32, 32)
    (features,) = encoder([Views(x=x, stream="image", role="global")])
    assert encoder.dim == width
    assert features.tokens.shape == (2, places, width)
    torch.testing.assert_close(features.pooled, encoder.net(x))
    assert len(encoder.shard_units()) == encoder.depth == 4


def test_layers_follow_the_blocks() -> None:
    encoder = vit()
    assert encoder.layer_id("net.patch_embed.proj.weight") == encoder.layer_id("net.cls_token") == 0
    assert encoder.layer_id("net.blocks.2.attn.qkv.weight") == 3
    assert encoder.layer_id("net.norm.weight") == 4


def test_checkpointed_and_sharded_blocks_give_the_same_loss() -> None:
    losses = []
    for parallel in (Parallel(), Parallel(checkpoint_activations=True, fully_shard="always")):
        torch.manual_seed(0)
        encoders = Encoders({"image": vit()})
        objective = VICReg(
            VICReg.Config(projector=MLPHead.Config(hidden=8, out=8)), encoders, {"image": SPEC}
        )
        learner = Learner(encoders, objective)
        parallelize(learner, parallel, torch.device("cpu"))
        x = pictures(rows=8).x
        batch = Batch([Views(x=x, stream="image", role="global", num_views=2)])
        found = learner(batch, Progress(step=0, total=1))
        learner.backward(found)
        losses.append(found.total.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_pretrained_weights_are_taken_at_the_start_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def create(name: str, pretrained: bool, **options: Any) -> Any:
        asked.append(pretrained)
        return real(name, **options)

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    encoder = TimmEncoder(TimmEncoder.Config(name="resnet10t", pretrained=True), SPEC)
    before = encoder.net.conv1[0].weight.clone()
    assert not any(asked)
    encoder.load_pretrained()
    assert asked[-1]
    assert not torch.equal(before, encoder.net.conv1[0].weight)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="timm has no model 'resnet10x'; did you mean resnet10t"):
        TimmEncoder(TimmEncoder.Config(name="resnet10x"), SPEC)
    with pytest.raises(ValueError, match="use pooling=mean"):
        TimmEncoder(TimmEncoder.Config(name="mobilenetv3_small_050"), SPEC)
    with pytest.raises(ValueError, match="hands out no inner tokens"):
        TimmEncoder(TimmEncoder.Config(name="resnet10t"), SPEC)([pictures()], inner=1)
    with pytest.raises(ValueError, match="drop_path=1"):
        TimmEncoder.Config(drop_path=1.0)
    with pytest.raises(ValueError, match="reads pictures"):
        TimmEncoder(TimmEncoder.Config(), StreamSpec(kind="columns", shape=(3,), num_tokens=3))
    with pytest.raises(TypeError, match="no_such_option"):
        TimmEncoder(TimmEncoder.Config(name="resnet10t", options={"no_such_option": 1}), SPEC)


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint_path",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "cache_dir",
        "pretrained_strict",
    ],
)
def test_arguments_of_the_loader_are_no_options_of_a_model(name: str) -> None:
    with pytest.raises(ValueError, match=rf"encoders\.options cannot hold '{name}'.*pretrained=True"):
        vit(**{name: "weights.pth"})
