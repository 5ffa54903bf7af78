"""Files of JSON lines that benchmarks append their rows to."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # last: an installed package stays what is compared

from benchmarks import feature_starts, rows
from benchmarks.arms import runs as arms_runs
from benchmarks.defaults import runs as defaults_runs
from benchmarks.ensembles import runs as ensembles_runs
from benchmarks.outside import plan as outside_plan
from benchmarks.outside import runs as outside_runs


def test_rows_are_appended_after_a_line_that_a_crash_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "rows.jsonl"
    assert rows.read(file) == []
    with rows.appending(file) as append:
        append({"seed": 0})
        assert rows.read(file) == [{"seed": 0}]  # before it is closed
    with file.open("ab") as out:
        out.write(b'{"seed": 1, "text": "\xc3')  # half of a letter
    assert rows.read(file) == [{"seed": 0}]
    assert capsys.readouterr().err == f"{file}: line 2 is damaged and was skipped\n"
    for seed in (1, 2):
        with rows.appending(file) as append:
            append({"seed": seed})
    assert [row["seed"] for row in rows.read(file)] == [0, 1, 2]
    assert file.read_bytes().count(b"\n") == 4


def test_a_line_that_is_no_row_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"seed": 0}{"seed": 1}\n\n12\n\x00\x00}\n{"seed": 2}\n')
    assert rows.read(file) == [{"seed": 2}]
    assert [f"line {n} " in line for n, line in zip((1, 3, 4), capsys.readouterr().err.splitlines(), strict=True)] == [True] * 3


def test_every_benchmark_reads_rows_behind_a_cut_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"data": "cut')
    row = {"data": "d", "arm": "a", "system": "s", "stage": "g", "candidate": "c", "seed": 0}
    row |= {"cell": asdict(outside_plan.Cell("compare", "d", "s", 0))}
    with rows.appending(file) as append:
        append(row)
    read = (arms_runs.read(file), defaults_runs.read(file), feature_starts.read(file), outside_runs.read(file))
    kept = (*read, ensembles_runs.Runs(file, None, tmp_path, 1, None, None).rows)
    assert [list(results.values()) for results in kept] == [[row]] * 5
