"""`python -m benchmarks scale`: a model in use on a million rows: embed, index, search and evaluate, each as a process of its
own, with its time and its largest memory. The table is in docs/guide/scale.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.files import write_atomically

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "scale.json"
PAGE = ROOT / "docs" / "guide" / "scale.md"
COUNT, DIM, PER_CLASS = 1_000_000, 128, 10
QUERIES = 1000
EVALUATED = 10  # one in so many: the exact evaluator compares all with all
SPREAD = 0.8  # of the samples of a class around its centre, whose numbers have deviation 1


def write_rows(folder: Path, count: int) -> None:
    """`rows.npy` of so many rows, and `labelled.npz` of a part of them with their classes; few rows are in memory at a time."""
    generator = np.random.default_rng(0)
    rows = np.lib.format.open_memmap(folder / "rows.npy", mode="w+", dtype=np.float32, shape=(count, DIM))
    for start in range(0, count, 100_000):
        size = min(100_000, count - start)
        centres = generator.normal(size=(size // PER_CLASS, DIM)).astype(np.float32).repeat(PER_CLASS, axis=0)
        rows[start : start + size] = centres + SPREAD * generator.normal(size=(size, DIM)).astype(np.float32)
    rows.flush()
    part = count // EVALUATED
    np.savez(folder / "labelled.npz", x=np.asarray(rows[:part]), y=np.arange(part) // PER_CLASS)
    np.savez(folder / "few.npz", x=np.asarray(rows[:2000]), y=np.arange(2000) // PER_CLASS)
    np.save(folder / "queries.npy", np.asarray(rows[:: max(count // QUERIES, 1)][:QUERIES]))


def measured(folder: Path, *words: str) -> tuple[dict[str, float], str]:
    """A command's seconds, seconds of processor time and largest memory in megabytes, and what it printed."""
    began = time.perf_counter()
    with open(folder / "out.txt", "w+") as out:
        command = [sys.executable, "-m", "dmlcore", *words, "--json"]
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        out.seek(0)
        text = out.read()
    if process.returncode:
        raise SystemExit(f"dmlcore {' '.join(words)} ended with {process.returncode}")
    cost = {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "megabytes": usage.ru_maxrss / 1024}
    return cost, text


def run(count: int, tell: Any) -> dict[str, Any]:
    """Each command once."""
    commands = {
        "train": ("train", "--data", "few.npz", "--plugins", "ms", "--steps", "1", "--out", "run"),
        "embed": ("embed", "run", "rows.npy", "--out", "embeddings.npy"),
        "index": ("index", "run", "embeddings.npy", "--out", "index"),
        "search": ("search", "index", "queries.npy", "--k", "10", "--threshold", "none"),
        "eval": ("eval", "run", "--data", "labelled.npz"),
    }
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder, count)
        for which, words in commands.items():
            cost, text = measured(folder, *words)
            if which == "index":
                about = json.loads(text)
                cost |= {
                    "kind": about["kind"],
                    "recall": about["measures"]["recall@10"],
                    "query": about["measures"]["milliseconds"],
                }
            rows[which] = cost
            tell(f"{which}: {cost}")
    return {"count": count, "evaluated": count // EVALUATED, "cores": os.cpu_count(), "rows": rows}


def page(results: dict[str, Any]) -> str:
    """The table, between its markers."""
    index = results["rows"]["index"]
    texts = {
        "embed": f"{results['count']:,} rows of {DIM} numbers to `.npy`",
        "index": f"of them: {index['kind']}, recall@10 {index['recall']:.3f} at {index['query']:.2f} ms a query",
        "search": f"{min(QUERIES, results['count']):,} queries",
        "eval": f"{results['evaluated']:,} rows, exactly",
    }
    lines = ["| command | what | s | CPU s | GB |", "|---" * 5 + "|"]
    for which, text in texts.items():
        row = results["rows"][which]
        lines.append(f"| `{which}` | {text} | {row['seconds']:.0f} | {row['cpu']:.0f} | {row['megabytes'] / 1000:.1f} |")
    return "\n".join(lines)


def main(only_page: bool, count: int = COUNT) -> None:
    """Measure, and fill the page."""
    if not only_page:
        write_atomically(RESULTS, (json.dumps(run(count, print), indent=1) + "\n").encode())
    head, _, rest = PAGE.read_text().partition("<!-- results -->\n")
    text = page(json.loads(RESULTS.read_text()))
    PAGE.write_text(f"{head}<!-- results -->\n{text}\n<!-- end -->{rest.partition('<!-- end -->')[2]}")
    print(PAGE)
