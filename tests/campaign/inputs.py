"""Malformed inputs for every reader, through the command that reads them: one clear line, or it works."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import malformed
from .bench import Bench, write_features
from .commands import BY_NAME, EVAL, must
from .invariants import unfinished, wrong
from .trials import Failure, Part

EACH = 1000
SECONDS = 30.0
MEMORY = 32 << 30  # bytes of address space: a file that promises too much must not take the machine with it
BASE = ["--steps", "1", "--eval-every", "1", "--compress", "0", "--embedding-dim", "4", "--out", "new", "--plugins", "ms"]


@dataclass(frozen=True, eq=False)
class Reader:
    """A reader of files.

    Attributes:
        name: in keys of trials.
        file: that is malformed, below the trial's folder.
        words: of the command that reads it.
        generate: the generator, given draws and the folder with the whole file.
    """

    name: str
    file: str
    words: list[str]
    generate: Callable[[np.random.Generator, Path], malformed.Malformed]


def _splits(draws: np.random.Generator, folder: Path) -> malformed.Malformed:
    return malformed.splits(draws, json.loads((folder / "splits.json").read_text()))


def _pickles(draws: np.random.Generator, folder: Path) -> malformed.Malformed:
    names = [str(label) for label in range(12)]
    split = {"train": names[:6], "test": names[6:], "fid": 1.5, "split_train": names[:4], "split_val": names[4:6]}
    supports = {2: [{name: [f"{6 * int(name)}", f"{6 * int(name) + 1}"] for name in names[6:]}]}
    return malformed.pickles(draws, {1: {**split, "test_episodes": supports}, 2: {**split, "fid": 2.5}})


def _checkpoints(draws: np.random.Generator, folder: Path) -> malformed.Malformed:
    from dmlcore.training import checkpoints

    return malformed.checkpoints(draws, checkpoints.load(folder / "run" / "checkpoints", "best"))


def _alone(generator: Callable[[np.random.Generator], malformed.Malformed]) -> Callable[..., malformed.Malformed]:
    return lambda draws, folder: generator(draws)


READERS = [
    Reader("npz", "bad.npz", ["train", "--data", "bad.npz", *BASE], _alone(malformed.npz)),
    Reader("csv", "bad.csv", ["train", "--data", "bad.csv", *BASE, "--image-size", "8"], _alone(malformed.csv)),
    Reader("images", "pics/0/bad.png", ["train", "--data", "pics", *BASE, "--image-size", "8"], _alone(malformed.image)),
    Reader("toml", "bad.toml", ["train", "--config", "bad.toml", "--out", "new"], _alone(malformed.toml)),
    Reader("splits", "splits.json", ["train", "--splits", "splits.json", *BASE], _splits),
    Reader("splits-shown", "splits.json", ["splits", "show", "splits.json"], _splits),
    Reader("pickles", "bad.pkl", ["splits", "import", "bad.pkl", "--data", "x.npz", "--out", "new.json"], _pickles),
    Reader("checkpoints", "run/checkpoints/best.pt", EVAL, _checkpoints),
    Reader("queries", "bad.npz", ["embed", "run", "--data", "bad.npz", "--out", "new.npz"], _alone(malformed.npz)),
]
BY_KEY = {reader.name: reader for reader in READERS}


def _place(bench: Bench) -> Path:
    """A folder with a run, features, pictures and splits, all whole."""
    from ood_files import make_splits

    place = bench.place(BY_NAME["eval"].template(bench))
    for label, number in itertools.product(range(8), range(4)):
        path = place / "pics" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng([label, number]).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    write_features(place / "splits.npz", classes=24, samples=8)
    make_splits(place / "splits.json", "splits.npz")
    return place


@cache
def template(bench: Bench) -> Path:
    """The folder of `_place`, as trials copy it."""
    path = bench.folder / "templates" / "inputs"
    if not path.exists():
        shutil.copytree(_place(bench), path)
    return path


def keys(bench: Bench) -> list[str]:
    """`inputs/READER/NUMBER`."""
    return [f"inputs/{reader.name}/{number}" for number in range(EACH) for reader in READERS]


def run(bench: Bench, key: str) -> Failure | None:
    """One malformed file, read."""
    reader = BY_KEY[key.split("/")[1]]
    name, content = next(reader.generate(bench.draws(key), template(bench)))
    return read(bench, reader.words, {reader.file: content}, name)


def read(bench: Bench, words: list[str], files: dict[str, bytes], name: str, **further: Any) -> Failure | None:
    """Run a command on files and judge it.

    Args:
        bench: the workplace.
        words: of the command.
        files: contents by name, put over the whole ones.
        name: what is wrong with them.
        further: for `Warm.run`.
    """
    place = bench.place(template(bench))
    for file, content in files.items():
        (place / file).write_bytes(content)
    said = bench.warm.run(words, place, seconds=SECONDS, memory=MEMORY, DML_MAX_STEPS="1", **further)
    text = wrong(said)
    if (place / malformed.CANARY).exists():
        return Failure(f"{name}: code of the file was run")
    if not text and (leftovers := unfinished(place)):
        text = f"unfinished files stay: {', '.join(leftovers[:3])}"
    return Failure(f"{name[:200].encode('unicode_escape').decode()}: {text}") if text else None


def check_whole(bench: Bench) -> None:
    """Every reader's command works on the whole files; otherwise the malformed ones show nothing."""
    for reader in READERS:
        if (template(bench) / reader.file).exists():
            must(bench.warm.run(reader.words, bench.place(template(bench)), DML_MAX_STEPS="1"))


PART = Part("inputs", keys, run, share=2.0)
