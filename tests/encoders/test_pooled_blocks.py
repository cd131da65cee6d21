"""What stands for a row in one of the last blocks is what the encoder would give if it ended there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from multissl.contract.data import Views
from multissl.contract.encoder import Encoder, Encoders
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.finite import NotFinite
from multissl.contract.plans import StreamSpec
from multissl.encoders.huggingface import HuggingFaceEncoder
from multissl.encoders.timm import TimmEncoder
from multissl.encoders.transformer import TransformerEncoder

SPEC = StreamSpec(kind="grid", shape=(3, 16, 16), num_tokens=4, patch=(8, 8), target_dim=192)
VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}


def pictures() -> Views:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Views(x=x, stream="image", role="clean")


def transformer(**options: Any) -> Encoder:
    return TransformerEncoder.Config(
        **{"dim": 16, "depth": 3, "heads": 2, "layerscale": 1.0, **options}
    ).build(SPEC)


def assert_ends_at_blocks(encoder: Encoder, blocks: nn.ModuleList | nn.Sequential) -> None:
    """Compare the last block with the output, and the one before with the output of the encoder without the last."""
    with torch.no_grad():
        (features,) = encoder.eval()([pictures()], "none", 2)
        assert len(features.inner_pooled) == len(features.inner) == 2
        torch.testing.assert_close(features.inner_pooled[-1], features.pooled)
        del blocks[-1]
        (shorter,) = encoder([pictures()])
    assert not torch.allclose(shorter.pooled, features.pooled, atol=1e-3)
    torch.testing.assert_close(features.inner_pooled[0], shorter.pooled)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pooling": "mean"},
        {"pooling": "prefix", "registers": 2},
        {"pooling": "attention"},
        {"final_norm": "pooled"},
        {"final_norm": "none"},
    ],
)
def test_of_a_transformer(options: dict[str, Any]) -> None:
    encoder = transformer(**options)
    assert isinstance(encoder, TransformerEncoder)
    blocks = encoder.trunk.blocks
    with torch.no_grad():
        (features,) = encoder.eval()([pictures()], "none", 2)
        (same,) = encoder.layers(pictures(), [1])
    torch.testing.assert_close(features.inner_pooled[0], same.pooled)
    torch.testing.assert_close(features.inner_pooled[1], features.pooled)
    assert len(blocks) == 3


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}, {"reg_tokens": 2}])
@pytest.mark.parametrize("pooling", ["head", "mean"])
def test_of_timms_transformers(options: dict[str, Any], pooling: Any) -> None:
    pytest.importorskip("timm")
    tiny = {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 8, **options}
    encoder = TimmEncoder.Config(name="vit_tiny_patch16_224", pooling=pooling, options=tiny).build(SPEC)
    assert isinstance(encoder, TimmEncoder)
    assert_ends_at_blocks(encoder, encoder.net.blocks)


@pytest.mark.parametrize(
    ("kind", "pooling"), [("vit", "mean"), ("vit", "cls"), ("dinov2", "cls"), ("clip_vision_model", "mean")]
)
def test_of_hugging_faces_transformers(kind: str, pooling: Any) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = {
        "model_type": kind,
        **VIT,
        **({"initializer_range": 0.2} if kind != "clip_vision_model" else {}),
    }
    encoder = HuggingFaceEncoder.Config(config=config, pooling=pooling).build(SPEC)
    lists = [m for m in encoder.modules() if isinstance(m, nn.ModuleList)]
    assert_ends_at_blocks(encoder, max(lists, key=len))


def test_nothing_is_pooled_twice_while_an_encoder_is_trained() -> None:
    (features,) = transformer().train()([pictures()], "none", 2)
    assert len(features.inner) == 2
    assert features.inner_pooled == ()


def test_blocks_that_are_not_finite_go_no_further() -> None:
    encoder = transformer(depth=2)
    frozen = FrozenEncoders.of(Encoders({"image": encoder}))
    assert frozen.depths == {"image": 2}
    frozen.encode([pictures()], inner=2)
    broken = FrozenEncoders(frozen.function, frozen.device)

    def encode(*args: Any) -> Any:
        features = frozen.function(*args)
        features[0].inner_pooled[0][1, 0] = torch.nan
        return features

    broken.function = encode
    with pytest.raises(NotFinite):
        broken.encode([pictures()], inner=2)
