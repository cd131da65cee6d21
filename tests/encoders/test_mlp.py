import pytest
import torch

from multissl.contract.data import Views
from multissl.contract.plans import StreamSpec
from multissl.encoders.mlp import MLPEncoder


def test_categories_enter_one_hot_and_the_token_is_the_pooled_one() -> None:
    spec = StreamSpec(kind="columns", shape=(3,), num_tokens=3, cardinalities=(0, 4, 0))
    encoder = MLPEncoder(MLPEncoder.Config(dims=(8, 5)), spec)
    assert encoder.layers[0].in_features == 6
    x = torch.tensor([[0.5, 3, -1.0], [0.5, 2, -1.0]])
    (features,) = encoder([Views(x=x, stream="s", role="clean")])
    assert features.pooled.shape == (2, 5)
    assert torch.equal(features.tokens[:, 0], features.pooled)
    torch.testing.assert_close(
        encoder._flat(x), torch.tensor([[0.5, 0, 0, 0, 1, -1.0], [0.5, 0, 0, 1, 0, -1.0]])
    )
    assert encoder.maskings == {"none"}
    assert encoder.layer_id("layers.0.weight") == 1
    assert encoder.shard_units() == []


def test_grids_are_flattened() -> None:
    encoder = MLPEncoder(
        MLPEncoder.Config(dims=(4,), norm=False),
        StreamSpec(kind="grid", shape=(3, 2, 2), num_tokens=1, patch=(2, 2)),
    )
    (features,) = encoder([Views(x=torch.randn(2, 3, 2, 2), stream="s", role="clean")])
    assert features.pooled.shape == (2, 4)


def test_without_layers_numbers_pass_as_they_are() -> None:
    encoder = MLPEncoder(MLPEncoder.Config(dims=()), StreamSpec(kind="columns", shape=(4,), num_tokens=4))
    x = torch.randn(3, 4)
    (features,) = encoder([Views(x=x, stream="s", role="clean")])
    assert torch.equal(features.pooled, x)
    assert encoder.dim == 4


def test_refuses_sequences_and_layers_without_width() -> None:
    with pytest.raises(ValueError, match="use transformer"):
        MLPEncoder(MLPEncoder.Config(), StreamSpec(kind="sequence", shape=(4,), num_tokens=4, vocab=9))
    with pytest.raises(ValueError, match="dims="):
        MLPEncoder.Config(dims=(8, 0))
