"""`dmlcore fewshot` from the command line: runs, resumes after an interrupt, reports, and refuses what makes no sense."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import field_files
import numpy as np
import pytest

from dmlcore.cli import main

SHORT = ["--epochs", "2", "--target-epochs", "2", "--patience", "2", "--episodes", "2", "--episode-patience", "2"]
SHORT += ["--episode-check", "2", "--mlp.hidden", "4", "--model", "mlp", "--embedding-dim", "4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "features.npz"
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(10), 9)
    x = (2 * rng.normal(size=(10, 6))[y] + rng.normal(size=(90, 6))).astype(np.float32)
    groups = np.array(["left"] * 5 + ["right"] * 5)
    np.savez(path, x=x, y=y, class_group=groups)
    return path


def arguments(data: Path, out: Path, *further: str, source: str = "0-4") -> list[str]:
    return [
        "fewshot",
        "--data",
        str(data),
        "--source-classes",
        source,
        "--n",
        "3",
        "--k",
        "1,4",
        "--out",
        str(out),
        *SHORT,
        *further,
    ]


def errors_of(report: dict[str, Any]) -> dict[tuple[str, int], float]:
    return {(row["arm"], row["k"]): row["error"] for row in report["means"]}


def test_a_grid_runs_and_reports(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    call = arguments(data, out, "--replications", "2", "--losses", "ms,triplet+sup_con", "--ms.alpha", "3")
    assert main(call) == 0
    said = capsys.readouterr()
    assert "2 of 2: n3/001" in said.err and "5 source and 5 target classes" in said.err
    assert "| adap_triplet+sup_con |  |" in said.out and "The paper's orderings" in said.out
    page = (out / "report.md").read_text()
    assert page.strip() in said.out and "34 %" in page and (out / "curves.svg").read_text().startswith("<?xml")
    first = json.loads((out / "report.json").read_text())
    assert first["settings"]["loss_options"] == {"ms": {"alpha": "3"}} and first["cells"] == 2
    assert ("adap_ms", 4) in errors_of(first) and ("adap_ms", 1) not in errors_of(first)
    times = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.json")}
    call[call.index("--replications") + 1] = "3"  # goes on with what is there
    assert main([*call, "--json"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["cells"] == 3 and "2 of 3 cells are there already" in said.err
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    assert main(["fewshot", "report", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report


def test_two_processes_give_the_same_numbers(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = []
    for processes in ("1", "2"):
        out = tmp_path / processes
        assert main(arguments(data, out, "--replications", "2", "--processes", processes, "--json", source="@left")) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0]["means"] == reports[1]["means"] and reports[0]["paired"] == reports[1]["paired"]


def test_an_interrupted_grid_goes_on(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from dmlcore.cli import main\nsys.exit(main(sys.argv[1:]))"
    call = arguments(data, out, "--replications", "60", "--losses", "ms,sup_con")
    process = subprocess.Popen(
        [sys.executable, "-c", code, *call], stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    until = time.monotonic() + 60
    while time.monotonic() < until and len(list((out / "cells").rglob("0*.json"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Go on by the same command with --out" in error, error
    done = {path: path.read_bytes() for path in (out / "cells").rglob("0*.json")}
    assert 2 <= len(done) < 60
    call[call.index("60")] = str(len(done) + 1)
    assert main(call) == 0
    said = capsys.readouterr().err
    assert f"{len(done)} of {len(done) + 1} cells are there already" in said
    assert all(path.read_bytes() == content for path, content in done.items())


def test_quick_is_a_small_grid(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["fewshot", "--data", str(data), "--source-classes", "random", "--n", "3,5", "--k", "1,2,4,5", "--quick", "--json"]
    assert main([*call, "--out", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["cells"] == 2 and {(row["n"], row["k"]) for row in report["means"]} == {(3, 1), (3, 5)}
    assert report["settings"]["budget"]["epochs"] == 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--k", "9"], "k = 9 and one to test need 10"),
        (["--k", "1,0"], "--k must be at least 1"),
        (["--k", "one"], "--k must be whole numbers"),
        (["--k", "4,4"], "--k must be one or more different numbers"),
        (["--n", "6"], "n is 6, but there are 5 target classes"),
        (["--n", "1"], "at least two target classes"),
        (["--source-n", "6"], "6 source classes are needed, but there are 5"),
        (["--source-n", "some"], "--source-n must be `all` or a number"),
        (["--source-classes", "0-11"], "there is no class '0-11'"),
        (["--source-classes", "0-4,seven"], "there is no class 'seven'"),
        (["--source-classes", "@up"], "there is no group 'up'"),
        (["--target-classes", "4-7"], "1 classes are on both sides, source and target: '4'"),
        (["--losses", "tripel"], "Did you mean 'triplet'"),
        (["--losses", "ms", "--ms.alpah", "3"], "ms has no option 'alpah'"),
        (["--ms.alpha", "3"], "loss is not selected (losses: none)"),
        (["--model", "conv"], "model 'conv' takes images"),
        (["--batch", "1"], "batch"),
        (["--replications", "0"], "--replications must be at least 1"),
        (["--processes", "0"], "processes"),
        (["--init", "zeros"], "--init"),
        (["--budget", "papper"], "Did you mean 'paper'"),
        (["--data", "nowhere.npz"], "nowhere.npz"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_trained(
    data: Path, tmp_path: Path, changes: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"--data": str(data), "--source-classes": "0-4", "--n": "3", "--k": "1,4", "--out": str(tmp_path / "out")}
    flags |= dict(zip(changes[::2], changes[1::2], strict=True))
    assert main(["fewshot", *(word for pair in flags.items() for word in pair)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and said in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_another_comparison_in_the_same_folder_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(data, tmp_path, "--replications", "1")) == 0
    assert main(arguments(data, tmp_path, "--replications", "1", "--init", "xavier")) == 2
    assert 'a result with init = "default" instead of "xavier"' in capsys.readouterr().err


def test_a_report_of_nothing_or_of_damage_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fewshot", "report", str(tmp_path)]) == 2
    assert "there is no result" in capsys.readouterr().err
    path = tmp_path / "cells" / "n3" / "000.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"settings": {')
    assert main(["fewshot", "report", str(tmp_path)]) == 1
    assert "is damaged" in capsys.readouterr().err


def test_help_names_the_options_of_what_is_chosen(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fewshot", "--data", str(data), "--losses", "ms+triplet", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--ms.alpha" in said and "--triplet.margin" in said and "--source-classes" in said


def test_flags_of_the_budget_are_its_fields() -> None:
    import dataclasses

    from dmlcore.commands.fewshot import BUDGET
    from dmlcore.protocols.fewshot.budgets import Budget

    assert set(BUDGET) == {field.name for field in dataclasses.fields(Budget)}


def test_both_parts_of_tiny_imagenet_are_drawn_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = field_files.tiny_imagenet(tmp_path / "tiny-imagenet-200")  # of a class 3 pictures to train and 2 to validate
    words = ["--out", str(tmp_path / "out"), "--n", "2", "--k", "2", "--quick", "--json", "--epochs", "1", "--episodes", "1"]
    assert main(["fewshot", "--recipe", "adapted_tiny_imagenet", "--data", str(folder), *words]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    cell = json.loads((tmp_path / "out" / "cells" / "n2" / "000.json").read_text())["result"]
    assert cell["task"]["tests"] == {"2": 2 * (3 + 2 - 2)}
    assert json.loads(said.out)["settings"]["model"] == "flat_conv" and "6 classes" in said.err
