from pathlib import Path
from typing import Any

import pytest
import torch

from multissl.contract.data import Views
from multissl.contract.learning import Features
from multissl.contract.plans import StreamSpec
from multissl.encoders.huggingface import HuggingFaceEncoder

transformers = pytest.importorskip("transformers")
PICTURES = StreamSpec(kind="grid", shape=(1, 16, 16), num_tokens=16, patch=(4, 4))
WORDS = StreamSpec(kind="sequence", shape=(6,), num_tokens=6, vocab=20)
WAVES = StreamSpec(kind="grid", shape=(1, 800), num_tokens=10, patch=(80,))
SMALL = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}


def build(spec: StreamSpec, kind: str, pooling: Any = "mean", **fields: Any) -> HuggingFaceEncoder:
    config = {"model_type": kind, **SMALL, **fields}
    return HuggingFaceEncoder(HuggingFaceEncoder.Config(config=config, pooling=pooling), spec).eval()


def encode(encoder: HuggingFaceEncoder, x: torch.Tensor, inner: int = 0, **more: Any) -> Features:
    return encoder([Views(x=x, stream="s", role="clean", **more)], inner=inner)[0]


@pytest.mark.parametrize(
    ("kind", "prefix"), [("vit", 1), ("dinov2", 1), ("dinov2_with_registers", 5), ("deit", 2)]
)
def test_vision_transformers(kind: str, prefix: int) -> None:
    encoder = build(PICTURES, kind, patch_size=4)
    x = torch.randn(2, 1, 16, 16)
    found = encode(encoder, x, inner=2)
    whole = encoder.net(pixel_values=x).last_hidden_state
    assert whole.shape[1] == 16 + prefix
    torch.testing.assert_close(found.tokens, whole[:, prefix:])
    torch.testing.assert_close(found.pooled, whole[:, prefix:].mean(1))
    assert [t.shape for t in found.inner] == [(2, 16, 12)] * 2
    torch.testing.assert_close(encoder.net.layernorm(found.inner[-1]), found.tokens)  # before the final norm
    assert encode(encoder, torch.randn(3, 1, 8, 8)).tokens.shape == (3, 4, 12)  # a smaller view
    assert len(encoder.shard_units()) == encoder.depth == 2
    names = [n for n, _ in encoder.named_parameters()]
    assert {encoder.layer_id(n) for n in names if "embeddings" in n} == {0}
    assert {encoder.layer_id(n) for n in names if n.startswith("net.layernorm")} == {3}


def test_poolings() -> None:
    x = torch.randn(2, 1, 16, 16)
    encoder = build(PICTURES, "vit", "pooler", patch_size=4)
    torch.testing.assert_close(encode(encoder, x).pooled, encoder.net(pixel_values=x).pooler_output)
    assert all(p.requires_grad for p in encoder.net.pooler.parameters())
    encoder = build(PICTURES, "vit", "cls", patch_size=4)
    torch.testing.assert_close(encode(encoder, x).pooled, encoder.net(pixel_values=x).last_hidden_state[:, 0])
    assert not any(p.requires_grad for p in encoder.net.pooler.parameters())


def test_maps_of_convolutions() -> None:
    config = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1],
              "layer_type": "basic"}  # fmt: skip
    encoder = HuggingFaceEncoder(HuggingFaceEncoder.Config(config=config, pooling="pooler"), PICTURES).eval()
    found = encode(encoder, torch.randn(2, 1, 16, 16))
    assert encoder.dim == found.pooled.shape[1] == 8
    torch.testing.assert_close(found.tokens.mean(1), found.pooled)


def test_padding_is_left_out_of_texts() -> None:
    encoder = build(WORDS, "bert")
    assert encoder.net.config.vocab_size == 20
    x, valid = torch.randint(1, 20, (2, 6)), torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    found = encode(encoder, x, valid=valid)
    alone = encode(encoder, x[1:, :3])
    torch.testing.assert_close(found.pooled[1:], alone.pooled, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found.pooled[1], encode(encoder, x).pooled[1])


def test_waveforms() -> None:
    encoder = build(WAVES, "wav2vec2", conv_dim=[8, 8], conv_stride=[5, 2], conv_kernel=[10, 3],
                    num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)  # fmt: skip
    found = encode(encoder, torch.randn(2, 1, 800))
    assert found.tokens.shape[::2] == (2, 12)
    torch.testing.assert_close(found.pooled, found.tokens.mean(1))


def test_a_folder_gives_the_model_and_its_weights(tmp_path: Path) -> None:
    saved = build(PICTURES, "vit", patch_size=4).net
    saved.save_pretrained(tmp_path)
    plain = HuggingFaceEncoder(HuggingFaceEncoder.Config(model=str(tmp_path)), PICTURES)
    plain.load_pretrained()
    assert plain.dim == 12
    weight = saved.embeddings.cls_token
    assert not torch.equal(plain.net.embeddings.cls_token, weight)
    cfg = HuggingFaceEncoder.Config(model=str(tmp_path), config={"hidden_dropout_prob": 0.5}, pretrained=True)
    filled = HuggingFaceEncoder(cfg, PICTURES)
    filled.load_pretrained()
    assert filled.net.config.hidden_dropout_prob == 0.5
    assert torch.equal(filled.net.embeddings.cls_token, weight)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="config names no model_type"):
        HuggingFaceEncoder.Config(config={})
    with pytest.raises(ValueError, match="pretrained=True without a model"):
        HuggingFaceEncoder.Config(pretrained=True)
    with pytest.raises(ValueError, match="has no field 'hiden_size'"):
        build(PICTURES, "vit", hiden_size=3)
    with pytest.raises(ValueError, match=r"reads pictures .* waveforms"):
        HuggingFaceEncoder(HuggingFaceEncoder.Config(), StreamSpec(kind="columns", shape=(3,), num_tokens=3))
    with pytest.raises(ValueError, match="use pooling=mean"):
        encode(build(WORDS, "gpt2", "pooler"), torch.ones(1, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="inner=3: the model has 2 blocks"):
        encode(build(PICTURES, "vit", patch_size=4), torch.randn(1, 1, 16, 16), inner=3)
