import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from multissl.contract.data import Views
from multissl.contract.encoder import Encoders
from multissl.contract.plans import StreamSpec
from multissl.encoders.resnet import ResNetEncoder, resnet
from multissl.weights.loading import load_state, load_weights

SPEC = StreamSpec(kind="grid", shape=(3, 16, 16), num_tokens=4, patch=(8, 8))


def small(**options: Any) -> ResNetEncoder:
    return ResNetEncoder(ResNetEncoder.Config(**{"depth": 10, "width": 4, "stem": "small"} | options), SPEC)


def pictures(size: int, rows: int, num_views: int = 1) -> Views:
    return Views(x=torch.randn(rows, 3, size, size), stream="image", role="global", num_views=num_views)


@pytest.mark.parametrize("depth", [18, 50])
def test_names_shapes_and_start_are_those_of_torchvision(depth: int) -> None:
    from torchvision import models

    with torch.device("meta"):
        theirs = getattr(models, f"resnet{depth}")().state_dict()
        ours = resnet(depth, 64, "imagenet", 3, False).state_dict()
    assert [(k, v.shape) for k, v in ours.items()] == [
        (k, v.shape) for k, v in theirs.items() if not k.startswith("fc.")
    ]


def test_the_same_weights_give_the_features_of_torchvision() -> None:
    from torchvision import models
    from torchvision.models.feature_extraction import create_feature_extractor

    reference = models.resnet18().eval()
    spec = StreamSpec(kind="grid", shape=(3, 64, 64), num_tokens=4, patch=(32, 32))
    encoder = ResNetEncoder(ResNetEncoder.Config(depth=18), spec).eval()
    state = {f"net.{k}": v for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    encoder.load_state_dict(state)
    views = pictures(64, 2)
    with torch.no_grad():
        found = create_feature_extractor(reference, ["layer4", "flatten"])(views.x)
        (features,) = encoder([views])
    torch.testing.assert_close(features.pooled, found["flatten"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.tokens, found["layer4"].flatten(2).mT, rtol=1e-4, atol=1e-5)


def test_released_weights_start_a_run(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from torchvision import models

    reference = models.resnet18()
    save_file(reference.state_dict(), tmp_path / "resnet18.safetensors")
    encoders = Encoders({"image": ResNetEncoder(ResNetEncoder.Config(), SPEC)})
    load_weights(encoders, tmp_path / "resnet18.safetensors")
    found = encoders["image"].state_dict()
    assert torch.equal(found["net.layer4.1.conv2.weight"], reference.get_parameter("layer4.1.conv2.weight"))
    load_state(encoders["image"], encoders["image"].state_dict())
    with pytest.raises(ValueError, match=r"net\.conv1\.weight is \(64, 3, 7, 7\) where the encoder has"):
        load_state(small(depth=18, width=64), reference.state_dict())


def test_width_scales_every_stage_and_the_small_stem_keeps_the_size() -> None:
    encoder = small(depth=18, width=6)
    norms = [m for stage in encoder.shard_units() for n, m in stage.named_modules() if n == "1.bn2"]
    assert [m.num_features for m in norms if isinstance(m, nn.BatchNorm2d)] == [6, 12, 24, 48]
    assert encoder.dim == 48
    assert small(depth=50, width=2).dim == 64
    (features,) = encoder([pictures(16, 3)])
    assert features.pooled.shape == (3, 48)
    assert features.tokens.shape == (3, 4, 48)
    torch.testing.assert_close(features.tokens.mean(1), features.pooled)


def test_one_size_shares_its_batch_statistics_and_sizes_keep_their_order() -> None:
    encoder = small().train()
    a, b, c = pictures(16, 4), pictures(8, 2), pictures(16, 6)
    together = encoder([a, b, c])
    both = encoder([Views(x=torch.cat([a.x, c.x]), stream="image", role="global")])[0]
    torch.testing.assert_close(together[0].pooled, both.pooled[:4])
    torch.testing.assert_close(together[2].tokens, both.tokens[4:])
    torch.testing.assert_close(together[1].pooled, encoder([b])[0].pooled)
    assert (encoder([a])[0].pooled - together[0].pooled).abs().max() > 1e-3  # alone it has other statistics


def test_layers_are_the_stem_and_four_stages() -> None:
    encoder = small()
    assert encoder.layer_id("net.conv1.weight") == encoder.layer_id("net.bn1.bias") == 0
    assert encoder.layer_id("net.layer3.0.downsample.0.weight") == 3
    assert encoder.depth == len(encoder.shard_units()) == 4


def test_zero_init_makes_blocks_identities() -> None:
    encoder = small(zero_init_residual=True)
    x = torch.rand(2, 4, 8, 8)  # the first stage adds nothing to what is positive
    torch.testing.assert_close(encoder.shard_units()[0](x), x)
    assert (small().shard_units()[0](x) - x).abs().max() > 1e-2


def test_copies_and_double_precision() -> None:
    encoder = copy.deepcopy(small()).double().eval()
    (features,) = encoder([pictures(16, 2)])
    assert features.pooled.dtype == features.tokens.dtype == torch.float64


def test_refuses_what_is_no_picture() -> None:
    with pytest.raises(ValueError, match="this stream is a columns of shape"):
        ResNetEncoder(ResNetEncoder.Config(), StreamSpec(kind="columns", shape=(3,), num_tokens=3))
    with pytest.raises(ValueError, match="use transformer"):
        ResNetEncoder(
            ResNetEncoder.Config(), StreamSpec(kind="grid", shape=(3, 4, 8, 8), num_tokens=4, patch=(1, 8, 8))
        )
    with pytest.raises(ValueError, match="width=0: want 1 channel or more"):
        ResNetEncoder.Config(width=0)
    with pytest.raises(ValueError, match="no blocks of one width"):
        small()([pictures(16, 2)], inner=1)
