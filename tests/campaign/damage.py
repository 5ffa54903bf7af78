"""Flipped bits and cut ends of every file that dmlcore writes: read again it gives the same, or one clear line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .bench import Bench
from .commands import BY_NAME, EMBED, EVAL, FEWSHOT, OOD, TRAIN, must, run_state
from .invariants import FAILED, MISTAKE, difference, timeless, wrong
from .process import ROOT, Said, Warm
from .trials import Failure, Part

FLIPS, CUTS = 60, 20  # of each artefact
KERNEL_FLIPS, KERNEL_CUTS = 6, 3  # a damaged kernel is compiled again, which takes seconds


@dataclass(frozen=True, eq=False)
class Artefact:
    """A kind of file that dmlcore writes, and how it is read again.

    Attributes:
        name: in keys of trials.
        file: pattern below the trial's folder; the largest match is damaged.
        template: the command whose folder holds it, with `further` commands run in it.
        words: of the command that reads it.
        state: what the reader makes of it, given the folder and what it said.
        further: commands that make the file.
        prepare: puts more into the folder before these.
        variables: of the environment of all commands.
    """

    name: str
    file: str
    template: str
    words: list[str]
    state: Callable[[Path, Said], Any]
    further: tuple[tuple[str, ...], ...] = ()
    prepare: Callable[[Path], None] = lambda folder: None
    variables: dict[str, str] = field(default_factory=dict)


def _out(folder: Path, said: Said) -> Any:
    try:
        return timeless(json.loads(said.out))
    except ValueError:
        return said.out


def _toy(folder: Path) -> None:
    """A loss whose kernel is compiled when it is first used."""
    toy = ROOT / "tests" / "toy_loss"
    header = (toy / "toy.h").read_text().replace("toy_functors", "toy_damaged_functors").replace('"toy"', '"toy_damaged"')
    (folder / "toy_damaged.h").write_text(header)
    module = (toy / "toy.py").read_text().replace('FunctorCall("toy"', 'FunctorCall("toy_damaged"')
    module = module.replace('    name = "toy"\n', '    name = "toy"\n    header = "toy_damaged.h"\n')
    (folder / "toy.py").write_text(module)


def _resumed(folder: Path, said: Said) -> Any:
    return run_state(folder, said)


def _fused(folder: Path, said: Said) -> Any:
    return {**run_state(folder, said), "is_fused": "(fused)" in said.err}


def _grid(folder: Path, said: Said) -> Any:
    return BY_NAME["ood"].state(folder, said)


TRAINED = (tuple(TRAIN),)
RESUME = ["train", "--resume", "run"]
FUSED = [*TRAIN[:4], "./toy.py:Toy", *TRAIN[5:-1]]
SPLITS = ("splits", "ood", "--data", "x.npz", "--out", "built.json", "--model", "features")
ARTEFACTS = [
    Artefact("best", "run/checkpoints/best.pt", "eval", EVAL, _out),
    Artefact("last", "run/checkpoints/last.pt", "resume", RESUME, _resumed),
    Artefact("previous", "run/checkpoints/previous.pt", "resume", [*RESUME, "--checkpoint", "previous"], _resumed),
    Artefact("best-resumed", "run/checkpoints/best.pt", "resume", RESUME, _resumed),
    Artefact("config", "run/config.toml", "eval", EVAL, _out),
    Artefact("config-resumed", "run/config.toml", "resume", RESUME, _resumed),
    Artefact("metrics", "run/metrics.jsonl", "resume", RESUME, _resumed),
    Artefact("result", "run/result.json", "eval", EVAL, _out),
    Artefact("embeddings", "e.npz", "embed", [*TRAIN[:2], "e.npz", *TRAIN[3:-1], "second", "--json"], _out, ((*EMBED,),)),
    Artefact("splits", "built.json", "embed", ["splits", "show", "built.json", "--json"], _out, (SPLITS,)),
    Artefact("cell", "grid/cells/**/*.json", "ood", OOD, _grid, (tuple(OOD),)),
    Artefact("cell-reported", "grid/cells/**/*.json", "ood", ["ood", "report", "grid", "--json"], _out, (tuple(OOD),)),
    Artefact("fewshot-cell", "grid/cells/**/*.json", "fewshot", FEWSHOT, BY_NAME["fewshot"].state, (tuple(FEWSHOT),)),
    Artefact(
        "fewshot-reported", "grid/cells/**/*.json", "fewshot", ["fewshot", "report", "grid", "--json"], _out, (tuple(FEWSHOT),)
    ),
    *(
        Artefact(name, file, "train", [*FUSED, "run"], _fused, ((*FUSED, "first"),), _toy, {"DML_CACHE": "cache"})
        for name, file in (("kernel", "cache/kernels/toy*.so"), ("kernel-facts", "cache/kernels/toy*.json"))
    ),
]
BY_KEY = {artefact.name: artefact for artefact in ARTEFACTS}


@cache
def _prepared(bench: Bench, artefact: Artefact) -> tuple[Path, Any]:
    """A folder with the artefact, and what reading it gives."""
    template = bench.folder / "templates" / f"damage-{artefact.name}"
    if not template.exists():
        place = bench.place(BY_NAME[artefact.template].template(bench))
        artefact.prepare(place)
        for words in artefact.further:
            must(bench.warm.run(words, place, **artefact.variables))
        shutil.copytree(place, template)
    place = bench.place(template)
    return template, artefact.state(place, _read(bench.warm, artefact, place))


def _read(warm: Warm, artefact: Artefact, place: Path) -> Said:
    return must(warm.run(artefact.words, place, **artefact.variables))


def _counts(artefact: Artefact) -> tuple[tuple[str, int], ...]:
    if artefact.name.startswith("kernel"):
        return ("flip", KERNEL_FLIPS), ("cut", KERNEL_CUTS)
    return ("flip", FLIPS), ("cut", CUTS)


def keys(bench: Bench) -> list[str]:
    """`damage/ARTEFACT/flip|cut/NUMBER`."""
    return [
        f"damage/{artefact.name}/{kind}/{number}"
        for artefact in ARTEFACTS
        for kind, count in _counts(artefact)
        for number in range(count)
    ]


def run(bench: Bench, key: str) -> Failure | None:
    """One damaged file, read."""
    _, name, kind, _ = key.split("/")
    artefact = BY_KEY[name]
    template, expected = _prepared(bench, artefact)
    place = bench.place(template)
    file = max(place.glob(artefact.file), key=lambda path: (path.stat().st_size, str(path)))
    content, draws = bytearray(file.read_bytes()), bench.draws(key)
    if kind == "flip":
        bit = int(draws.integers(8 * len(content)))
        content[bit // 8] ^= 1 << bit % 8
        what = f"bit {bit % 8} of byte {bit // 8} of {len(content)} flipped"
    else:
        size = int(draws.integers(len(content)))
        what = f"cut from {len(content)} to {size} bytes"
        del content[size:]
    file.write_bytes(content)
    said = bench.warm.run(artefact.words, place, **artefact.variables)
    where = f"{file.relative_to(place)}, {what}: "
    if text := wrong(said, (0, FAILED, MISTAKE)):
        return Failure(where + text)
    if said.status == 0 and (text := difference(artefact.state(place, said), expected)):
        return Failure(f"{where}read as another result: {text}", is_lost=True)
    return None


PART = Part("damage", keys, run)
