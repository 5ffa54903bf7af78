"""Kill -9 of a random process of a training of two at a random time, and what the next start of one or two makes of it."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from .bench import Bench, write_features
from .commands import must
from .invariants import DONE, FAILED, records, unfinished, wrong
from .process import SECONDS, Said, environment, run_real
from .trials import Failure, Part

KILLS = 12
LINE = ["train", "--data", "x.npz", "--plugins", "ms", "--steps", "40", "--eval-every", "5", "--compress", "0", "--warmup", "1"]
LINE += ["--embedding-dim", "4", "--model", "mlp", "--mlp.hidden", "8", "--learning-rate", "0.01", "--out", "run"]
LINE += ["--optimizer", "sgd", "--device", "cpu", "--timeout", "30s", "--no-report"]  # Adam blows rounding up
LATE = 3 * SECONDS  # for several processes that share this machine
ALIKE = 1e-3
"""Relative difference of a number of the records. More processes add up in another order, and rounding grows with the steps."""


@cache
def _undisturbed(bench: Bench) -> tuple[list[Any], float]:
    """The records of one process, and how long two take."""
    place = bench.place()
    write_features(place / "x.npz")
    must(run_real(LINE, place))
    expected = records(place / "run/metrics.jsonl")
    place = bench.place()
    write_features(place / "x.npz")
    began = time.monotonic()
    must(run_real([*LINE, "--processes", "2"], place, seconds=LATE))
    return expected, time.monotonic() - began


def keys(bench: Bench) -> list[str]:
    """`ranks/NUMBER`."""
    return [f"ranks/{number}" for number in range(KILLS)]


def run(bench: Bench, key: str) -> Failure | None:
    """A process killed at a random time after its start, then the next start."""
    expected, whole = _undisturbed(bench)
    draws = bench.draws(key)
    rank, after, again = int(draws.integers(2)), whole * float(draws.uniform(0.3, 1.0)), int(draws.integers(1, 3))
    place = bench.place()
    write_features(place / "x.npz")
    said = _killed([*LINE, "--processes", "2"], place, rank, after)
    where = f"process {rank} killed after {after:.2f} of {whole:.2f} s"
    if said.is_late or "Traceback" in said.err or said.status not in (DONE, FAILED, 128 + signal.SIGKILL):
        return Failure(f"{where}: status {said.status}{', late' if said.is_late else ''}: {said.err.strip()[-200:]!r}")
    if not (place / "run/result.json").exists():
        words = ["train", "--resume", "run"] if (place / "run/config.toml").exists() else LINE
        following = run_real([*words, "--processes", str(again)], place, seconds=LATE)
        if text := wrong(following, (DONE,)):
            return Failure(f"{where}, then {again} processes: {text}", following.status != DONE)
    if text := _difference(records(place / "run/metrics.jsonl"), expected):
        return Failure(f"{where}, then {again} processes: {text}", is_lost=True)
    if leftovers := unfinished(place):
        return Failure(f"{where}: unfinished files stay: {', '.join(leftovers[:3])}")
    return None


def _killed(words: list[str], place: Path, rank: int, after: float) -> Said:
    from launched import processes_of

    with subprocess.Popen(
        [sys.executable, "-m", "dmlcore", *words],
        cwd=place,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError, IndexError):  # it has ended meanwhile, or was not started yet
                os.kill(processes_of(process.pid)[rank], signal.SIGKILL)
            try:
                out, err = process.communicate(timeout=LATE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                return Said(process.returncode, out.decode(), err.decode(), is_late=True)
    return Said(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


def _difference(actual: Any, expected: Any, where: str = "") -> str:
    """The first place where records differ by more than rounding, or an empty text."""
    if isinstance(expected, dict) and isinstance(actual, dict) and actual.keys() == expected.keys():
        return next((text for key in expected if (text := _difference(actual[key], expected[key], f"{where}{key}."))), "")
    if isinstance(expected, list) and isinstance(actual, list) and len(actual) == len(expected):
        pairs = enumerate(zip(actual, expected, strict=True))
        return next((text for index, pair in pairs if (text := _difference(*pair, f"{where}{index}."))), "")
    if isinstance(expected, float) and isinstance(actual, float):
        is_same = math.isclose(actual, expected, rel_tol=ALIKE, abs_tol=ALIKE) or (actual != actual and expected != expected)
    else:
        is_same = actual == expected
    return "" if is_same else f"{where[:-1] or 'the records'} is {str(actual)[:60]} instead of {str(expected)[:60]}"


def _why_not(bench: Bench) -> str:
    import torch

    if not Path("/proc").is_dir():
        return "processes are found by /proc, which is not here"
    return "" if torch.distributed.is_available() else "this torch has no torch.distributed"


PART = Part("ranks", keys, run, why_not=_why_not)
