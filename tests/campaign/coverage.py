"""Coverage-guided fuzzing of the readers by atheris, which is optional: each reader in a process of its own, run as a script.

A reader may raise `DmlcoreError`. Anything else, and code that runs, is a failure; the input stays beside the campaign's work.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__:
    from . import inputs
    from .bench import Bench
    from .process import environment
    from .trials import Failure, Part

SECONDS, LEAST = 600.0, 5.0  # for all readers; for each in a sample
_CAUSE = re.compile(r"([A-Za-z_.]+(Error|Exception|Interrupt)\b|ALARM|==\d+== *ERROR)")
SEEDS = 25  # malformed files that a search begins with
READERS = {"npz": "bad.npz", "csv": "bad.csv", "toml": "bad.toml", "splits": "splits.json", "pickles": "bad.pkl"}
READERS |= {"checkpoints": "run/checkpoints/best.pt", "images": "pics/0/bad.png"}


def keys(bench: Bench) -> list[str]:
    """`coverage/READER`."""
    return [f"coverage/{name}" for name in READERS]


def why_not(bench: Bench) -> str:
    """Atheris is in the extra `dev` only."""
    is_there = importlib.util.find_spec("atheris") is not None
    return "" if is_there else "atheris is not installed (pip install 'dmlcore[dev]')"


def run(bench: Bench, key: str) -> Failure | None:
    """One reader, for its share of the time."""
    name = key.split("/")[1]
    reader = inputs.BY_KEY[name]
    folder = bench.folder / "coverage" / name
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number in range(SEEDS):
        generator = reader.generate(bench.draws(f"{key}/{number}"), inputs.template(bench))
        (corpus / f"seed{number}").write_bytes(next(generator)[1][:100_000])
    place = folder / "place"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(inputs.template(bench), place)
    seconds = max(LEAST, (SECONDS if bench.minutes is None else min(SECONDS, 6 * bench.minutes)) / len(READERS))
    options = [f"-max_total_time={int(seconds)}", f"-seed={bench.seed + 1}", f"-artifact_prefix={folder}/", "-timeout=30"]
    command = [
        sys.executable,
        str(Path(__file__)),
        name,
        str(corpus),
        *options,
        "-rss_limit_mb=8000",
        "-max_len=100000",
        "-verbosity=0",
    ]
    done = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True, errors="replace")
    if (place / "canary").exists():
        return Failure(f"code of a file was run; the inputs are in {folder}", is_lost=True)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if _CAUSE.match(line)]
    artefact = next((line.split("written to ")[-1] for line in done.stderr.splitlines() if "written to " in line), str(folder))
    what = lines[0].strip()[:200] if lines else done.stderr.strip()[-200:]
    return Failure(
        f"{what}; the input is {artefact}, `python -P tests/campaign/coverage.py {name} FILE` in {place} reads it again"
    )


def target(name: str) -> Callable[[bytes], Any]:
    """What reads the bytes, in the present folder, which has all other files."""
    from dmlcore.data import SplitFile
    from dmlcore.data.opening import load_table
    from dmlcore.errors import DmlcoreError
    from dmlcore.protocols.shift.pickles import read_pickle
    from dmlcore.training import RunConfig, checkpoints
    from dmlcore.training.sources import Source

    file = Path(READERS[name])
    readers: dict[str, Callable[[], Any]] = {
        "npz": lambda: load_table(str(file)),
        "csv": lambda: load_table(str(file), image_size=8),
        "images": lambda: load_table("pics", image_size=8),
        "toml": lambda: RunConfig.resolve([Source.read(str(file))]),
        "splits": lambda: SplitFile.read(file),
        "pickles": lambda: read_pickle(file),
        "checkpoints": lambda: checkpoints.load(file.parent, file.stem),
    }

    def read(content: bytes) -> None:
        file.write_bytes(content)
        try:
            readers[name]()
        except DmlcoreError:
            return

    return read


def main() -> None:
    """`coverage.py READER CORPUS [libFuzzer's options]`, or a file to repeat."""
    import warnings

    import atheris

    warnings.simplefilter("ignore")
    name, rest = sys.argv[1], sys.argv[2:]
    with atheris.instrument_imports(include=["dmlcore", "dmlcore_plugins"]):
        read = target(name)
    atheris.Setup([sys.argv[0], *rest], read)
    atheris.Fuzz()


if __package__:
    PART = Part("coverage", keys, run, share=1.0, why_not=why_not)
elif __name__ == "__main__":
    main()
