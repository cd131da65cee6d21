"""Models of pytorch-tabular behind the contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from multissl.configs import tabular
from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoders
from multissl.contract.learning import Progress
from multissl.contract.plans import StreamSpec
from multissl.encoders.pytorch_tabular import PytorchTabularEncoder
from multissl.engine.optim.adamw import AdamW
from multissl.inference import clean_views
from multissl.modalities.tabular.adapter import Tabular
from multissl.objectives.vime import VIME
from multissl.run import train as run
from multissl.run.folder import RunFolder
from multissl.run.model import load

SPEC = StreamSpec(
    kind="columns", shape=(5,), num_tokens=5, cardinalities=(0, 3, 0, 4, 0), target_dim=1, target_kind="cells"
)
OPTIONS: dict[str, dict[str, Any]] = {
    "CategoryEmbedding": {"layers": "16-8"},
    "FTTransformer": {"input_embed_dim": 8, "num_heads": 2, "num_attn_blocks": 1},
    "TabTransformer": {"input_embed_dim": 8, "num_heads": 2, "num_attn_blocks": 1},
    "AutoInt": {"attn_embed_dim": 8, "num_heads": 2, "num_attn_blocks": 1, "embedding_dim": 4},
    "GANDALF": {"gflu_stages": 2},
    "GatedAdditiveTreeEnsemble": {"num_trees": 2, "tree_depth": 2, "gflu_stages": 1},
}


def views(rows: int = 6) -> Views:
    x = torch.randn(rows, 5, generator=torch.Generator().manual_seed(0))
    x[:, 1], x[:, 3] = torch.arange(rows) % 3, torch.arange(rows) % 4
    return Views(x=x, target=x.roll(1, 0), stream="t", role="global")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("model", OPTIONS)
def test_models_train_behind_the_contract(model: str) -> None:
    pytest.importorskip("pytorch_tabular", reason="the extra `tabular` is not installed")
    torch.manual_seed(0)
    cfg = PytorchTabularEncoder.Config(model=model, options=OPTIONS[model])
    encoder = cfg.build(SPEC)
    encoders = Encoders({"t": encoder})
    objective = VIME.Config(corrupt=0.0).build(encoders, {"t": SPEC})
    objective(encoders, Batch([views()]), Progress(step=0, total=1)).total.backward()
    trainable = {n: p for n, p in encoder.named_parameters() if p.requires_grad}
    assert trainable
    assert not [n for n, p in trainable.items() if p.grad is None]
    encoder.eval()
    (features,) = encoder([views()])
    assert features.pooled.shape == (6, encoder.dim)
    assert features.tokens.shape == (6, 1, encoder.dim)
    (alone,) = encoder([views().samples(torch.tensor([2]))])
    torch.testing.assert_close(alone.pooled, features.pooled[2:3], rtol=1e-4, atol=1e-5)  # rows do not mix
    fresh = cfg.build(SPEC)
    fresh.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(fresh.eval()([views()])[0].pooled, features.pooled)


@pytest.mark.filterwarnings("default")
def test_what_is_no_encoder_of_rows_is_refused() -> None:
    pytest.importorskip("pytorch_tabular", reason="the extra `tabular` is not installed")
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"model": "Node"}, r"encoders\.model='Node' starts from statistics of a first large batch"),
        ({"model": "FTTransfomer"}, r"encoders\.model='FTTransfomer'; did you mean FTTransformer"),
        ({"options": {"num_head": 2}}, r"encoders\.options has no field 'num_head'; did you mean num_heads"),
        ({"options": {"_module_src": "tabular_model"}}, r"encoders\.options has no field '_module_src'"),
        ({"options": {"task": "regression"}}, r"encoders\.options has no field 'task'"),
    )
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            PytorchTabularEncoder.Config(**options).build(SPEC)


def test_other_streams_are_refused() -> None:
    grid = StreamSpec(kind="grid", shape=(3, 8, 8), num_tokens=4, patch=(4, 4))
    with pytest.raises(ValueError, match="this stream is a grid: use transformer"):
        PytorchTabularEncoder.Config().build(grid)


@pytest.mark.filterwarnings("default")
def test_a_recipe_trains_one_and_the_run_is_read_again(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_tabular", reason="the extra `tabular` is not installed")
    rows = [f"{i % 7},{'abc'[i % 3]},{i % 5 + i % 3},{i % 2}" for i in range(80)]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,c,target", *rows]))
    recipe = tabular.default().replace(
        modality=Tabular.Config(data=str(tmp_path / "rows.csv")),
        encoders={"tabular": PytorchTabularEncoder.Config(options=OPTIONS["FTTransformer"])},
        optim=AdamW.Config(lr=1e-2, warmup=1), steps=20, batch_size=16, evals={}, log_every=5,
    )  # fmt: skip
    run.train(recipe, tmp_path / "run")
    losses = [x["loss"] for x in RunFolder(tmp_path / "run").read_metrics() if x["kind"] == "train"]
    assert losses[-1] < 0.95 * losses[0]
    found = load(tmp_path / "run")
    modality = found.modality
    views = clean_views(modality, [modality.dataset("val")[i] for i in range(4)], "tabular")
    assert found.encoders.encode([views])[0].pooled.shape == (4, 8)
