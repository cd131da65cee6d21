"""Running a recipe and reading back what it made.

A run's folder holds `recipe.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`, `encoder.safetensors`,
`modality.json`, `summary.json` and `report.html`. `load` reads JSON and safetensors only; nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multissl.config import config_name, difference, to_dict
from multissl.contract.data import Batch, Sample
from multissl.contract.encoder import Encoders, build_encoders, without_heads
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Features, Figure, Progress
from multissl.contract.modality import Modality
from multissl.engine import checkpoint
from multissl.engine.metrics import read_metrics
from multissl.engine.trainer import Trainer, alarm_of, verdicts
from multissl.files import digest, replace_text, replaced
from multissl.inference import clean_views, lone, readable_views
from multissl.migrate import FORMAT
from multissl.parallel.collectives import share
from multissl.parallel.ranks import barrier, is_main, process_group, world
from multissl.parallel.sharding import Parallel, full
from multissl.recipe import Parts, Recipe, build, read_recipe
from multissl.registry import suggest
from multissl.version import __version__
from multissl.weights.loading import tower_streams

FREE = ("steps", "log_every", "tensorboard", "parallel", "data", "save", "evals", "chunk")
"""Options that may change when a run is resumed: they do not change what is learnt, or extend it."""
SHIPPED = ("encoder.safetensors", "modality.json")
"""What `load` needs besides the recipe."""


class NotWritten(RuntimeError):
    """A file that a run ends with could not be written; those of before are intact."""


@dataclass(kw_only=True, slots=True)
class Result:
    """How a run ended."""

    folder: Path
    learned: bool
    verdict: str
    figures: dict[str, float]
    """The last evaluation."""


def train(recipe: Recipe, folder: Path | str, default: Recipe | None = None) -> Result:
    """Run a recipe in a folder, from its newest checkpoint if there is one; a finished run tells its result again.

    A run has finished when its summary says so, which is the last thing that is written. One that ended between its
    last checkpoint and that moment writes what it ships from the checkpoint, without training.
    `default` is the recipe whose differences the report shows.
    """
    folder = Path(folder)
    with process_group() as device:
        lines = prepare(folder, recipe)
        began = time.time()
        parts = build(recipe, device)
        trainer = Trainer(
            recipe, parts.modality, parts.learner, parts.optimizer, parts.evaluators, folder, device
        )
        if share(is_main() and has_finished(folder, recipe.steps)):
            trainer.display.say(f"{folder} has finished its {checkpoint.newest_step(folder)} steps already")
        else:
            trainer.display.say(describe(recipe, parts, device))
            lines = trainer.fit()
            write_model(folder, parts)
        said = verdicts(parts.evaluators, lines)
        result = summarize(folder, recipe, default, said, lines, time.time() - began, device)
        barrier()  # from here on the first rank is alone
        if is_main():
            trainer.display.say(f"report: {report(folder)}")
            record_finish(folder)
            trainer.display.say(result.verdict)
    return result


def prepare(folder: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """Make the run's folder and its `recipe.json`, or compare with the one there; the metrics so far."""
    text = {"format": FORMAT, "multissl": __version__, **to_dict(recipe)}
    path, problem = folder / "recipe.json", ""
    if is_main():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.is_file() and checkpoint.found(folder):
                compare(saved(path), text, folder)
            replace_text(path, json.dumps(text, indent=1))
        except OSError as error:
            problem = f"--out {folder}: cannot be written ({error.strerror}); give another --out"
        except ValueError as error:
            problem = str(error)
    problem = share(problem)  # what stops the first rank stops all of them
    if problem:
        raise ValueError(problem)
    return read_metrics(folder)


def saved(path: Path) -> dict[str, Any]:
    """The options of a saved recipe; what was no option yet when it was saved has its default."""
    found = json.loads(path.read_text())
    try:
        return found | to_dict(read_recipe(path))
    except (ValueError, ImportError):  # what can no longer be read as a recipe is compared as it stands
        return found


def compare(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Stop where a run would be resumed with another recipe."""
    changed = [d for d in difference(old, new) if d.split(".")[0].split(":")[0] not in (*FREE, "multissl")]
    if changed:
        raise ValueError(
            f"{folder} holds a run of another recipe:\n  " + "\n  ".join(changed) + "\n"
            "repeat its options to resume it, give another --out, or --restart to set it aside and begin anew"
        )


def describe(recipe: Recipe, parts: Parts, device: torch.device) -> str:
    """Two lines said at the start."""
    trainable = sum(p.numel() for p in parts.learner.parameters() if p.requires_grad)
    count = len(parts.modality.dataset("train"))
    encoders = ", ".join(f"{s}={config_name(type(c))}" for s, c in recipe.encoders.items())
    ranks = world()
    epochs = recipe.steps * recipe.batch_size / count
    idle = torch.cuda.device_count() - 1 if device.type == "cuda" and ranks == 1 else 0
    tip = (
        f"\n{idle} more GPUs are idle: torchrun --nproc-per-node {idle + 1} -m multissl train ..."
        if idle
        else ""
    )
    return (
        f"{config_name(type(recipe.objective))} on {config_name(type(recipe.modality))}: {count:,} samples, "
        f"encoders {encoders}, {trainable / 1e6:.2f} M trainable parameters, {ranks} x {device.type}\n"
        f"{recipe.steps:,} steps of {recipe.batch_size} samples ({epochs:.1f} epochs), "
        f"learning rate {parts.optimizer.lr:.3g} ({recipe.optim.lr:g}, scaling {recipe.optim.lr_scaling}){tip}"
    )


def has_finished(folder: Path, steps: int) -> bool:
    """Return whether a run took its steps and ships, by its own record, what the last of them left."""
    if checkpoint.newest_step(folder) < steps:
        return False
    try:
        summary = json.loads((folder / "summary.json").read_text())
        return summary["finished"] == shipped(folder)
    except (OSError, ValueError, KeyError, TypeError):  # not there yet, or damaged: then it is written again
        return False


def shipped(folder: Path) -> dict[str, Any]:
    """Return the step of the newest checkpoint, and the digests of the files that a run ships."""
    return {"step": checkpoint.newest_step(folder), "sha256": {n: digest(folder / n) for n in SHIPPED}}


def record_finish(folder: Path) -> None:
    """Add to `summary.json` of which step the run ships what: the last thing that a run does."""
    path = folder / "summary.json"
    with _writing(folder):
        summary = json.loads(path.read_text()) | {"finished": shipped(folder)}
        replace_text(path, json.dumps(summary, indent=1))


def write_model(folder: Path, parts: Parts) -> None:
    """Write the files of `SHIPPED`."""
    from safetensors.torch import save_file

    exported = parts.learner.shipped()
    checkpoint.check_finite(exported, folder)
    # copied, as towers may share a module and a file cannot hold one tensor under two names
    whole = {n: full(t).detach() for n, t in exported.state_dict().items()}
    state = {n: t.to("cpu", copy=True).contiguous() for n, t in whole.items()}
    if is_main():
        fitted = json.dumps(parts.modality.state())
        with _writing(folder):
            with replaced(folder / "encoder.safetensors") as aside:
                save_file(state, aside)
            replace_text(folder / "modality.json", fitted)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say what to do where the files that a run ends with cannot be written."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise NotWritten(
            f"{folder} could not be written to ({reason}); what was written before is intact. "
            "Free some space, then repeat the command"
        ) from error


def summarize(
    folder: Path, recipe: Recipe, default: Recipe | None, said: list[tuple[bool, str]],
    lines: list[dict[str, Any]], seconds: float, device: torch.device,
) -> Result:  # fmt: skip
    """The verdict, the environment and the difference from the default, also as `summary.json`."""
    steps = checkpoint.newest_step(folder)  # of a run that is asked for fewer than it took: those it took
    bad = [text for learned, text in said if not learned]
    verdict = (bad or [text for _, text in said] or ["no evaluator gave a verdict"])[0]
    alarm = alarm_of(lines)
    verdict += f"; alarm: {alarm}" if alarm else ""
    figures = [x for x in lines if x["kind"] == "eval"]
    last = {k: v for k, v in figures[-1].items() if k not in ("kind", "step")} if figures else {}
    environment = {
        "multissl": __version__, "torch": torch.__version__, "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "ranks": world(), "threads": torch.get_num_threads(),
    }  # fmt: skip
    changes = difference(to_dict(default), to_dict(recipe)) if default else []
    summary = {
        "verdict": verdict, "alarm": alarm, "learned": bool(said) and not bad, "all_verdicts": [t for _, t in said],
        "environment": environment, "difference": changes, "steps": steps, "seconds": round(seconds, 1),
        "skipped": sum(x["kind"] == "note" and "unreadable" in x.get("text", "") for x in lines),
    }  # fmt: skip
    if is_main():
        with _writing(folder):
            replace_text(folder / "summary.json", json.dumps(summary, indent=1))
    return Result(folder=folder, learned=summary["learned"], verdict=verdict, figures=last)


class Model:
    """A trained run: `encode` turns samples into features."""

    def __init__(self, recipe: Recipe, modality: Modality, encoders: Encoders, device: torch.device) -> None:
        self.recipe, self.modality, self.encoders, self.device = recipe, modality, encoders, device

    def frozen(self) -> FrozenEncoders:
        """Return the encoders as evaluators want them."""
        return FrozenEncoders.of(self.encoders)

    def encode(self, samples: Sequence[Any] | Tensor, batch_size: int = 256, stream: str = "") -> Tensor:
        """Pooled features [S, D] of samples as the modality reads them: paths, arrays, tensors, rows.

        `stream` says what they are where the modality feeds several; empty: the first. Raises a ValueError that names
        the first sample that cannot be read.
        """
        return torch.cat([f.pooled.float().cpu() for f in self._features(samples, batch_size, stream)])

    def embed(self, samples: Sequence[Any] | Tensor, batch_size: int = 256, stream: str = "") -> Tensor:
        """Unit vectors [S, P] in the space that the streams share: a product of two streams' is their cosines.

        Raises a ValueError as `encode` does, and where the run has no such space.
        """
        parts = []
        for features in self._features(samples, batch_size, stream):
            if features.embedding is None:
                name = config_name(type(self.recipe.objective))
                raise ValueError(f"{name} shares no space between streams: use encode, or train clip")
            parts.append(torch.nn.functional.normalize(features.embedding.float(), dim=1).cpu())
        return torch.cat(parts)

    def _features(self, samples: Sequence[Any] | Tensor, batch_size: int, stream: str) -> Iterator[Features]:
        streams = self.modality.streams()
        stream = stream or next(iter(streams))
        if stream not in streams:
            raise ValueError(f"stream={stream!r} is none of this run's{suggest(stream, streams)}")
        for start in range(0, len(samples), batch_size):
            places = range(start, min(start + batch_size, len(samples)))
            some = [Sample(lone(self.modality, stream, samples[i]), i) for i in places]
            views = clean_views(self.modality, some, stream, self.device)
            with torch.inference_mode():
                yield self.encoders.encode([views])[0]


def load(run: Path | str, device: torch.device | str = "cpu", data: str = "") -> Model:
    """A finished run, ready to encode; its modality reads other `data` where some is given.

    Reads JSON and safetensors only.
    """
    from safetensors.torch import load_file

    run = Path(run)
    for name in ("recipe.json", "modality.json", "encoder.safetensors"):
        if not (run / name).is_file():
            raise ValueError(f"{run} holds no {name}: give the folder of a finished run")
    recipe = read_recipe(run / "recipe.json")
    if data:
        own = to_dict(recipe.modality).get("data")
        if own is None:
            raise ValueError(f"--data {data}: {config_name(type(recipe.modality))} reads no data")
        recipe.modality = recipe.modality.replace(data=(data,) if isinstance(own, list) else data)
    modality = recipe.modality.build()
    modality.restore(json.loads((run / "modality.json").read_text()))
    encoders = build_encoders(recipe.encoders, modality.streams())
    state = load_file(run / "encoder.safetensors")
    if tower_streams(state, encoders):  # the heads of towers are the objective's; else it need not be built
        objective = recipe.objective.build(encoders, modality.streams())
        encoders = objective.exported(encoders)
    encoders.load_state_dict(state)
    encoders.to(device).eval().requires_grad_(False)
    return Model(recipe, modality, encoders, torch.device(device))


def begun(recipe: Recipe, device: torch.device | str = "cpu") -> Model:
    """The encoders as the recipe starts with them: pretrained, given with --init, or untrained."""
    # As `load` has them: whole, in fp32 and uncompiled, since every size of batch would be compiled anew.
    parts = build(recipe.replace(parallel=Parallel(precision="fp32")), torch.device(device))
    encoders = parts.learner.encoders.eval().requires_grad_(False)
    return Model(recipe, parts.modality, encoders, torch.device(device))


def evaluate(run: Path | str) -> dict[str, float]:
    """The figures of a finished run's evaluators, measured again."""
    model = load(run)
    progress = Progress(step=model.recipe.steps, total=model.recipe.steps)
    figures: dict[str, float] = {}
    frozen = model.frozen()
    for name, cfg in model.recipe.evals.items():
        evaluator = cfg.build()
        found = evaluator.run(frozen, model.modality, progress) | evaluator.baselines(model.modality)
        figures |= {f"{name}/{n}": v for n, v in found.items()}
    return figures


def report(run: Path | str, samples: int = 8) -> Path:
    """Write `report.html` of a finished run: its views, what its encoder sees, neighbors and curves."""
    from multissl.engine.batches import Steps
    from multissl.report.page import write_report

    model = load(run)
    recipe, modality = model.recipe, model.modality
    objective = recipe.objective.build(without_heads(model.encoders), modality.streams())
    steps = Steps(modality, objective.plans(), samples, recipe.seed, 0, 1, True)
    figures: list[Figure] = modality.figures(Batch(v.samples(torch.arange(samples)) for v in steps[0][0]))
    for stream, encoder in model.encoders.items():
        held_out = modality.dataset("val")
        some = [held_out[i] for i in range(min(samples, len(held_out)))]
        views, _ = readable_views(modality, some, stream, model.device)
        with torch.inference_mode():
            figures += encoder.figures(views)
    titles, frozen = {}, model.frozen()
    for name, cfg in recipe.evals.items():
        evaluator = cfg.build()
        figures += evaluator.figures(frozen, modality)
        titles |= {f"{name}/{figure}": title for figure, title in evaluator.titles.items()}
    with _writing(Path(run)):
        return write_report(Path(run), figures, titles)


def steps_for(epochs: float, samples: int, batch_size: int) -> int:
    """Steps in which `epochs` passes over the data are made."""
    return max(1, math.ceil(epochs * samples / batch_size))
