"""The best head's attention beside the objects, and encoders that hand out none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from multissl.contract.abilities import IGNORED, HasAttention
from multissl.contract.data import Views
from multissl.contract.encoder import Encoders
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.evaluators.dense.attention_jaccard import AttentionJaccard, objects
from tests.evaluators.clusters import START, Pointwise
from tests.evaluators.dense.scenes import Scenes, patches, seeing


class Looking(Pointwise, HasAttention):
    """One head looks evenly everywhere, the other at what is bright."""

    def attention(self, views: Views) -> Tensor:
        bright = (patches(views.x).mean(2) * 8).softmax(1)
        return torch.stack([torch.full_like(bright, 1 / 16), bright], 1)


def test_the_figure_is_that_of_the_best_head_of_each_picture() -> None:
    scenes = Scenes.Config(noise=0.05).build()
    assert isinstance(scenes, Scenes)
    encoders = replace(seeing(), modules=Encoders({"picture": Looking(torch.nn.Identity())}))
    figures = AttentionJaccard.Config(background=(0, 1)).build().run(encoders, scenes, START)
    scores = []
    for sample in (scenes.dataset("val")[i] for i in range(6)):
        truth = {t for t in range(16) if int(sample.data[1][t // 4 * 2, t % 4 * 2]) == 2}
        best = 0.0
        views = Views(x=sample.data[2][None, None], stream="picture", role="clean")
        for head in Looking(torch.nn.Identity()).attention(views)[0].tolist():
            kept, mass = set(), 0.0
            for t in sorted(range(16), key=lambda t: (-head[t], -t)):
                if mass >= 0.6 - 1e-6:
                    break
                kept.add(t)
                mass += head[t]
            best = max(best, len(kept & truth) / len(kept | truth))
        scores.append(best)
    assert figures["jaccard"] == pytest.approx(100 * sum(scores) / 6, abs=5)
    assert figures["jaccard"] > figures["every_patch"] + 10


def test_encoders_without_attention_are_refused_by_name(said: list[str]) -> None:
    scenes = Scenes.Config().build()
    encoders = replace(seeing(), modules=Encoders({"picture": Pointwise(torch.nn.Identity())}))
    assert AttentionJaccard.Config().build().run(encoders, scenes, START) == {}
    assert "Pointwise hands out no attention" in said[0]


def test_a_transformer_without_a_class_token_is_refused() -> None:
    spec = StreamSpec(kind="grid", shape=(1, 8, 8), patch=(2, 2), num_tokens=16)
    encoder = TransformerEncoder.Config(dim=8, depth=1, heads=2, class_token=False, pooling="mean").build(
        spec
    )
    scenes = Scenes.Config().build()
    with pytest.raises(ValueError, match="no class token"):
        AttentionJaccard.Config().build().run(
            FrozenEncoders.of(Encoders({"picture": encoder})), scenes, START
        )
    encoder = TransformerEncoder.Config(dim=8, depth=1, heads=2, registers=2).build(spec)
    figures = (
        AttentionJaccard.Config()
        .build()
        .run(FrozenEncoders.of(Encoders({"picture": encoder})), scenes, START)
    )
    assert 0 < figures["jaccard"] <= 100


def test_a_patch_is_of_an_object_where_most_of_its_pixels_are() -> None:
    labels = torch.tensor([[[0, 1, 1, IGNORED], [0, 0, 1, 1], [IGNORED] * 4]], dtype=torch.uint8)
    truth, some = objects(labels, (0,))
    assert truth.tolist() == [[True, False, False]]
    assert some.tolist() == [True]
