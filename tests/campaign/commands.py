"""The table of commands that are killed, interrupted and denied the disk. A new command adds a row to `COMMANDS`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .bench import Bench, write_features
from .invariants import MISTAKE, error_of, hash_of, read_json, records, timeless
from .process import Fault, Said, Warm

TRAIN = ["train", "--data", "x.npz", "--plugins", "ms", "--steps", "4", "--eval-every", "2", "--compress", "0"]
TRAIN += [
    "--warmup",
    "1",
    "--embedding-dim",
    "4",
    "--model",
    "mlp",
    "--mlp.hidden",
    "8",
    "--learning-rate",
    "0.01",
    "--out",
    "run",
]
SHORT = ["--epochs", "2", "--target-epochs", "2", "--patience", "2", "--episodes", "2", "--episode-patience", "2"]
SHORT += ["--episode-check", "2", "--mlp.hidden", "4", "--model", "mlp", "--embedding-dim", "4", "--replications", "1"]
FEWSHOT = ["fewshot", "--data", "x.npz", "--source-classes", "0-5", "--n", "3", "--k", "2", "--out", "grid", *SHORT]
OOD = ["ood", "run", "--splits", "splits.json", "--config", "ms.toml", "--split", "default,swap1", "--seeds", "1"]
OOD += ["--shots", "2", "--adapt-steps", "2", "--episodes", "1", "--out", "grid"]


@dataclass(frozen=True, eq=False)
class Command:
    """One row.

    Attributes:
        name: in keys of trials.
        words: of the command, which runs in a folder that `prepare` has filled.
        prepare: fills the folder, given the warm process.
        again: the words of the next start, given the folder after the fault.
        state: what is compared with the undisturbed command: everything that the next start leaves, given what it said.
        keeps: files whose content no fault may change, below the folder.
        may_refuse: whether the next start may say that everything is done already.
    """

    name: str
    words: list[str]
    prepare: Callable[[Warm, Path], None]
    again: Callable[[Path], list[str]]
    state: Callable[[Path, Said], Any]
    keeps: list[str] = field(default_factory=lambda: ["x.npz"])
    may_refuse: Callable[[Path], bool] = lambda folder: False

    def template(self, bench: Bench) -> Path:
        """The folder before the command; made once, where trials will lie, since paths are written into files."""
        template = bench.folder / "templates" / self.name
        if not template.exists():
            place = bench.place()
            self.prepare(bench.warm, place)
            shutil.copytree(place, template.with_suffix(".making"), symlinks=True, dirs_exist_ok=True)
            template.with_suffix(".making").rename(template)
        return template


def must(said: Said) -> Said:
    """A command that has to succeed, without any fault, before trials make sense."""
    if said.status != 0:
        raise RuntimeError(f"a command of the campaign fails without any fault: {error_of(said)}")
    return said


def _data(warm: Warm, folder: Path) -> None:
    write_features(folder / "x.npz")


def _stopped(warm: Warm, folder: Path) -> None:
    """A run that was killed while it wrote the record of step 3, behind the checkpoint of step 2."""
    _data(warm, folder)
    log = must(warm.run(TRAIN, folder, logs=True)).operations
    appends = [number for number, entry in enumerate(log, 1) if entry.path.endswith("metrics.jsonl") and entry.name != "rename"]
    steps = [number for number in appends if log[number - 1].name == "open-to-write"]
    shutil.rmtree(folder / "run")
    warm.run(TRAIN, folder, Fault.KILL, steps[-2])  # the last two are the records of step 4 and of its evaluation
    assert (folder / "run" / "checkpoints" / "last.pt").exists(), "the run that is to be resumed has no checkpoint"


def _trained(warm: Warm, folder: Path) -> None:
    _data(warm, folder)
    must(warm.run(TRAIN, folder))


def _grid(warm: Warm, folder: Path) -> None:
    from ood_files import make_features, make_splits

    data = make_features(folder / "x.npz")
    make_splits(folder / "splits.json", str(data))
    text = 'plugins = ["ms"]\nsteps = 2\neval_every = 2\nembedding_dim = 4\ncompress = 0\nclasses_per_batch = 4\n'
    (folder / "ms.toml").write_text(text)


def weights_of(path: Path, parts: tuple[str, ...] = ("step", "model", "ensemble")) -> str:
    """A hash of what a checkpoint holds, or what is wrong with it."""
    from dmlcore.training import checkpoints

    try:
        state = checkpoints.load(path.parent, path.stem)
    except Exception as error:
        return f"unreadable: {type(error).__name__}"
    return hash_of({part: state[part] for part in parts})


def run_state(folder: Path, said: Said) -> dict[str, Any]:
    """A finished run: records, result, weights."""
    run = folder / "run"
    result = read_json(run / "result.json")
    if isinstance(result, dict):
        result.pop("command", None)  # how it was started last
    if isinstance(result, dict) and "data" in result:
        for key in ("name", "notes"):  # as they were typed and drawn, or as the run's folder has them
            result["data"].pop(key, None)
    return {
        "records": records(run / "metrics.jsonl"),
        "result": result,
        "best": weights_of(run / "checkpoints" / "best.pt"),
        "last": weights_of(run / "checkpoints" / "last.pt", ("step", "model", "ensemble", "optimiser", "sampler", "random")),
        "config": (run / "config.toml").read_text(encoding="utf-8") if (run / "config.toml").exists() else "missing",
    }


def _said(folder: Path, said: Said) -> Any:
    return {"status": said.status, "out": said.out}


def arrays_of(path: Path) -> Any:
    """Hashes of the arrays of an .npz file, or what is wrong with it."""
    try:
        with np.load(path) as file:
            return {name: hash_of(file[name]) for name in file.files}
    except Exception as error:
        return f"unreadable: {type(error).__name__}"


def _grid_state(folder: Path, said: Said) -> Any:
    cells = {str(path.relative_to(folder)): read_json(path) for path in sorted((folder / "grid" / "cells").rglob("*.json"))}
    return {"cells": cells, "report": timeless(read_json(folder / "grid" / "report.json"))}


def _resume(folder: Path) -> list[str]:
    return ["train", "--resume", "run"] if (folder / "run" / "config.toml").exists() else TRAIN


def _is_complete(folder: Path) -> bool:
    return (folder / "run" / "result.json").exists()


def _embed_again(folder: Path) -> list[str]:
    return [*EMBED, "--overwrite"] if (folder / "e.npz").exists() else EMBED


EVAL = ["eval", "run", "--json"]
EMBED = ["embed", "run", "--data", "x.npz", "--out", "e.npz"]
RUN_FILES = ["x.npz", *(f"run/{name}" for name in ("config.toml", "metrics.jsonl", "result.json", "checkpoints/best.pt"))]
COMMANDS = [
    Command("train", TRAIN, _data, _resume, run_state, may_refuse=_is_complete),
    Command("resume", ["train", "--resume", "run"], _stopped, _resume, run_state, may_refuse=_is_complete),
    Command("eval", EVAL, _trained, lambda folder: EVAL, _said, RUN_FILES),
    Command("embed", EMBED, _trained, _embed_again, lambda folder, said: arrays_of(folder / "e.npz"), RUN_FILES),
    Command("ood", OOD, _grid, lambda folder: OOD, _grid_state, ["x.npz", "splits.json", "ms.toml"]),
    Command("fewshot", FEWSHOT, _data, lambda folder: FEWSHOT, _grid_state),
]
BY_NAME = {command.name: command for command in COMMANDS}


def refusal_is_right(command: Command, folder: Path, said: Said) -> bool:
    """Whether the next start refused because nothing was left to do."""
    return said.status == MISTAKE and command.may_refuse(folder)
