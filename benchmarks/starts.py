"""`python -m benchmarks starts`: the first and the second opening of very many image files by sources of several kinds, each in
a process of its own, with its time and its memory. `--against PYTHON` measures another installation too, `--sizes` other
numbers of pictures.
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
from PIL import Image

SIZES = (100_000, 1_000_000)
PER_FOLDER = 500  # pictures in the folder of a class
PER_PRODUCT = 5  # pictures of a class, where the list names products
SOURCES = {"folder": "images", "csv": "list.csv", "cub": ".", "sop": "."}
_LINKED = 100  # files that all pictures are links to: a file may have 65,000 links

_CHILD = """
import ctypes, gc, json, resource, sys, time
import dmlcore.data, dmlcore.data.opening, dmlcore.data.published_images
from dmlcore import plugins

def memory():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status") as file:
        rows = dict(line.split(":", 1) for line in file)
    return {name: 1024 * int(rows[name].split()[0]) for name in ("RssAnon", "RssFile", "VmHWM", "VmRSS")}

plugins.registry("data")
before, began, cpu = memory(), time.perf_counter(), time.process_time()
splits = dmlcore.data.open_data(sys.argv[1], options={"path": sys.argv[2], "memory_mb": 0}, image_size=224)
seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
after = memory()
began = time.perf_counter()
digests = int(splits.record is not None and len(splits.record()) > 0)
print(json.dumps({
    "seconds": seconds, "cpu_seconds": cpu, "record_seconds": time.perf_counter() - began,
    "pictures": sum(len(getattr(splits, part)) for part in ("train", "validation", "test")),
    "held": after["RssAnon"] - before["RssAnon"], "mapped": after["RssFile"] - before["RssFile"],
    "peak": after["VmHWM"] - before["VmRSS"],
}))
"""


def write_pictures(root: Path, count: int) -> None:
    """Folders of so many pictures, which are links to a few, and the lists of each source."""
    names, files = [], []
    (root / "linked").mkdir()
    sources = [root / "linked" / f"{number}.jpg" for number in range(_LINKED)]
    generator = np.random.default_rng(0)
    for number, source in enumerate(sources):
        small = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((160 + number, 120), Image.Resampling.BICUBIC).save(source, quality=85)
    for label in range(count // PER_FOLDER):
        names.append(f"{label + 1:05}.Class_{label}")
        (root / "images" / names[-1]).mkdir(parents=True)
        for number in range(PER_FOLDER):
            files.append(f"{names[-1]}/Class_{label}_{number:04}.jpg")
            os.link(sources[len(files) % _LINKED], root / "images" / files[-1])
    labels = [row // PER_FOLDER for row in range(count)]
    _write(
        root / "list.csv", ["path,label", *(f"images/{file},{names[label]}" for file, label in zip(files, labels, strict=True))]
    )
    _write(root / "classes.txt", [f"{label + 1} {name}" for label, name in enumerate(names)])
    _write(root / "images.txt", [f"{row + 1} {file}" for row, file in enumerate(files)])
    _write(root / "image_class_labels.txt", [f"{row + 1} {label + 1}" for row, label in enumerate(labels)])
    for part, rows in (("train", range(count // 2)), ("test", range(count // 2, count))):
        lines = [f"{row + 1} {row // PER_PRODUCT + 1} 1 images/{files[row]}" for row in rows]
        _write(root / f"Ebay_{part}.txt", ["image_id class_id super_class_id path", *lines])


def _write(file: Path, lines: list[str]) -> None:
    file.write_text("\n".join(lines) + "\n")


def opened(python: str, cache: Path, source: str, path: Path) -> dict[str, Any]:
    """What opening costs in a process of its own."""
    command = [python, "-P", "-c", _CHILD, source, str(path)]
    # the processor's libraries would start threads whose stacks count as memory
    around = {**os.environ, "DML_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=around, check=False)
    if done.returncode:
        raise SystemExit(f"opening {source} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def run(sizes: tuple[int, ...] = SIZES, against: str | None = None, only: str | None = None) -> list[dict[str, Any]]:
    """Rows of each size, source, installation and start.

    Args:
        sizes: numbers of pictures.
        against: interpreter of another installation.
        only: part of a source's name.
    """
    rows = []
    for count in sizes:
        with tempfile.TemporaryDirectory() as name:
            write_pictures(Path(name), count)
            time.sleep(3)  # what was just written to is not trusted
            for rival, python in (("dmlcore", sys.executable), *([("against", against)] if against else [])):
                for source, path in SOURCES.items():
                    if only and only not in source:
                        continue
                    cache = Path(name) / "cache" / rival / source
                    for start in ("first", "second"):
                        row = opened(python, cache, source, Path(name) / path)
                        assert row["pictures"] == count, f"{source} has {row['pictures']} of {count} pictures"
                        rows.append({"case": source, "n": count, "rival": rival, "start": start, **_by_picture(row, count)})
                        print(text(rows[-1]), flush=True)
    return rows


def key_of(row: dict[str, Any]) -> tuple[str, ...]:
    """What a row is about."""
    return tuple(str(row[key]) for key in ("case", "n", "rival", "start"))


def _by_picture(row: dict[str, Any], count: int) -> dict[str, Any]:
    """The figures of a row with bytes for each picture."""
    times = {key: row[key] for key in ("seconds", "cpu_seconds", "record_seconds")}
    return {**times, **{f"{key}_bytes": max(row[key], 0) / count for key in ("held", "mapped", "peak")}}


def text(row: dict[str, Any]) -> str:
    """A row as a line."""
    times = f"{row['seconds']:7.2f} s {row['cpu_seconds']:7.2f} CPU s  record {row['record_seconds']:6.2f} s"
    memory = f"{row['held_bytes']:5.0f} bytes held {row['mapped_bytes']:5.0f} mapped {row['peak_bytes']:5.0f} at most"
    return f"{row['case']:8} {row['n']:9,} {row['rival']:8} {row['start']:6} {times}  {memory}"
