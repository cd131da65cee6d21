"""Samples per second and core of what a worker reads, next to the plain loop over the library that people write.

    python -m benchmarks.loaders [--only video audio ...] [--rounds 5]
    python -m benchmarks.loaders --waiting 60 [--workers 0] [--only video audio ...]

Both sides of a pair give the same arrays (compared before anything is timed) and leave views and masks out:
- video: two clips of 16 frames, 4 apart, of one mp4 of 96 frames at 320 x 240: decord's VideoReader and get_batch;
  `one clip` asks for one of them
- audio: the middle 5 s of 44.1 kHz flac as a normalized log-mel: soundfile, torchaudio's Resample and Kaldi's fbank
- text: a jsonl of paragraphs as ids and word starts: a transformers fast tokenizer in batches of 64
- tabular: a csv of 6,000 rows and 41 columns to scaled cells, and ten epochs of them in batches of 128: pandas, a row
  at a time by iloc as a Dataset does it; `csv` is the file alone, `batches` the epochs alone
- rl: frames of Pong averaged to 84 x 84, actions and memory, 2 episodes of 250 steps: gymnasium's step loop

Files are generated, nothing is downloaded. Each side runs in a process of its own with one thread, in turns; compared
are medians of processor time, which other work on the machine disturbs less than the clock on the wall.
--waiting N instead trains the default recipe of every modality for N steps, without evaluation, and prints the share of
the time that the training waited for data; with --workers 0 that is all of the worker's part, nothing overlaps.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the processes started

import numpy as np
import torch

from benchmarks import loader_files as files
from multissl import registry
from multissl.contract.data import Sample
from multissl.contract.plans import CLEAN
from multissl.random import RowRandom
from multissl.registry import require

Read = Callable[[], list[np.ndarray]]
"""Reads everything once; the arrays."""
EPISODES, STEPS, BATCH, EPOCHS = 2, 250, 128, 10
TRAIN = 4800
"""Rows of the table that are trained on: eight of every ten."""
CLIPS = [list(range(0, 61, 4)), list(range(35, 96, 4))]
MEAN, STD = -4.2, 4.5


def clips_ours(folder: Path, clips: list[list[int]]) -> Read:
    """The clips of every video from one decode."""
    from multissl.modalities.video.files import frames_of, load_clip

    def read() -> list[np.ndarray]:
        found = []
        for i, path in enumerate(sorted(folder.glob("*.mp4"))):
            frames = frames_of(load_clip(Sample(path, i)), [t for clip in clips for t in clip])
            found += [part.numpy() for part in frames.split([len(c) for c in clips])]
        return found

    return read


def clips_plain(folder: Path, clips: list[list[int]]) -> Read:
    """A reader a video, a batch of frames a clip."""
    VideoReader = require("decord").VideoReader

    def read() -> list[np.ndarray]:
        found = []
        for path in sorted(folder.glob("*.mp4")):
            reader = VideoReader(str(path), num_threads=1)
            for clip in clips:
                frames = torch.from_numpy(reader.get_batch(clip).asnumpy())
                found.append(frames.permute(0, 3, 1, 2).numpy())
        return found

    return read


def audio_ours(folder: Path) -> Read:
    """Clean views of the modality."""
    from multissl.modalities.audio.adapter import Audio

    modality = Audio(Audio.Config(frames=496, local_frames=96, mean=MEAN, std=STD))
    paths, rng = sorted(folder.glob("*.flac")), RowRandom((0,), 0, files.SOUNDS, files.SOUNDS)

    def read() -> list[np.ndarray]:
        raw = modality.collate([Sample(path, i) for i, path in enumerate(paths)], {"audio": CLEAN}, rng)
        return [modality.views(raw, {"audio": CLEAN}, rng)[0].x.numpy()]

    return read


def audio_plain(folder: Path) -> Read:
    """A sound at a time."""
    soundfile = require("soundfile")
    torchaudio = require("torchaudio")

    resample = torchaudio.transforms.Resample(44_100, 16_000)
    length = 400 + 495 * 160

    def read() -> list[np.ndarray]:
        found = []
        for path in sorted(folder.glob("*.flac")):
            wave, _ = soundfile.read(path, dtype="float32", always_2d=True)
            wave = resample(torch.from_numpy(wave).mean(1))
            start = (len(wave) - length + 1) // 2
            wave = wave[start : start + length]
            mel = torchaudio.compliance.kaldi.fbank(
                (wave - wave.mean())[None], htk_compat=True, sample_frequency=16_000, use_energy=False,
                window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10,
            )  # fmt: skip
            found.append((mel - MEAN) / (2 * STD))
        return [torch.stack(found)[:, None].numpy()]

    return read


def text_ours(folder: Path) -> Read:
    """Read and tokenized as the modality does it when it opens a split."""
    from multissl.modalities.text.files import read_texts
    from multissl.modalities.text.tokenizer import load_tokenizer

    words = load_tokenizer(str(folder / "tokenizer.json"))

    def read() -> list[np.ndarray]:
        texts = read_texts(str(folder / "texts.jsonl"), "all").texts
        return [part for tokens in words.encode([t for t in texts if isinstance(t, str)]) for part in tokens]

    return read


def text_plain(folder: Path) -> Read:
    """A fast tokenizer on lists of texts."""
    import tokenizers
    import transformers

    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)

    def read() -> list[np.ndarray]:
        with (folder / "texts.jsonl").open() as file:
            texts = [json.loads(line)["text"] for line in file]
        found = []
        for first in range(0, len(texts), 64):
            batch = fast(texts[first : first + 64], add_special_tokens=False)
            for i, ids in enumerate(batch["input_ids"]):
                words = np.array(batch.word_ids(i))
                starts = np.concatenate([[True], words[1:] != words[:-1]])
                found += [np.array(ids, dtype=np.int32), starts]
        return found

    return read


def rows_of(epochs: int) -> list[np.ndarray]:
    """The order of the rows in whole batches."""
    count = TRAIN // BATCH * BATCH
    return [np.random.default_rng(i).permutation(TRAIN)[:count].reshape(-1, BATCH) for i in range(epochs)]


def table_ours(folder: Path, csv: bool, epochs: int) -> Read:
    """The modality, built and asked for clean batches; its training rows are eight of every ten."""
    from multissl.modalities.tabular.adapter import Tabular

    config, order = Tabular.Config(data=str(folder / "rows.csv")), rows_of(epochs)
    kept = None if csv else Tabular(config)

    def read() -> list[np.ndarray]:
        modality = kept or Tabular(config)
        data = modality.dataset("train")
        found = [modality.bank().numpy()]
        for batch in (batch for epoch in order for batch in epoch):
            raw = modality.collate(
                [data[i] for i in batch.tolist()], {"tabular": CLEAN}, RowRandom((0,), 0, 1, 1)
            )
            found.append(raw["rows"].numpy())
        return found

    return read


def table_plain(folder: Path, csv: bool, epochs: int) -> Read:
    """pandas' reader, the same scaling by column, rows by position."""
    pandas = require("pandas")

    order = rows_of(epochs)
    kept = None if csv else _scaled(pandas.read_csv(folder / "rows.csv"))

    def read() -> list[np.ndarray]:
        frame = _scaled(pandas.read_csv(folder / "rows.csv")) if kept is None else kept
        found = [frame.to_numpy()]
        for batch in (batch for epoch in order for batch in epoch):
            found.append(torch.stack([torch.from_numpy(frame.iloc[i].to_numpy()) for i in batch]).numpy())
        return found

    return read


def _scaled(frame: Any) -> Any:
    """Numbers as normal scores by 257 quantiles of the training rows, categories numbered, missing flags beside."""
    pandas = require("pandas")

    train = np.flatnonzero(np.arange(len(frame)) % 10 > 1)
    grid, columns = np.linspace(0, 1, 257), {}
    for name in frame.columns.drop("target"):
        missing = frame[name].isna().to_numpy()
        if frame[name].dtype.kind == "f":
            values = frame[name].to_numpy()
            knots = np.quantile(values[train][~missing[train]], grid)
            values = np.where(missing, 0, values)
            rank = 0.5 * (np.interp(values, knots, grid) - np.interp(-values, -knots[::-1], -grid[::-1]))
            scores = torch.special.ndtri(torch.from_numpy(rank.clip(1 / 514, 1 - 1 / 514))).numpy()
            columns[name] = np.where(missing, 0, scores)
            if missing[train].any():
                columns[f"{name} is missing"] = missing
        else:
            words = frame[name].fillna("(missing)")
            levels = sorted(words.iloc[train].unique())
            columns[name] = pandas.Categorical(words, categories=levels).codes + 1
    return pandas.DataFrame(columns).astype(np.float32).iloc[train]


def frames_ours(folder: Path) -> Read:
    """What `gym:ALE/Pong-v5` makes."""
    from multissl.modalities.rl.envs import rollout

    def read() -> list[np.ndarray]:
        made = rollout.__wrapped__("ALE/Pong-v5", EPISODES, STEPS, 0, 84, 1)
        return [made.frames, made.actions]

    return read


def frames_plain(folder: Path) -> Read:
    """Step, average, append."""
    ale_py = require("ale_py")
    gymnasium = require("gymnasium")

    from multissl.modalities.rl.actions import policy

    gymnasium.register_envs(ale_py)

    def read() -> list[np.ndarray]:
        env: Any = gymnasium.make("ALE/Pong-v5", obs_type="grayscale")
        frames, states, actions = [], [], []
        for episode in range(EPISODES):
            rng = np.random.default_rng(np.random.SeedSequence((0, episode)))
            seen, _ = env.reset(seed=int(rng.integers(2**31)))
            for action in policy(rng, int(env.action_space.n), STEPS):
                picture = torch.from_numpy(seen).float()[None, None]
                small = torch.nn.functional.interpolate(picture, (84, 84), mode="area")
                frames.append(small[0, 0].round().byte().numpy())
                memory = env.unwrapped.ale.getRAM()[[49, 54, 51, 50]].astype(np.float32)
                states.append(memory)
                actions.append(action)
                seen, _, terminated, truncated, _ = env.step(int(action))
                if terminated or truncated:
                    break
        env.close()
        np.stack(states)  # ours tells besides which of them mean something
        return [np.stack(frames), np.asarray(actions)]

    return read


class Pair(NamedTuple):
    """Two readers of the same files."""

    unit: str
    samples: int
    make: Callable[[Path], None]
    ours: Callable[[Path], Read]
    plain: Callable[[Path], Read]


def table(samples: int, csv: bool, epochs: int) -> Pair:
    """A pair for the csv, the batches, or both."""
    both = [lambda folder, f=f: f(folder, csv, epochs) for f in (table_ours, table_plain)]
    return Pair("rows", samples, files.make_table, *both)


def clips(count: int) -> Pair:
    """A pair for one or two clips of a video."""
    both = [lambda folder, f=f: f(folder, CLIPS[:count]) for f in (clips_ours, clips_plain)]
    return Pair("clips", count * files.VIDEOS, files.make_videos, *both)


EPOCH = TRAIN // BATCH * BATCH
PAIRS = {
    "video": clips(2),
    "video, one clip": clips(1),
    "audio": Pair("sounds", files.SOUNDS, files.make_sounds, audio_ours, audio_plain),
    "text": Pair("texts", files.TEXTS, files.make_texts, text_ours, text_plain),
    "tabular": table(EPOCHS * EPOCH, True, EPOCHS),
    "tabular, csv": table(6000, True, 0),
    "tabular, batches": table(EPOCH, False, 1),
    "rl": Pair("frames", EPISODES * STEPS, files.nothing, frames_ours, frames_plain),
}


def serve(name: str, side: str, folder: Path, pipe: Connection) -> None:
    """The arrays first, then the processor time of reading them whenever asked for."""
    warnings.simplefilter("ignore")  # of libraries
    torch.set_num_threads(1)
    read = getattr(PAIRS[name], side)(folder)
    pipe.send(read())
    while pipe.recv():
        start = time.process_time()
        read()
        pipe.send(time.process_time() - start)


def compare(name: str, ours: list[np.ndarray], plain: list[np.ndarray]) -> None:
    """Stop where the two sides do not give the same."""
    if len(ours) != len(plain):
        raise SystemExit(f"{name}: {len(ours)} arrays and {len(plain)}")
    for a, b in zip(ours, plain, strict=True):
        if a.shape != b.shape or not np.allclose(a, b, rtol=0, atol=1e-5, equal_nan=True):
            raise SystemExit(f"{name}: the two sides differ, {a.shape} and {b.shape}")


def measure(name: str, folder: Path, rounds: int) -> str:
    """A line of the table."""
    pair = PAIRS[name]
    pair.make(folder)
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    taken: dict[str, list[float]] = {"ours": [], "plain": []}
    for side in taken:
        pipes[side], far = context.Pipe()
        context.Process(target=serve, args=(name, side, folder, far), daemon=True).start()
    compare(name, *(pipes[side].recv() for side in taken))
    for _ in range(rounds):
        for side, pipe in pipes.items():
            pipe.send(True)
            taken[side].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    ours, plain = (pair.samples / statistics.median(taken[side]) for side in ("ours", "plain"))
    ratios = [b / a for a, b in zip(*taken.values(), strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return (
        f"{name:<18} {ours:10,.0f} {plain:10,.0f} {pair.unit:<8} {statistics.median(ratios):5.2f}   {spread}"
    )


def waiting(name: str, steps: int, workers: int, folder: Path) -> str:
    """The share of waiting in a short run of a modality's default recipe, its first steps left out."""
    from multissl import catalogue
    from multissl.run import train as run
    from multissl.run.folder import RunFolder

    made = catalogue.find(name)().replace(steps=steps, evals={}, loggers={}, log_every=max(steps // 6, 1))
    made.data.workers = workers
    run.train(made, folder)
    lines = [x for x in RunFolder(folder).read_metrics() if x["kind"] == "train"][1:]
    share, rate = (statistics.median(x[key] for x in lines) for key in ("waiting_percent", "samples_per_s"))
    workers = made.data.num_workers(1)
    return f"{name:<8} {share:5.1f} %  {rate:8.0f} samples/s  {workers} workers"


def main() -> None:
    """Print a line a pair, or a line a recipe."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--only", nargs="+", default=[], help="first words of pairs, or modalities with --waiting"
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--waiting", type=int, default=0, metavar="STEPS")
    options.add_argument("--workers", type=int, default=-1, help="of runs with --waiting")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.waiting:
            print("recipe   waiting for data")
            names = ["image_text" if n == "paired" else n for n in registry.names("modalities")]
            for name in args.only or names:
                print(waiting(name, args.waiting, args.workers, Path(folder) / name), flush=True)
            return
        print("samples/s per core       ours      plain           ratio   of single rounds")
        for name in PAIRS:
            if not args.only or name.split(",")[0] in args.only:
                (Path(folder) / name).mkdir()
                print(measure(name, Path(folder) / name, args.rounds), flush=True)


if __name__ == "__main__":
    main()
