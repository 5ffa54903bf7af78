"""The benchmarks run from a clone and say what they measured. No figure is asserted: the machines of CI are noisy."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cases import LOSSES

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # last: an installed package stays what is measured

from benchmarks import cases, goals, losses, measuring, report  # noqa: E402


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DMLCORE_PLUGINS": ""}
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_losses_run_from_the_clone_and_go_on(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_metric_learning", reason="the test extra is not installed")
    file, again = tmp_path / "rows.csv", tmp_path / "rows.json"
    tiny = ["losses", "--sizes", "64", "--widths", "16", "--seconds", "0.05", "--csv", str(file), "--only", "ms +"]
    command(*tiny)
    rows = measuring.read(file)
    assert [row["rival"] for row in rows] == ["fused", "plain", "pml"]
    assert math.isclose(float(rows[0]["value"]), float(rows[1]["value"]), rel_tol=1e-4)  # the peer draws proxies of its own
    for row in rows:
        assert row["status"] == "ok" and row["n"] == "64" and row["classes"] == "1000" and row["level"] and row["commit"]
        assert (
            float(row["seconds"]) > 0 and float(row["products_seconds"]) > 0 and row["allocator"] and row["malloc"] == "default"
        )

    measuring.write(rows[1:], file)  # what is missing is measured, and only that
    assert "2 of 3 measurements are done already" in command(*tiny, "--json", str(again)).stdout
    assert [row["rival"] for row in json.loads(again.read_text())] == ["fused"]
    all_rows = measuring.read(file)
    assert all_rows[:2] == rows[1:] and all_rows[2]["rival"] == "fused"


@pytest.mark.slow
def test_evaluation_runs_from_the_clone(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="the test extra is not installed")
    from benchmarks import evaluation

    rivals = ["product", "dmlcore", "pml"]
    rows = evaluation.run([(512, 16, 4)], 1, rivals)
    assert [row["rival"] for row in rows] == rivals
    assert all(row["cpu_seconds"] > 0 and row["ratio_to_product"] > 0 for row in rows)


@pytest.mark.slow
def test_calls_are_measured_beside_another_installation(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    command("calls", "--quick", "--against", sys.executable, "--json", str(file))
    rows = json.loads(file.read_text())
    assert [row["case"] for row in rows][:2] == ["ms", "five"] and rows[0]["commit"]
    assert all(row["microseconds"] > 0 and row["against_microseconds"] > 0 for row in rows)


@pytest.mark.slow
def test_situations_are_measured_beside_another_installation(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    flags = ("--quick", "--only", "one loss, N", "--csv", str(tmp_path / "rows.csv"), "--json", str(file))
    command("situations", *flags, "--against", sys.executable)
    rows = json.loads(file.read_text())
    assert [row["case"] for row in rows] == ["one loss, N = 64", "one loss, N = 128"]
    assert all(row["ratio_to_products"] > 0 and row["against_ratio_to_products"] > 0 for row in rows)
    table = report.situations(rows)
    assert table.count("x |") == 4 and "| one loss, N = 64 | 64 | 64 |" in table


@pytest.mark.slow
def test_peak_memory_is_that_of_a_fresh_process() -> None:
    plain = losses._in_child(cases.measurement("ms", "plain", 1024, 8), 0.01, 120.0, 0)
    assert plain["status"] == "ok"
    similarities = 4 * 1024**2 / 2**20  # the definition keeps several of these for its backward pass
    assert 3 * similarities < plain["peak_mb"] < 40 * similarities
    fused = losses._in_child(cases.measurement("ms", "fused", 1024, 8), 0.01, 120.0, 0)
    assert fused["peak_mb"] < similarities


@pytest.mark.slow
def test_no_rival_ends_the_run() -> None:
    small, large = cases.measurement("ms", "plain", 8192, 8), cases.measurement("ms", "plain", 16384, 8)
    fused = cases.measurement("ms", "fused", 64, 8)
    rows = losses.run([small, large, fused], {}, [], lambda rows: None, seconds=0.01, cutoff=120.0, megabytes=1500)
    assert [row["status"] for row in rows] == ["memory", "skipped", "ok"]
    assert "memory at N = 8192" in rows[1]["detail"]
    assert losses.run([fused], {}, [], lambda rows: None, cutoff=0.1)[0]["status"] == "time"
    assert losses.run([fused], {}, [], lambda rows: None, minutes=0.0) == []


def _measured(measurement: cases.Measurement, ratio: float) -> dict[str, str]:
    numbers = {"ratio_to_products": ratio, "ratio_to_fused": 70.0, "speedup": 1.8, "peak_mb": 20.0, "seconds": 1e-3 * ratio}
    numbers |= {"products_seconds": 1e-3, "microseconds": 1e3 * ratio, "members": len(cases.members(measurement.case))}
    row = {**vars(measurement), **numbers, "benchmark": "losses", "status": "ok", "allocator": "defaults", "device": "paper"}
    return {name: str(value) for name, value in row.items()}


def test_the_selection_measures_every_goal(tmp_path: Path) -> None:
    evaluated = {
        "benchmark": "evaluation",
        "case": "N=60000 d=512 m=4",
        "rival": "dmlcore",
        "N": "60000",
        "ratio_to_product": "0.5",
    }
    rows = [_measured(measurement, 1.0) for measurement in cases.selection()] + [evaluated]
    for goal in goals.GOALS:
        worst = goal.worst(rows)
        assert worst is not None, goal.what
        assert goal.worst([]) is None
    verdicts = {line.split("|")[1].strip(): line for line in report.goals(rows).splitlines()[2:]}
    assert verdicts["any one pair loss, N >= 2048, d = 128"].endswith("| aim reached |")
    assert verdicts["2 threads against 1, N >= 2048, d = 128"].endswith("1.80x (five, N = 2048) | reached |")
    slow = [_measured(cases.measurement("circle", "fused", 4096, 128), 1.3), *rows]
    assert "1.30x (circle, N = 4096) | missed |" in report.goals(slow)
    assert "not measured" in report.goals([])

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: goals -->\n<!-- end -->\nbetween\n<!-- table: ratios -->\nold\n<!-- end -->\nafter\n")
    results = tmp_path / "rows.csv"
    measuring.write(rows, results)
    text = report.write(page, results)
    assert text == report.write(page, results) and "old" not in text and text.endswith("<!-- end -->\nafter\n")
    assert text.count("| five |") == 2  # d = 128 and d = 512


def test_rivals_of_other_versions_are_not_beside_the_evaluator() -> None:
    row = {"benchmark": "evaluation", "case": "N=8", "rival": "dmlcore", "ratio_to_product": "0.5", "commit": "b", "torch": "2"}
    older = {**row, "rival": "faiss", "ratio_to_product": "1.5", "commit": "a"}
    assert "| N=8 | 0.50 | - |" in report.evaluation([row, older])
    assert "| N=8 | 0.50 | 1.50 |" in report.evaluation([row, {**older, "commit": "b"}])


def test_a_part_of_an_ensemble_is_named() -> None:
    row = _measured(cases.Measurement("eight", "fused", 4096, 128), 1.5) | {"members": "6"}
    assert "eight (6 of 8 installed), N = 4096" in report.goals([row])
    assert math.isnan(goals.number(row, "absent"))


@pytest.mark.slow
def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    measurements = [cases.measurement("ms", rival, n, 128) for rival in ("fused", "pml") for n in (128, 512, 2048)]
    measuring.write([_measured(measurement, 1.0) for measurement in measurements], tmp_path / "rows.csv")
    command("losses", "--plot", "--csv", str(tmp_path / "rows.csv"), "--picture", str(tmp_path / "one.svg"))
    from benchmarks import plots

    plots.draw(measuring.read(tmp_path / "rows.csv"), tmp_path / "two.svg")
    pictures = [(tmp_path / name).read_text() for name in ("one.svg", "two.svg")]
    assert pictures[0] == pictures[1] and pictures[0].count("<svg") == 1


def test_the_committed_tables_are_those_of_the_committed_rows(tmp_path: Path) -> None:
    page, committed = tmp_path / "performance.md", ROOT / "docs" / "reports" / "performance.md"
    shutil.copyfile(committed, page)
    assert report.write(page, ROOT / "benchmarks" / "results") == committed.read_text(), "run `python -m benchmarks report`"


def test_committed_results_name_their_machine() -> None:
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.csv")):
        for row in measuring.read(file):
            assert row["device"] and row["torch"] and row["commit"], file.name


def _gradients(page: Path) -> dict[str, list[str]]:
    """First cell to the other cells of the page's table."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    return {first: cells for first, *cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}


def test_gradients_are_written_for_two_losses(tmp_path: Path) -> None:
    from benchmarks import gradients

    command("gradients", "--only", "contrastive", "--page", str(tmp_path / "one.md"))
    assert gradients.write(tmp_path / "two.md", "contrastive") == (tmp_path / "one.md").read_text()
    rows = _gradients(tmp_path / "one.md")
    assert {"`contrastive`", "`contrastive` pos_margin = 0.5, neg_margin = 1.4"} <= set(rows)
    assert all("contrastive" in name for name in rows)
    for checked, order, scale, *errors, fused in rows.values():
        assert checked == order == "yes" and scale in ("yes", "by norm") and (fused == "yes" or fused.startswith("no: "))
        single, bfloat, half = (float(gradient) for _, gradient in (cell.split(" / ") for cell in errors))
        assert single < 1e-5 < half < 1e-3 < bfloat < 1e-2  # the rounding of each precision shows, and nothing more


def test_committed_gradients_are_those_of_the_table() -> None:
    rows = _gradients(ROOT / "docs" / "reports" / "gradients.md")
    expected = {
        " ".join([f"`{case.name}`", ", ".join(f"{key} = {value}" for key, value in case.options.items())]).strip()
        for case in LOSSES
    }
    assert set(rows) == expected, "run `python -m benchmarks gradients`"
    assert not [(name, cell) for name, cells in rows.items() for cell in cells if "FAILS" in cell]
