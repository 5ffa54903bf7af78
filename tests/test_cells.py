"""Grids of experiments: nothing done twice, nothing lost, the same numbers with any number of processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmlcore.errors import ConfigError, TrainingError
from dmlcore.protocols import cells as cells_module
from dmlcore.protocols.cells import Cell, finished, path_of, run_cells
from dmlcore.reports.intervals import mean_and_error, mean_and_half

CELLS = [Cell(f"one/{n}", {"n": n, "other": {"deep": [1, 2]}}) for n in range(4)]


def compute(settings: dict[str, Any], work: Path) -> dict[str, Any]:
    import torch

    work.mkdir(parents=True, exist_ok=True)
    (work / "file").write_text("x")
    generator = torch.Generator().manual_seed(settings["n"])
    x = torch.randn(300, 300, generator=generator)
    return {
        "n": settings["n"],
        "sum": float((x @ x).sum()),
        "threads": torch.get_num_threads(),
        "headline": f"n = {settings['n']}",
    }


def fails_at_two(settings: dict[str, Any], work: Path) -> dict[str, Any]:
    if settings["n"] == 2:
        raise ConfigError("two is refused")
    return compute(settings, work)


def interrupted_at_two(settings: dict[str, Any], work: Path) -> dict[str, Any]:
    if settings["n"] == 2:
        raise KeyboardInterrupt
    return compute(settings, work)


def must_not_run(settings: dict[str, Any], work: Path) -> dict[str, Any]:
    raise AssertionError(f"cell {settings['n']} is run again")


def sees(settings: dict[str, Any], work: Path) -> dict[str, Any]:
    time.sleep(0.5)  # so that both processes have work
    return {"device": os.environ["CUDA_VISIBLE_DEVICES"], "process": os.getpid()}


@pytest.mark.slow
def test_each_process_has_its_device(tmp_path: Path) -> None:
    results = run_cells(tmp_path, CELLS, sees, processes=2, devices=["3", "5"])
    of_process = {result["process"]: result["device"] for result in results.values()}
    assert all(result["device"] == of_process[result["process"]] for result in results.values())
    assert set(of_process.values()) <= {"3", "5"} and len(set(of_process.values())) == len(of_process)
    assert run_cells(tmp_path / "b", CELLS[:1], sees, devices=["7"])["one/0"]["device"] == "7"  # not this process itself
    assert os.environ.get("CUDA_VISIBLE_DEVICES") != "7"


@pytest.mark.slow
def test_the_same_numbers_in_one_process_and_in_two(tmp_path: Path) -> None:
    lines: list[str] = []
    alone = run_cells(tmp_path / "one", CELLS, compute, tell=lines.append)
    two = run_cells(tmp_path / "two", CELLS, compute, processes=2)
    assert alone == two and [r["n"] for r in alone.values()] == [0, 1, 2, 3]
    assert all(result["threads"] == 1 for result in alone.values())
    assert lines[-1] == "4 of 4: one/3  n = 3" and not (tmp_path / "two" / "work").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_failure_keeps_what_was_done_and_only_the_rest_is_run_again(tmp_path: Path, processes: int) -> None:
    with pytest.raises(ConfigError, match="two is refused"):
        run_cells(tmp_path, CELLS, fails_at_two, processes=processes)
    finished_before = finished(tmp_path, CELLS)
    assert {"one/0", "one/1"} <= set(finished_before) <= {"one/0", "one/1", "one/3"}
    missing = [cell for cell in CELLS if cell.key not in finished_before]
    run_cells(tmp_path, missing, compute)
    assert len(run_cells(tmp_path, CELLS, must_not_run)) == 4


def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"after 2 of 4 cells.*Go on by dmlcore again"):
        run_cells(tmp_path, CELLS, interrupted_at_two, again="dmlcore again")
    assert set(finished(tmp_path, CELLS)) == {"one/0", "one/1"}


def test_an_interrupt_counts_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = cells_module._write_result

    def write_and_stop(folder: Path, cell: Cell, result: dict[str, Any]) -> dict[str, Any]:
        write(folder, cell, result)
        raise KeyboardInterrupt

    monkeypatch.setattr(cells_module, "_write_result", write_and_stop)
    with pytest.raises(KeyboardInterrupt, match=r"after 1 of 4 cells"):
        run_cells(tmp_path, CELLS, compute)


def test_results_of_other_settings_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    run_cells(tmp_path, CELLS[:1], compute)
    with pytest.raises(ConfigError, match=r"a result with deep = \[1, 2\] instead of \[1\]"):
        run_cells(tmp_path, [Cell("one/0", {"n": 0, "other": {"deep": [1]}})], must_not_run)
    path = path_of(tmp_path, "one/0")
    path.write_text(path.read_text()[:20])
    with pytest.raises(TrainingError, match=r"0\.json is damaged .* remove it"):
        run_cells(tmp_path, CELLS[:1], must_not_run)


WAITING = """
import sys, time
from pathlib import Path
from dmlcore.protocols.cells import Cell, run_cells


def wait(settings, work):
    (Path(sys.argv[1]) / f"began{settings['n']}").touch()
    time.sleep(600)


if __name__ == "__main__":
    run_cells(Path(sys.argv[1]) / "out", [Cell("a", {"n": 1}), Cell("b", {"n": 2})], wait, processes=2)
"""


def _children(pid: int) -> set[int]:
    children = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                children.add(int(path.parent.name))
    return children


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see processes")
def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "waiting.py"), str(tmp_path)])
    try:
        _until(lambda: len(list(tmp_path.glob("began*"))) == 2)
        children = _children(parent.pid)
        assert len(children) >= 2
    finally:
        parent.kill()
        parent.wait()
    _until(lambda: not any(_runs(pid) for pid in children))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _until(holds: Callable[[], bool], seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "it takes too long"
        time.sleep(0.05)


def test_intervals_by_hand() -> None:
    mean, error = mean_and_error([1.0, 2.0, 3.0])
    assert mean == 2 and error == pytest.approx(1 / 3**0.5)
    assert mean_and_half([1.0, 2.0, 3.0])[1] == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert mean_and_error([5.0])[0] == 5 and mean_and_half([5.0])[1] != mean_and_half([5.0])[1]
