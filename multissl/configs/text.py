"""Recipes for text: a demo for two processor cores, and the usual objectives on texts of one's own.

They share a transformer of 128 channels and a byte-level BPE of 4,096 ids trained on the texts. Ratios, temperatures
and replacement shares are the papers'; widths, batches and steps are sized for minutes on two cores, and the figures
that the papers report need their sizes.
"""

from __future__ import annotations

from multissl.configs.shared.common import small_dino, watched
from multissl.configs.shared.continuing import continued
from multissl.contract.objective import Objective
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.optim.adamw import AdamW
from multissl.evaluators.hidden_text import BitsPerCharacter, MaskedWord
from multissl.layers.decoder import Decoder
from multissl.layers.heads import MLPHead
from multissl.layers.positions import Position
from multissl.layers.teacher import Teacher
from multissl.modalities.text.adapter import Text
from multissl.objectives.data2vec import Data2Vec
from multissl.objectives.infilling import Infilling
from multissl.objectives.infonce import InfoNCE
from multissl.objectives.language import MLM, NextToken
from multissl.recipe import Recipe


def default() -> Recipe:
    """InfoNCE between two spans of a document (DeCLUTR's idea), on Python's own documentation.

    Command: multissl train text
    Size: 400 steps of 64, transformer 128 x 3; 2 minutes on two processor cores.
    Measured: k-NN 67.8 % on Python's documentation (untrained 41.3, raw input 24.0, TF-IDF 88.1); 1 minute 38 seconds.
    """
    return declutr().replace(steps=400)


def masked() -> Recipe:
    """Masked language modeling with SpanBERT's spans, 80 % of them masked, 10 % replaced, 10 % kept.

    Command: multissl train text/masked --data articles.parquet
    Size: 600 steps of 64, transformer 128 x 3; 2 minutes on two processor cores.
    Measured: k-NN 47.4 % on Python's documentation (untrained 45.0): too few steps for its loss; 1 minute 54 seconds.
    """
    return _masked(MLM.Config())


def bert() -> Recipe:
    """BERT's masked language modeling: single tokens, no next-sentence task.

    Command: multissl train text/bert --data articles.parquet
    Size: 600 steps of 64, transformer 128 x 3; minutes on two processor cores.
    Measured: unmeasured
    """
    return _masked(MLM.Config(), mask="token")


def whole_word() -> Recipe:
    """BERT with whole words hidden.

    Command: multissl train text/whole_word --data articles.parquet
    Size: 600 steps of 64, transformer 128 x 3; minutes on two processor cores.
    Measured: 6.2 nats per hidden word (untrained 10.8, neighbors 5.4), rows of 64, 12,000 ids, 8,000 steps, 20 min.
    """
    made = _masked(MLM.Config(), mask="word")
    made.evals["words"] = MaskedWord.Config(every=200)
    return made


def spanbert() -> Recipe:
    """SpanBERT: spans of words, and their tokens predicted from their neighbors.

    Command: multissl train text/spanbert --data articles.parquet
    Size: 600 steps of 64, transformer 128 x 3; minutes on two processor cores.
    Measured: unmeasured
    """
    return _masked(MLM.Config(boundary_weight=1.0))


def t5() -> Recipe:
    """T5's span corruption: what was taken out is written by a decoder.

    Command: multissl train text/t5 --data articles.parquet
    Size: 600 steps of 64, transformer 128 x 3; minutes on two processor cores.
    Measured: unmeasured
    """
    objective = Infilling.Config(decoder=Decoder.Config(dim=128, depth=2, heads=4, init_std=0.0))
    return _small(objective, mask="t5", infill=0.15)


def causal() -> Recipe:
    """Next-token prediction; a text is the mean of its tokens, each of which saw those before it.

    Command: multissl train text/causal --data articles.parquet
    Size: 600 steps of 64, transformer 128 x 3; minutes on two processor cores.
    Measured: 2.13 bits per character on tinyshakespeare (untrained 4.64), rows of 64, 1,024 ids, 2,400 steps, 7.7 min.
    """
    made = _small(NextToken.Config())
    made.encoders["text"] = made.encoders["text"].replace(causal=True)
    made.evals["bits"] = BitsPerCharacter.Config(every=200)
    return made


def simcse() -> Recipe:
    """SimCSE: each document twice, distinguished by the encoder alone.

    Command: multissl train text/simcse --data articles.parquet
    Size: 600 steps of 64, transformer 128 x 3; minutes on two processor cores.
    Measured: unmeasured

    The blocks have no dropout; drop_path takes its place: every view skips other residual branches, 10 % of them.
    """
    projector = MLPHead.Config(hidden=128, out=128, layers=2)
    made = _small(
        InfoNCE.Config(temperature=0.05, projector=projector), pack=False, same_window=True, drop_path=0.1
    )
    made.modality = made.modality.replace(length=32, local_length=24)
    return made


def declutr() -> Recipe:
    """DeCLUTR's idea: two spans of a document are positives of each other.

    Command: multissl train text/declutr --data articles.parquet
    Size: 600 steps of 64, transformer 128 x 3; minutes on two processor cores.
    Measured: no gain on sst2 with 100 labels (52.4 %, +0.8 [-0.7, +2.3]) views of 64, `--steps 350`, 2.8 minutes.
    """
    projector = MLPHead.Config(hidden=128, out=128, layers=2)
    return _small(InfoNCE.Config(temperature=0.05, projector=projector), pack=False, crop=(0.3, 0.7))


def dino() -> Recipe:
    """Experimental: DINO on text, short spans predict whole windows; hidden tokens are not compared.

    Command: multissl train text/dino --data articles.parquet
    Size: 600 steps of 64, transformer 128 x 3; minutes on two processor cores.
    Measured: unmeasured

    No figures are published for it.
    """
    return _small(small_dino(), pack=False, crop=(0.5, 1.0))


def data2vec_text() -> Recipe:
    """data2vec on text: spans of four words, 35 % hidden; a teacher's layers, each token normalized.

    Command: multissl train text/data2vec_text --data articles.parquet
    Size: 600 steps of 64, transformer 128 x 3; minutes on two processor cores.
    Measured: unmeasured

    In few steps the teacher follows faster than the paper's 0.999.
    """
    teacher = Teacher.Config(ema=0.99, final_ema=0.999, ema_shape="linear")
    objective = Data2Vec.Config(mask_ratio=0.35, top_k=3, layer_norm="layer", beta=4.0, teacher=teacher)
    return _small(objective, span_words=4)


def mlm_continue() -> Recipe:
    """Masked language modeling from weights on: the model's own task on texts of a domain.

    Command: multissl train text/mlm_continue --init RUN --fit init --data articles.parquet
    Size: 5,000 steps of 64, the encoder of the weights; one GPU.
    Measured: unmeasured

    After Gururangan et al. 2020, arXiv 2004.10964. For models of Hugging Face: --encoders.text huggingface
    --encoders.text.model FOLDER --init FOLDER --modality.tokenizer FOLDER, and without --fit init.
    """
    # ids mean what the start's vocabulary says, so it has to be that one; nothing has a teacher, so the student is
    # what is exported, and a gentler decay with depth leaves embeddings of the domain's words room to move
    return continued(
        "text",
        Text.Config(length=128, local_length=48, mask="token"),
        TransformerEncoder.Config(pooling="mean"),
        MLM.Config(),
        batch_size=64,
        clip=1.0,
        clip_per="all",
        layer_decay=0.9,
        min_std=0.03,
    )


def _masked(objective: Objective.Config, **options: object) -> Recipe:
    """With larger embeddings and a convolution over neighbors: without, hundreds of steps pass before words count."""
    made = _small(objective, **options)  # type: ignore[arg-type]
    made.encoders["text"] = made.encoders["text"].replace(
        embedding_std=0.5, position=Position(std=0.2), token_conv=5
    )
    return made


def _small(objective: Objective.Config, drop_path: float = 0.0, **options: object) -> Recipe:
    return Recipe(
        modality=Text.Config(**{"length": 0, "local_length": 0, **options}),  # type: ignore[arg-type]
        encoders={
            "text": TransformerEncoder.Config(
                dim=128, depth=3, heads=4, ffn_ratio=2.0, pooling="mean", init_std=0.0, drop_path=drop_path
            )
        },
        objective=objective,
        optim=AdamW.Config(lr=2e-3, warmup=50, weight_decay=0.01),
        batch_size=64,
        steps=600,
        evals=watched(every=200, min_std=0.03),
    )
