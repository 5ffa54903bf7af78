"""The benchmarks run from a clone and say what they measured. No figure is asserted: the machines of CI are noisy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_losses_and_evaluation_run_from_the_clone(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_metric_learning", reason="the test extra is not installed")
    command = [sys.executable, "-m", "benchmarks", "losses", "--quick", "--sizes", "64", "--only", "ms +"]
    command += ["--json", str(tmp_path / "rows.json"), "--csv", str(tmp_path / "rows.csv")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "DMLCORE_PLUGINS": ""})
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["rival"] for row in rows} == {"products", "fused", "plain", "pml"}
    assert all(row["cpu_seconds"] > 0 and row["N"] == 64 and row["commit"] is not None and row["level"] for row in rows)
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == len(rows) + 1


def test_committed_results_name_their_machine() -> None:
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.csv")):
        header, first = file.read_text().splitlines()[:2]
        row = dict(zip(header.split(","), first.split(","), strict=True))
        assert row["device"] and row["torch"] and row["commit"], file.name
