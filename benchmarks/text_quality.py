"""Text on real data: three figures side by side, the untrained model, counts or TF-IDF, and the trained model.

    python benchmarks/text_quality.py words --data wikitext2-valid.txt brown.parquet \
        [--few sst2-train.parquet sst2-dev.parquet] [--split test]
    python benchmarks/text_quality.py characters --data tinyshakespeare.txt [--split test]

`words`: masked language modeling on both texts together, in small letters, documents cut into passages of at most
1,000 characters. The last tenth of the first text's paragraphs and every tenth document of the table are the test
split, every tenth passage of the rest the validation split. Measured: nats of a hidden word beside counts of its
neighbors; with `--few`, accuracy of a linear model on 100 labels over 20 paired draws, beside the untrained encoder's,
and with all labels beside TF-IDF. `characters`: next-token prediction on the first nine tenths of a text, the rest is
the test split; bits per character beside counts of six characters. Without `--split test` the test texts are not read.
Files go to runs/text_quality; a run that is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = Path("runs/text_quality")
PASSAGE, PIECE = 1_000, 20_000
"""Characters of a document of each of the two kinds."""


def words_recipe(data: Path, steps: int, seed: int) -> Any:
    """Whole words hidden, on rows of 64 tokens."""
    from multissl.configs.text import whole_word

    made = whole_word()
    made.modality = made.modality.replace(
        data=str(data), lower=True, vocab=12_000, length=64, local_length=24
    )
    made.objective = made.objective.replace(mask_ratio=0.25)
    made.optim = made.optim.replace(lr=2e-3, warmup=200)
    return made.replace(steps=steps, batch_size=24, seed=seed, evals={})


def characters_recipe(data: Path, steps: int, seed: int) -> Any:
    """The next token of 1,024, on rows of 64 tokens."""
    from multissl.configs.text import causal

    made = causal()
    made.modality = made.modality.replace(data=str(data), vocab=1024, length=64, local_length=24)
    made.optim = made.optim.replace(lr=2e-3, warmup=100)
    return made.replace(steps=steps, batch_size=12, seed=seed, evals={})


def passages(text: str) -> list[str]:
    """A text in parts of at most `PASSAGE` characters, cut at line ends."""
    parts: list[str] = []
    for line in text.split("\n"):
        if parts and len(parts[-1]) + len(line) < PASSAGE:
            parts[-1] += "\n" + line
        else:
            parts.append(line)
    return [p for p in parts if p.strip()]


def write(name: str, documents: Iterable[dict[str, Any]]) -> Path:
    """A file of JSON lines in the folder."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps(d) for d in documents))
    return path


def table(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file."""
    import pyarrow.parquet as parquet

    return parquet.read_table(path).to_pylist()


def joined(plain: Path, rows: Path) -> Path:
    """Both texts as training and test passages; the file of the training ones."""
    paragraphs = [p for p in re.split(r"\n\s*\n", plain.read_text(encoding="utf-8")) if p.strip()]
    cut = len(paragraphs) * 9 // 10
    train, test = paragraphs[:cut], paragraphs[cut:]
    for number, row in enumerate(table(rows)):
        (test if number % 10 == 4 else train).append(row["text"])
    write("words-test", ({"text": p} for text in test for p in passages(text.strip())))
    return write("words-train", ({"text": p} for text in train for p in passages(text.strip())))


def halved(plain: Path) -> Path:
    """The first nine tenths of a text in pieces, the rest in one as the test split; the file of the former."""
    text = plain.read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    write("characters-test", [{"text": text[cut:]}])
    return write("characters-train", ({"text": text[i : min(i + PIECE, cut)]} for i in range(0, cut, PIECE)))


def labeled(train: Path, test: Path) -> Path:
    """Two tables as one set with a test split."""
    write("few-test", table(test))
    return write("few-train", table(train))


def measured(recipe: Any, out: Path, evaluators: dict[str, tuple[Any, Any]]) -> dict[str, dict[str, float]]:
    """Figures of evaluators before and after a run; each comes with a modality, None for the run's own."""
    import torch

    from multissl.build import build
    from multissl.contract.learning import Progress
    from multissl.engine import checkpoint
    from multissl.run import train as run
    from multissl.run.folder import RunFolder

    run.train(recipe, out)
    parts, cpu = build(recipe, torch.device("cpu")), torch.device("cpu")
    parts.learner.eval()
    figures: dict[str, dict[str, float]] = {}
    for step in (0, recipe.steps):
        if step:
            newest = checkpoint.find(RunFolder(out).checkpoints)[-1]
            checkpoint.load(newest, parts.learner, parts.optimizer.torch)
        for name, (evaluator, modality) in evaluators.items():
            if modality is None:
                modality = parts.modality
            else:
                modality.restore(parts.modality.state())
            found = evaluator.run(
                parts.learner.frozen("exported", cpu), modality, Progress(step=step, total=recipe.steps)
            )
            if not step:
                found |= evaluator.baselines(modality)
            figures[f"{name}, {'trained' if step else 'untrained'}"] = found
    return figures


def main() -> None:
    """Train what is missing and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=["words", "characters"])
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--few", type=Path, nargs=2, default=())
    parser.add_argument("--split", choices=["val", "test"], default="val")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from multissl.evaluators.few_labels import FewLabels
    from multissl.evaluators.hidden_text import BitsPerCharacter, MaskedWord
    from multissl.evaluators.linear_probe import LinearProbe

    if args.part == "words":
        recipe = words_recipe(joined(*args.data), args.steps or 8_000, args.seed)
        asked: dict[str, tuple[Any, Any]] = {
            "hidden words": (MaskedWord.Config(split=args.split, count=5_000).build(), None)
        }
        if args.few:
            few = recipe.modality.replace(data=str(labeled(*args.few))).build()
            hundred = FewLabels.Config(
                labels=100, draws=20, split=args.split, classical=False, metric="accuracy"
            )
            asked["100 labels"] = (hundred.build(), few)
            asked["all labels"] = (LinearProbe.Config(split=args.split, classical=True).build(), few)
    else:
        recipe = characters_recipe(halved(*args.data), args.steps or 2_400, args.seed)
        asked = {"bits": (BitsPerCharacter.Config(split=args.split, count=0).build(), None)}
    out = FOLDER / f"{args.part}-{recipe.steps}-{args.seed}"
    for name, figures in measured(recipe, out, asked).items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    print(
        f"processor time of this call: {resource.getrusage(resource.RUSAGE_SELF).ru_utime / 60:.1f} minutes"
    )


if __name__ == "__main__":
    main()
