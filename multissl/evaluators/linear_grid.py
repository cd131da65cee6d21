"""DINOv2's linear probe: heads of every learning rate on every choice of features, trained on the same batches.

Oquab et al., TMLR 2024, arXiv 2304.07193, appendix B.3, with the grid of their code: 13 learning rates, what stands for
a picture in the last block or in the last four side by side, with and without the mean of the last patch tokens. SGD
with momentum 0.9 and no decay, batches of 128, 12,500 steps, a cosine to 0, the rate times batch / 256. A tenth of
training chooses the head here; the published figures choose it on the scored split itself, which `selection=paper`
does, under a name that says so. Features are those of clean views, made once: the published code crops and flips
training pictures anew at every step.
Shapes: S training samples, Q queries, B samples of a batch, F features, H heads, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.verdict import Verdict
from multissl.evaluators.classified import Task, task_of, validation_mask
from multissl.evaluators.linear_probe import COMPONENTS, FEWEST, WIDEST, narrowed, scaled
from multissl.evaluators.verdicts import MAJORITY, learned
from multissl.inference import Blocks, Featurize, measured_baselines, readable_views, stream_of
from multissl.statistics import LEVEL

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
MOMENTUM, INITIAL_STD = 0.9, 0.01
REFERENCE_BATCH = 256
"""Batch that the learning rates are for."""


class LinearGrid(Evaluator):
    """Accuracy of the best of DINOv2's grid of linear heads, in percent."""

    fits = True
    titles: ClassVar[dict[str, str]] = {
        "top1": "linear grid accuracy, %",
        "top1_chosen_on_scored": "linear grid accuracy of the head that does best on the scored split, %",
        "lr": "linear grid, chosen learning rate",
        "blocks": "linear grid, chosen number of blocks",
        "mean_token": "linear grid, mean of tokens chosen (1) or not (0)",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of the grid of linear heads."""

        lr: tuple[float, ...] = RATES
        """Learning rates for a batch of 256, each of a head of its own."""
        blocks: tuple[int, ...] = (1, 4)
        """Last blocks whose outputs stand side by side; those that the encoder does not hand out are left out."""
        selection: Literal["train", "paper"] = "train"
        """train: a tenth of training chooses the head. paper: the scored split does, as in the published code and
        figures (DINOv2's rule); the figure is then called top1_chosen_on_scored, and is no held-out one."""
        split: str = "val"
        """Where the accuracy is measured."""
        train: int = 20_000
        """Training samples, drawn with a fixed seed; 0: all."""
        queries: int = 5_000
        """Samples of the split, drawn with a fixed seed; 0: all."""
        steps: int = 12_500
        """Steps of SGD for every head."""
        batch: int = 128
        """Samples of a step."""
        seed: int = 0
        """Of the heads' initial weights and of the order of samples."""
        classical: bool = True
        """Train heads on the modality's classical features too."""
        margin: float = 2.0
        """Points above the untrained encoder and the raw input that would matter, as for the k-NN."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if not self.lr or not min(self.lr) > 0:
                raise ValueError(f"lr={self.lr}: want one or more learning rates, each more than 0")
            if not self.blocks or min(self.blocks) < 1:
                raise ValueError(f"blocks={self.blocks}: want one or more numbers of blocks, each 1 or more")
            self.check_counts("train", "queries")
            if self.steps < 1 or self.batch < 1:
                raise ValueError(f"steps={self.steps}, batch={self.batch}: want 1 or more of both")

    cfg: Config

    @property
    def selected_on(self) -> str:
        """As its option says."""
        return "a tenth of training" if self.cfg.selection == "train" else "the scored split (DINOv2's rule)"

    @property
    def figure(self) -> str:
        """Return the name of the accuracy, which says where the head was chosen on the split that is scored."""
        return "top1" if self.cfg.selection == "train" else "top1_chosen_on_scored"

    def metric_names(self) -> list[str]:
        """Of the accuracy under its own name, and of what was chosen."""
        return [self.figure, "lr", "blocks", "mean_token"]

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`top1` of the chosen head, in percent, and what was chosen: `lr`, `blocks`, `mean_token`."""
        if not self.labeled(modality, self.cfg.split, "train"):
            return {}
        count = self._blocks(encoders, modality)
        task = self._task(Blocks(encoders, count), modality, encoders.device)
        if task is None:
            return {}
        numbers = [b for b in dict.fromkeys(self.cfg.blocks) if b <= count] or [1]
        kinds = kinds_of(task, count, numbers)
        if self.cfg.selection == "paper":
            self.warn(
                "selection=paper chooses the head on the split that is scored, as DINOv2's published figures do: "
                "it is no held-out figure"
            )
        best = self._best(kinds)
        return {
            self.figure: best.top1,
            "lr": best.lr,
            "blocks": float(best.kind.blocks),
            "mean_token": float(best.kind.mean_token),
        }

    def baselines(self, modality: Modality) -> dict[str, float]:
        """The same figure for the modality's classical features, and that of the most frequent class."""
        if not self.cfg.classical or not self.labeled(modality, self.cfg.split, "train"):
            return {}
        figures: dict[str, float] = {}
        for name, task in measured_baselines(modality, self._task):
            x, queries = scaled(*narrowed(task.x, task.queries, WIDEST, COMPONENTS))
            best = self._best([Kind(task._replace(x=x, queries=queries), 1, mean_token=False)])
            figures |= {name: best.top1, MAJORITY: task.majority}
        return figures

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where the last top1 is above its gates; a figure that chose on the scored split says nothing."""
        return learned("linear grid", "top1", history, self.cfg.margin, level)

    def _task(self, featurize: Featurize, modality: Modality, device: torch.device | str) -> Task | None:
        cfg = self.cfg
        task = task_of(
            self, featurize, modality, split=cfg.split, train=cfg.train, queries=cfg.queries, device=device
        )
        if task is not None and len(task.y) < FEWEST:
            self.warn_nothing_to_measure(f"{len(task.y)} labeled training samples, want {FEWEST} or more")
            return None
        if task is None:
            return None
        return task._replace(**{n: getattr(task, n).to(device) for n in ("x", "y", "queries", "truth")})

    def _blocks(self, encoders: FrozenEncoders, modality: Modality) -> int:
        """Return how many of the last blocks are read: as many as are asked for and handed out."""
        stream = stream_of(modality, self.cfg.stream)
        depth = encoders.depths.get(stream, 0)
        count = max((b for b in self.cfg.blocks if b <= max(depth, 1)), default=1)
        if count > 1 and not pools_blocks(encoders, modality, stream, count):
            count = 1
        if depth and count < max(self.cfg.blocks):
            self.warn(f"the encoder of {stream} pools its last {count} block{'s' * (count > 1)}, and no more")
        return count

    def _best(self, kinds: Sequence[Kind]) -> Best:
        """Return the head that does best where the choice is made, with its accuracy on the scored split."""
        found: Best | None = None
        for kind in kinds:
            task, cfg = kind.task, self.cfg
            tenth = validation_mask(len(task.y)).to(task.y.device)
            fit = ~tenth if cfg.selection == "train" else torch.ones_like(tenth)
            weight, bias = train_heads(
                task.x[fit],
                task.y[fit],
                cfg.lr,
                task.classes,
                steps=cfg.steps,
                batch=cfg.batch,
                seed=cfg.seed,
            )
            hits = hits_of(weight, bias, task.queries, task.truth)  # [H, Q]
            chooses = (
                hits if cfg.selection == "paper" else hits_of(weight, bias, task.x[tenth], task.y[tenth])
            )
            scores = chooses.double().mean(1)
            head = int(scores.argmax())  # the first, and slowest, of equals
            if found is None or scores[head] > found.score:
                top1 = estimate(100.0 * hits[head].cpu().numpy(), task.groups)
                found = Best(top1, cfg.lr[head], kind, float(scores[head]))
        assert found is not None
        return found


class Kind(NamedTuple):
    """One choice of features."""

    task: Task
    blocks: int
    mean_token: bool


class Best(NamedTuple):
    """A head, and how it does."""

    top1: float
    lr: float
    kind: Kind
    score: float
    """Where the choice is made."""


def pools_blocks(encoders: FrozenEncoders, modality: Modality, stream: str, count: int) -> bool:
    """Return whether encoders say what stands for a row in so many of their last blocks."""
    data = modality.dataset("train")
    views, _ = readable_views(modality, [data[i] for i in range(min(8, len(data)))], stream, encoders.device)
    try:
        with torch.no_grad():
            return len(encoders.encode([views], inner=count)[0].inner_pooled) == count
    except ValueError:  # of a network that hands out no blocks: convolutions
        return False


def kinds_of(task: Task, count: int, numbers: Sequence[int]) -> list[Kind]:
    """Return every choice of features, of those of `count` blocks and the mean token side by side [*, (n + 1) * D]."""

    def chosen(x: Tensor, blocks: int, mean_token: bool) -> Tensor:
        parts = x.chunk(count + 1, dim=1)
        return torch.cat(parts[count - blocks : count + mean_token], dim=1)

    return [
        Kind(
            task._replace(x=chosen(task.x, b, mean), queries=chosen(task.queries, b, mean)),
            b,
            mean_token=mean,
        )
        for b in numbers
        for mean in (False, True)
    ]


def train_heads(
    x: Tensor, y: Tensor, rates: Sequence[float], classes: int, *, steps: int, batch: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return weights [H, C, F] and biases [H, C] of heads on x [S, F] and y [S], one for each learning rate.

    The heads share nothing but batches, so their gradients are those of the sum of their losses.
    """
    generator = torch.Generator().manual_seed(seed)
    # One draw for all: a head does not depend on how many others there are.
    weight = INITIAL_STD * torch.randn(classes, x.shape[1], generator=generator).repeat(len(rates), 1)
    weight = weight.to(x)
    bias, batch = weight.new_zeros(len(weight)), min(batch, len(x))
    speed, bias_speed = torch.zeros_like(weight), torch.zeros_like(bias)
    rate = (
        torch.tensor(rates, device=x.device).repeat_interleave(classes) * batch / REFERENCE_BATCH
    )  # [H * C]
    for step, rows in enumerate(batches(len(x), batch, steps, generator)):
        rows = rows.to(x.device)
        some = x[rows]  # [B, F]
        logits = (some @ weight.T + bias).view(batch, len(rates), classes)
        error = (
            logits.softmax(2) - F.one_hot(y[rows], classes)[:, None]
        ) / batch  # the loss's gradient of logits
        error = error.flatten(1)  # [B, H * C]
        speed.mul_(MOMENTUM).addmm_(error.T, some)
        bias_speed.mul_(MOMENTUM).add_(error.sum(0))
        now = rate * (0.5 * (1 + math.cos(math.pi * step / steps)))
        weight.sub_(now[:, None] * speed)
        bias.sub_(now * bias_speed)
    return weight.unflatten(0, (len(rates), classes)), bias.unflatten(0, (len(rates), classes))


def batches(count: int, batch: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the rows of every step: all of them in a new order again and again, without a gap between two orders."""
    rest = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(rest) < batch:
            rest = torch.cat([rest, torch.randperm(count, generator=generator)])
        yield rest[:batch]
        rest = rest[batch:]


def hits_of(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return which of x [n, F] every head calls by their class y [n]: bool [H, n]."""
    logits = torch.einsum("nf,hcf->hnc", x, weight) + bias[:, None]
    return (logits.argmax(2) == y) & logits.isfinite().all(2)
