"""`Model.module`: its features are those of `Model.encode`, and it works as other modules do."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from multissl.contract.encoder import Tower
from multissl.encoders.resnet import ResNetEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.kernels.varlen import Varlen
from multissl.layers.transformer import Trunk
from multissl.modalities.image.adapter import Image
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.rl.adapter import RL
from multissl.modalities.tabular.preparation import TablePreparation, normal_quantile
from multissl.modalities.text.adapter import Text
from multissl.modalities.video.adapter import Video
from multissl.run.model import Model
from tests.export import models
from tests.helpers.stubs import Points


def check(model: Model, samples: Any, *inputs: Tensor, stream: str = "") -> None:
    """Compare the module's features of tensors with those of the samples."""
    mine, features = model.module(stream)(*inputs), model.encode(samples, stream=stream)
    torch.testing.assert_close(mine, features, atol=1e-5, rtol=1e-5)
    assert len(features) < 2 or float(features.std(0).max()) > 1e-3  # samples differ, so a slip is seen


def test_pictures_are_read_as_encode_reads_them() -> None:
    model, pixels = models.model_of(models.image()), models.pictures()
    check(model, list(pixels), torch.from_numpy(pixels))
    check(model, list(pixels), torch.from_numpy(pixels).float() / 255)
    assert model.module()(torch.rand(2, 3, 8, 24)).shape == (2, 16)  # of another size


def test_gray_pictures_are_normalized_by_their_own_statistics() -> None:
    modality = Image.Config(size=16, patch=4, local_size=8, channels=1, mean=(0.3,), std=(0.2,)).build().fit()
    pixels = models.pictures(channels=1)
    check(models.model_of(modality), list(pixels), torch.from_numpy(pixels))


@pytest.mark.parametrize("clean", ["clip", "frame"])
def test_clips_are_read_as_encode_reads_them(clean: Any) -> None:
    cfg = models.video().cfg
    modality = cfg.replace(clean=clean).build().fit()
    clips = np.random.default_rng(0).integers(0, 256, (3, 4, 16, 16, 3), np.uint8)
    check(models.model_of(modality), list(clips), torch.from_numpy(clips).permute(0, 4, 1, 2, 3))


def test_clips_in_no_order_are_refused() -> None:
    modality = Video.Config(frames=4, size=16, local_size=8, patch=4, clean="shuffled").build().fit()
    with pytest.raises(ValueError, match="clean=clip"):
        models.model_of(modality).module()


@pytest.mark.parametrize("subtract", ["none", "episode"])
def test_stacks_of_frames_are_read_as_encode_reads_them(subtract: Any) -> None:
    fitted = models.rl()
    assert isinstance(fitted, RL)
    modality = fitted.cfg.replace(subtract=subtract).build()
    modality.restore(fitted.state())
    stacks = models.pictures(rows=4, side=28)
    check(models.model_of(modality), list(stacks), torch.from_numpy(stacks))
    check(models.model_of(modality), list(stacks), torch.from_numpy(stacks).float() / 255)


AUDIO: dict[str, dict[str, Any]] = {
    "padded": {},
    "repeated": {"short": "repeat"},
    "fitted": {"short": "fit"},
    "trimmed": {"trim": 20.0},
    "limited": {"dynamics": 40.0},
    "centered": {"center": True},
    "trimmed and fitted": {"trim": 20.0, "short": "fit", "dynamics": 40.0, "center": True},
    "overlapping": {"patch": (8, 8), "stride": (5, 6)},
    "slow": {"rate": 8000},
}


@pytest.mark.parametrize("case", AUDIO)
@pytest.mark.parametrize("seconds", [0.2, 0.5])
def test_sounds_are_read_as_encode_reads_them(case: str, seconds: float) -> None:
    modality = models.audio(**AUDIO[case])
    sounds = models.waves(3, int(seconds * modality.cfg.rate))  # type: ignore[attr-defined]
    check(models.model_of(modality), list(sounds), torch.from_numpy(sounds))


@pytest.mark.parametrize("case", AUDIO)
def test_sounds_of_other_lengths_are_padded_under_a_mask(case: str) -> None:
    modality = models.audio(**AUDIO[case])
    sounds, lengths = models.waves(4, 8000), [8000, 6400, 2501, 900]
    mask = torch.arange(8000) < torch.tensor(lengths)[:, None]
    samples = [wave[:length] for wave, length in zip(sounds, lengths, strict=True)]
    padded = torch.where(mask, torch.from_numpy(sounds), 0.0)
    check(models.model_of(modality), samples, padded, mask)


def test_sounds_of_16_bits_are_read() -> None:
    sounds = (models.waves(3, 4000) * 32767).astype(np.int16)
    check(models.model_of(models.audio()), list(sounds), torch.from_numpy(sounds))


def test_texts_are_read_as_encode_reads_them() -> None:
    texts = ["some words", "a text of words", "words " * 40]
    check(models.model_of(models.text()), texts, *models.ids_of(texts))


@pytest.mark.parametrize("scaling", ["quantile", "standard"])
def test_rows_are_read_as_encode_reads_them(scaling: str) -> None:
    model = models.model_of(models.tabular(scaling))
    preparation = model.module().preparation
    assert isinstance(preparation, TablePreparation)
    rows = [
        *models.table(30),
        {"size": -1e9, "count": 9, "gaps": None, "color": "violet", "when": "1999-01-01"},
        {"size": 1e12, "count": 1.5, "gaps": 0.5, "color": None, "when": "2030-12-31"},
    ]
    check(model, rows, preparation.tensor(rows))
    assert [c.name for c in preparation.inputs] == ["size", "count", "gaps", "color", "when"]


def test_a_row_with_a_cell_of_another_kind_is_refused() -> None:
    preparation = models.model_of(models.tabular()).module().preparation
    assert isinstance(preparation, TablePreparation)
    with pytest.raises(ValueError, match="'size' holds 'wide': want a number"):
        preparation.tensor([{**models.table(1)[0], "size": "wide"}])
    with pytest.raises(ValueError, match="lacks column 'when'"):
        preparation.tensor([{k: v for k, v in models.table(1)[0].items() if k != "when"}])


def test_normal_scores_are_those_of_torch() -> None:
    share = torch.linspace(1e-9, 1 - 1e-9, 9999, dtype=torch.float64)
    torch.testing.assert_close(normal_quantile(share), torch.special.ndtri(share), atol=1e-12, rtol=1e-9)


def test_each_stream_of_a_pair_has_its_own() -> None:
    members = {"one": models.image().cfg, "two": models.text().cfg.replace(pack=False)}
    pair = Paired.Config(members=members).build()  # type: ignore[arg-type]
    assert isinstance(pair, Paired)
    for name, member in {"one": models.image(), "two": models.text()}.items():
        pair.members[name].restore(member.state())
    pair._partial = frozenset()
    model, pixels = models.model_of(pair), models.pictures()
    check(model, list(pixels), torch.from_numpy(pixels), stream="one")
    check(model, ["words", "some words"], *models.ids_of(["words", "some words"]), stream="two")
    with pytest.raises(ValueError, match="did you mean two"):
        model.module("twwo")


def test_tokens_their_mean_and_embeddings_are_handed_out() -> None:
    model, x = models.model_of(models.image()), torch.rand(2, 3, 16, 16)
    tokens = model.module(pool="tokens")(x)
    assert tokens.shape == (2, 16, 16)
    torch.testing.assert_close(model.module(pool="mean")(x), tokens.mean(1))
    with pytest.raises(ValueError, match="no space that streams share"):
        model.module(pool="embedding")
    with pytest.raises(ValueError, match="did you mean mean"):
        model.module(pool="meen")  # type: ignore[arg-type]
    own = model.module()(x)
    model.encoders["image"] = Tower(model.encoders["image"], nn.Linear(16, 3))
    embedding = model.module(pool="embedding")(x)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(model.module()(x), own)


def test_the_mean_of_tokens_leaves_padding_out() -> None:
    module = models.model_of(models.text()).module(pool="mean")
    ids, mask = models.ids_of(["some words", "a text of many more words"])
    torch.testing.assert_close(module(ids, mask)[:1], module(ids[:1, : int(mask[0].sum())]))


def test_it_is_frozen_unless_it_is_to_be_trained() -> None:
    model = models.model_of(models.image(), ResNetEncoder.Config(depth=10, width=8, stem="small"))
    x, frozen, trained = torch.rand(4, 3, 16, 16), model.module(), model.module(trainable=True)
    assert not any(p.requires_grad for p in frozen.parameters())
    before = {name: t.clone() for name, t in model.encoders.state_dict().items()}
    assert not any(m.training for m in frozen.train().modules())
    assert not trained.training
    trained.train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    trained(x).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(before[name], t) for name, t in model.encoders.state_dict().items())
    assert not torch.allclose(trained.eval()(x), frozen(x))
    x.requires_grad_()
    frozen(x).sum().backward()
    assert x.grad is not None  # what a frozen network does to its input is seen


def test_a_locked_encoder_can_be_trained() -> None:
    model = models.model_of(models.image())
    model.encoders["image"].lock()
    module = model.module(trainable=True)
    module.train()(torch.rand(2, 3, 16, 16)).sum().backward()
    used = [p for p in module.parameters() if p.requires_grad]
    assert used
    assert all(p.grad is not None for p in used)


def test_its_state_fits_a_copy_and_converting_it_keeps_constants() -> None:
    model, rows = models.model_of(models.tabular()), models.table(9)
    module = model.module()
    assert isinstance(module.preparation, TablePreparation)
    x, other = module.preparation.tensor(rows), copy.deepcopy(module)
    for parameter in other.parameters():
        parameter.zero_()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))
    other.half().float()
    for name, tensor in module.constants.named_buffers():
        assert torch.equal(other.constants.get_buffer(name), tensor)
        assert other.constants.get_buffer(name).dtype == tensor.dtype


def test_it_runs_in_half_precision() -> None:
    model, x = models.model_of(models.image()), torch.rand(2, 3, 16, 16)
    features = model.module().bfloat16()(x)
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(features.float(), model.module()(x), atol=0.1, rtol=0.1)


def test_it_attends_by_torch_whatever_it_was_trained_with() -> None:
    pixels = torch.from_numpy(models.pictures())
    plain = models.model_of(models.image()).module()(pixels)
    module = models.model_of(models.image(), models.ENCODER.replace(attention="varlen")).module()
    torch.testing.assert_close(module(pixels), plain)  # varlen itself wants CUDA
    model = models.model_of(models.image(), models.ENCODER.replace(attention="varlen"))
    encoder = model.encoders["image"]
    assert isinstance(encoder, TransformerEncoder)
    assert isinstance(encoder.trunk, Trunk)
    assert isinstance(encoder.trunk.kernel, Varlen)
    model.module()
    assert isinstance(encoder.trunk.kernel, Varlen)  # the model itself stays as it is


def test_it_compiles() -> None:
    module, x = models.model_of(models.image()).module(), torch.rand(2, 3, 16, 16)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.parametrize(
    ("modality", "inputs", "words"),
    [
        (models.image, (torch.rand(2, 1, 16, 16),), "this module reads pictures"),
        (models.image, (torch.rand(2, 3, 16, 16), torch.ones(2, 16).bool()), "give no mask"),
        (models.image, (torch.rand(2, 3, 15, 16),), "choose a multiple"),
        (models.audio, (torch.rand(2, 100),), "this module reads sound"),
        (models.text, (torch.rand(2, 16),), "this module reads ids"),
        (models.tabular, (torch.rand(2, 3),), "this module reads rows"),
        (models.rl, (torch.rand(2, 4, 28, 28),), "this module reads stacks"),
    ],
)
def test_another_tensor_is_refused_with_what_is_read(modality: Any, inputs: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        models.model_of(modality()).module()(*inputs)


def test_a_modality_that_does_not_say_how_is_refused() -> None:
    modality = Points.Config().build().fit()
    with pytest.raises(ValueError, match=r"give points|use Model.encode"):
        models.model_of(modality).module()


def test_examples_are_read() -> None:
    for modality in (models.image, models.video, models.rl, models.audio, models.text, models.tabular):
        model = models.model_of(modality())
        module = model.module()
        for rows, other in ((3, False), (2, True)):
            inputs = module.preparation.example(rows, other)
            assert module(*inputs).shape == (rows, 16)
    assert isinstance(models.text(), Text)
