"""The benchmarks run from a clone and say what they measured. No figure is asserted: the machines of CI are noisy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import LOSSES

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


def _gradients(page: Path) -> dict[str, list[str]]:
    """First cell to the other cells of the page's table."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    return {first: cells for first, *cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}


def test_gradients_are_written_for_two_losses(tmp_path: Path) -> None:
    pages = []
    for name in ("one.md", "two.md"):
        command = [sys.executable, "-m", "benchmarks", "gradients", "--only", "contrastive", "--page", str(tmp_path / name)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "DMLCORE_PLUGINS": ""})
        assert done.returncode == 0, done.stderr
        pages.append((tmp_path / name).read_text())
    assert pages[0] == pages[1]
    rows = _gradients(tmp_path / "one.md")
    assert {"`contrastive`", "`contrastive` pos_margin = 0.5, neg_margin = 1.4"} <= set(rows)
    assert all("contrastive" in name for name in rows)
    for checked, order, scale, *errors, fused in rows.values():
        assert checked == order == "yes" and scale in ("yes", "by norm") and (fused == "yes" or fused.startswith("no: "))
        single, bfloat, half = (float(gradient) for _, gradient in (cell.split(" / ") for cell in errors))
        assert single < 1e-5 < half < 1e-3 < bfloat < 1e-2  # the rounding of each precision shows, and nothing more


def test_committed_gradients_are_those_of_the_table() -> None:
    rows = _gradients(ROOT / "docs" / "gradients.md")
    expected = {
        " ".join([f"`{case.name}`", ", ".join(f"{key} = {value}" for key, value in case.options.items())]).strip()
        for case in LOSSES
    }
    assert set(rows) == expected, "run `python -m benchmarks gradients`"
    assert not [(name, cell) for name, cells in rows.items() for cell in cells if "FAILS" in cell]
