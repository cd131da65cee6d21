"""`multissl export`: a run in the format of another program, compared with the original before it appears.

Files are written beside their place and read there by the other program in a fresh process; only then do they take
their place. What fails leaves nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from multissl import registry
from multissl.exporting.base import Exporter, Subject
from multissl.exporting.card import card
from multissl.exporting.compare import Differs, compare
from multissl.exporting.push import check_push, push
from multissl.files import make_folder, remove_folder, rename, replace_text
from multissl.inference import stream_of
from multissl.run.folder import RunFolder, located
from multissl.run.model import load

INPUTS = "input.json"
"""What a program in another language has to know of the input."""
NEAR = {"torch": "torch.export", "pt2": "torch.export", "torchscript": "torch.export", "huggingface": "hf",
        "transformers": "hf"}  # fmt: skip
"""What users type for a target that is called otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What an export gave."""

    path: Path
    code: str
    """Lines of Python that define `encode(*arrays)`."""
    difference: float
    """The largest difference of features from the original, relative to the largest feature."""
    address: str = ""
    """Where it lies on a hub, if it was pushed."""


def export(
    run: Path | str,
    to: str,
    out: Path | str,
    stream: str = "",
    push_to: str = "",
    trust: bool = False,
    say: Callable[[str], object] = str,
) -> Exported:
    """Write a run, or `RUN@STEP`, in the format of another program, into a folder that is not there yet.

    The features of the exported model are compared with the run's in a fresh process, at two sizes of batch and, where
    the encoder reads others, two sizes of sample. `push_to` uploads it: hf:USER/NAME. Raises a ValueError with the
    reason where the target cannot hold the encoder, where the two differ, or where something is wrong with a name.
    """
    exporter, place = exporter_of(to), Path(out)
    check_place(place)
    if push_to:
        check_push(push_to)
    model = load(run, trust=trust)
    stream = stream_of(model.modality, stream)
    module = model.module(stream).float()
    subject = Subject(model=model, run=located(run)[0], stream=stream, module=module)
    exporter.check(subject)
    made = write(exporter, subject, place, say)
    if not push_to:
        return made
    say(f"uploading {place}")
    return Exported(path=made.path, code=made.code, difference=made.difference, address=push(push_to, place))


def exporter_of(name: str) -> Exporter:
    """Return the target of a name; raises a ValueError with the nearest one."""
    known = registry.names("exporters")
    if name not in known:
        near = f"; did you mean {NEAR[name]}?" if name in NEAR else registry.suggest(name, known)
        raise ValueError(f"--to {name or 'what'}: no target is called so{near}")
    return registry.resolve(name, "exporters")()


def check_place(place: Path) -> None:
    """Raise a ValueError where a place is there already, or lies in what is no folder."""
    if place.exists():
        raise ValueError(f"--out {place}: is there already; name another folder, or remove it first")
    if not place.name:
        raise ValueError(f"--out {place}: want the name of a folder")


def write(exporter: Exporter, subject: Subject, place: Path, say: Callable[[str], object]) -> Exported:
    """Write, compare, describe, and let the folder take its place."""
    aside = place.with_name(f".{place.name}.part")
    if aside.exists():  # of an export that was ended
        remove_folder(aside)
    make_folder(aside)
    try:
        say(f"writing for {exporter.reads}")
        if subject.module.preparation.free_axes and not subject.reads_other_sizes():
            kind, reads = type(subject.encoder).__name__, subject.module.preparation.reads
            say(f"{kind} reads the one size that it was built for, and so does what is written: {reads}")
        exporter.write(subject, aside)
        say("reading it in a fresh process")
        difference = compare(exporter, subject, aside)
        code = exporter.code(subject, place)
        RunFolder(aside).write_readme(card(exporter, subject, code, difference))
        replace_text(aside / INPUTS, json.dumps(subject.module.describe(), indent=1))
        rename(aside, place)
    except Differs as error:
        raise ValueError(
            f"--to {exporter.name}: {error}; nothing was kept. That is a bug of the export: take another target, and "
            "report it with the run's recipe.json"
        ) from None
    finally:
        if aside.exists():
            remove_folder(aside)
    return Exported(path=place, code=code, difference=difference)
