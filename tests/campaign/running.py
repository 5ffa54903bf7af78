"""Running the campaign: trials in turn, a journal by which an interrupted one goes on, and the figures and table of the end."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .bench import Bench
from .trials import Failure, Part

_SHOWN = 20  # failures of each part in the table; the file has all of them


class Journal:
    """The finished trials of a campaign, a line each.

    Args:
        path: of the file.
        facts: of the campaign; a journal of another seed or commit is begun anew.
        is_fresh: begin anew in any case.
    """

    def __init__(self, path: Path, facts: dict[str, Any], is_fresh: bool) -> None:
        self.path = path
        self.is_continued = False
        self.entries: dict[str, dict[str, Any]] = {}
        if path.exists() and not is_fresh:
            lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
            if lines and lines[0] == facts:
                self.entries = {entry["key"]: entry for entry in lines[1:]}
                self.is_continued = bool(self.entries)
        if not self.is_continued:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(facts) + "\n")

    def add(self, key: str, failure: Failure | None, seconds: float) -> None:
        """Write down a trial."""
        found = {} if failure is None else {"text": failure.text, "is_lost": failure.is_lost}
        self.entries[key] = {"key": key, "seconds": round(seconds, 3), **found}
        with self.path.open("a") as file:
            file.write(json.dumps(self.entries[key]) + "\n")


def run(
    bench: Bench,
    parts: Sequence[Part],
    journal: Journal,
    only: str = "",
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Do the trials that the journal lacks.

    Args:
        bench: the workplace. With minutes, every part gets its share of them and takes its trials in random order.
        parts: of the campaign.
        journal: what is done already.
        only: a part, a key, or the beginning of keys up to a `/`.
        tell: receives lines of progress.

    Returns:
        What `campaign.json` holds.
    """
    chosen = [part for part in parts if not only or only.split("/")[0] == part.name]
    shares = sum(part.share for part in chosen)
    figures: dict[str, Any] = {}
    for part in chosen:
        if reason := part.why_not(bench):
            tell(f"{part.name}: skipped, {reason}")
            figures[part.name] = {"tried": 0, "failed": 0, "lost": 0, "skipped": reason}
            continue
        seconds = None if bench.minutes is None else 60 * bench.minutes * part.share / shares
        figures[part.name] = _run_part(bench, part, journal, only, seconds, tell)
    return {
        "seed": bench.seed,
        "minutes": bench.minutes,
        "only": only or None,
        **versions(),
        "tried": sum(row["tried"] for row in figures.values()),
        "failed": sum(row["failed"] for row in figures.values()),
        "lost": sum(row["lost"] for row in figures.values()),
        "parts": figures,
        "failures": _failures(bench, journal, chosen, only),
    }


def _run_part(
    bench: Bench, part: Part, journal: Journal, only: str, seconds: float | None, tell: Callable[[str], None]
) -> dict[str, Any]:
    began = time.monotonic()
    keys = [key for key in part.keys(bench) if _is_chosen(key, only)]
    if only and not keys and only != part.name:
        keys = [only]  # a trial that the definition no longer lists, or that only a full campaign has
    missing = [key for key in keys if key not in journal.entries]
    if bench.is_sampled:
        missing = [missing[index] for index in np.random.default_rng(bench.seed).permutation(len(missing))]
    tell(
        f"{part.name}: {len(keys)} trials" + (f", {len(keys) - len(missing)} done already" if len(missing) < len(keys) else "")
    )
    last = began
    for number, key in enumerate(missing, 1):
        now = time.monotonic()
        if seconds is not None and now - began > seconds and number > 1:
            break
        failure = attempt(bench, part, key)
        journal.add(key, failure, time.monotonic() - now)
        if failure is not None:
            tell(f"  {'LOST  ' if failure.is_lost else 'FAILED'} {key}: {failure.text}")
        if time.monotonic() - last > 60:
            last = time.monotonic()
            tell(f"  {number} of {len(missing)}, {last - began:.0f} s")
    done = [journal.entries[key] for key in keys if key in journal.entries]
    return {
        "tried": len(done),
        "of": len(keys),
        "failed": sum("text" in entry for entry in done),
        "lost": sum(entry.get("is_lost", False) for entry in done),
        "seconds": round(sum(entry["seconds"] for entry in done)),
    }


def attempt(bench: Bench, part: Part, key: str) -> Failure | None:
    """One trial; an error of the campaign itself is a failure too, so that no trial passes unseen."""
    try:
        return part.run(bench, key)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Failure(f"the trial itself failed: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")


def _is_chosen(key: str, only: str) -> bool:
    return not only or key == only or key.startswith(only.rstrip("/") + "/")


def _failures(bench: Bench, journal: Journal, parts: Iterable[Part], only: str) -> list[dict[str, Any]]:
    names = {part.name for part in parts}
    return [
        {
            "key": key,
            "lost": entry["is_lost"],
            "text": entry["text"],
            "again": f"python -m tests.campaign --seed {bench.seed} --only {key}",
        }
        for key, entry in journal.entries.items()
        if "text" in entry and key.split("/")[0] in names and _is_chosen(key, only)
    ]


def versions() -> dict[str, Any]:
    """Commit, versions and machine of the figures."""
    import torch

    import dmlcore
    from benchmarks.measuring import commit

    return {
        "commit": commit(),
        "dmlcore": dmlcore.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def table(result: dict[str, Any]) -> str:
    """The figures as a table to read, and every failure with the command that repeats it."""
    lines = [f"{'part':<10} {'tried':>7} {'of':>7} {'failed':>7} {'lost':>6} {'seconds':>8}"]
    for name, row in result["parts"].items():
        if "skipped" in row:
            lines.append(f"{name:<10} skipped: {row['skipped']}")
            continue
        lines.append(f"{name:<10} {row['tried']:>7} {row['of']:>7} {row['failed']:>7} {row['lost']:>6} {row['seconds']:>8}")
    lines.append(f"{'all':<10} {result['tried']:>7} {'':>7} {result['failed']:>7} {result['lost']:>6}")
    by_part: dict[str, int] = {}
    for failure in result["failures"]:
        part = failure["key"].split("/")[0]
        by_part[part] = by_part.get(part, 0) + 1
        if by_part[part] <= _SHOWN:
            lines += ["", f"{'LOST' if failure['lost'] else 'FAILED'}: {failure['text']}", f"  {failure['again']}"]
    for part, count in by_part.items():
        if count > _SHOWN:
            lines += ["", f"and {count - _SHOWN} more of {part}, in the file"]
    return "\n".join(lines)


def write(result: dict[str, Any], path: Path) -> None:
    """Write the figures; an interruption leaves the old ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(unfinished, path)


def clear(folder: Path) -> None:
    """Remove what an earlier campaign left, but for its journals."""
    for name in ("trial", "templates", "warm"):
        shutil.rmtree(folder / name, ignore_errors=True)
