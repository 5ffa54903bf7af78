"""The scripts of `examples/` as a reader runs them: processes of their own, with the libraries they are about."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = ["accelerate_loop.py", "huggingface_trainer.py", "lightning_loop.py", "sentence_transformers_loop.py"]


def run(script: str, folder: Path, *flags: str) -> tuple[int, float, float, float]:
    """Steps, last loss, and MAP@R of held-out classes before and after."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1"}  # nothing is downloaded
    command = [sys.executable, str(EXAMPLES / script), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=variables, timeout=300)
    assert done.returncode == 0, done.stderr
    said = re.fullmatch(r"(\d+) steps, last loss (\S+); MAP@R of held-out classes (\S+) -> (\S+)", done.stdout.splitlines()[-1])
    assert said, done.stdout
    assert not list(folder.glob("*/")), "an example leaves folders behind"
    return int(said[1]), float(said[2]), float(said[3]), float(said[4])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Features of 24 classes that differ in a few directions, as a text model may give."""
    generator = np.random.default_rng(3)
    y = np.repeat([f"intent {number}" for number in range(24)], 8)
    centres = np.repeat(generator.normal(size=(24, 6)), 8, axis=0) @ generator.normal(size=(6, 48))
    np.savez(tmp_path / "table.npz", x=(centres + 2.5 * generator.normal(size=(192, 48))).astype(np.float32), y=y)
    return tmp_path / "table.npz"


def test_every_script_is_run_and_short() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == {*SCRIPTS, "feature_table.py"}
    assert all(len((EXAMPLES / name).read_text().splitlines()) < 90 for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_learns_in_bfloat16(script: str, tmp_path: Path) -> None:
    steps, loss, before, after = run(script, tmp_path, "--steps", "40", "--bf16")
    assert steps == 40 and np.isfinite(loss) and after > before + 0.03


@pytest.mark.slow
def test_lightning_on_two_processes_is_one(tmp_path: Path) -> None:
    """The same batches in two halves give the same losses and the same model."""
    alone, both = (run("lightning_loop.py", tmp_path, "--steps", "20", "--processes", n) for n in ("1", "2"))
    assert both == pytest.approx(alone, abs=2e-3), (alone, both)
    assert alone[3] > alone[2] + 0.03


def test_a_table_of_text_features(tmp_path: Path, table: Path) -> None:
    steps, loss, before, after = run("sentence_transformers_loop.py", tmp_path, "--steps", "60", "--data", str(table))
    assert steps == 60 and np.isfinite(loss) and after > before + 0.03
