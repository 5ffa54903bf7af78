"""`python -m benchmarks gpu` without a GPU: its tables on CPU tensors, with a clock that ticks as it is told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # last: an installed package stays what is measured

from benchmarks import measuring, report  # noqa: E402
from benchmarks.gpu import devices, evaluation, losses, roofline, tables, turns  # noqa: E402


class StandIn:
    """A device of CPU tensors. Every call takes `step` seconds of a clock of its own."""

    torch = torch.device("cpu")

    def __init__(self, step: float = 0.001) -> None:
        self.time, self.step = 0.0, step
        self.graphs = self.released = 0

    def now(self) -> float:
        return self.time

    def seconds(self, run: Callable[[], object]) -> float:
        run()
        self.time += self.step
        return self.step

    def calls(self, run: Callable[[], object], count: int) -> float:
        run()
        self.time += self.step * count
        return self.step

    def peak(self, run: Callable[[], object]) -> float:
        self.seconds(run)
        return 1.5

    def graph(self, run: Callable[[], object]) -> Callable[[], object]:
        self.graphs += 1
        return run

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def release(self) -> None:
        self.released += 1

    def about(self) -> measuring.Row:
        return {"device": "stand-in", "driver": "none", **devices.versions()}

    def build(self) -> measuring.Row:
        return {"status": "ok", "detail": ""}


TINY = tables.Plan((16, 32), (8,), (16,), (32,), 8, (40,), minutes=60.0, seconds=0.05, repeats=3)


def passed(seconds: float) -> measuring.Row:
    assert seconds > 0
    return {"table": "correctness", "case": "pytest -m gpu", "status": "ok", "detail": "told"}


def test_every_table_and_what_it_holds(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_metric_learning", reason="the test extra is not installed")
    csv, said, device = tmp_path / "gpu.csv", [], StandIn()
    rows = tables.run(
        TINY, device, lambda evaluated: measuring.write(evaluated, csv, csv.with_suffix(".json")), said.append, passed
    )
    assert len(said) == len(rows) == len(measuring.read(csv)) == len(json.loads(csv.with_suffix(".json").read_text()))
    assert tables.failed(rows) == []
    assert list(dict.fromkeys(row["table"] for row in rows)) == ["build", *tables.SHARES]
    for row in rows:
        assert row["device"] == "stand-in" and row["torch"] and row["commit"] and row["driver"] and "memeff" in row

    by = {
        (row["table"], row["case"], row.get("rival"), row.get("n"), row.get("precision"), row.get("dtype")): row for row in rows
    }
    assert {row["case"] for row in rows if row["table"] == "correctness"} == {*losses.CASES, "evaluation", "pytest -m gpu"}
    for case in losses.CASES:
        for n in TINY.sizes:
            for rival in ("products", "fused", "pml", "compiled"):
                row = by["losses", case, rival, n, "high", "float32"]
                assert row["status"] == "ok" and row["repeats"] == 3 and row["ratio"] == pytest.approx(1.0), row
                assert row["low"] <= row["milliseconds"] <= row["high"] and row["peak_mb"] == 1.5
        fused, compiled = (by["losses", case, rival, 32, "high", "float32"]["value"] for rival in ("fused", "compiled"))
        assert fused == pytest.approx(compiled, rel=1e-4)
    assert by["losses", "five", "fused", 16, "highest", "float32"]["status"] == "ok"
    assert by["losses", "five", "fused", 16, "high", "bfloat16"]["status"] == "ok"
    assert {key[2] for key in by if key[0] == "calls"} == {"fused", "fused graph"} and device.graphs == 2
    assert by["infonce", "infonce", "memeff", 32, "high", "bfloat16"]["status"] in ("missing", "error")
    assert by["infonce", "infonce", "fused", 32, "high", "bfloat16"]["status"] == "ok"
    evaluated = [by["evaluation", "m=4", rival, 40, "highest", "float32"] for rival in ("dmlcore", "torch topk")]
    assert evaluated[0]["value"] == pytest.approx(evaluated[1]["value"], abs=1e-12) and evaluated[0]["gigapairs"] > 0
    assert by["evaluation", "m=4", "faiss-gpu", 40, "highest", "float32"]["status"] in ("ok", "missing")
    assert torch.get_float32_matmul_precision() == "highest"

    page = tmp_path / "page.md"
    page.write_text("<!-- table: gpu -->\n<!-- end -->\n")
    text = report.write(page, csv)
    assert "- device: stand-in" in text and text.count("| five |") >= 2 and "| infonce | memeff | 32 | 8 |" in text
    assert "| five | 1 / 1 / 1 / 1 | 1 / 1 / 1 / 1 |" in text and "| evaluation | dmlcore | 40 | 8 | 1 |" in text
    measuring.write([row for row in rows if row["table"] in ("build", "correctness")], csv)
    assert "missing, not forgotten" in report.write(page, csv)


def test_what_time_does_not_allow_is_written_down() -> None:
    device = StandIn(step=30.0)
    rows = tables.run(TINY, device, lambda rows: None, lambda text: None, passed)
    assert device.time < 60 * TINY.minutes + 30.0 * 10  # a cell that has begun may end
    late = [row for row in rows if row["status"] == "time"]
    assert late and all(row["detail"] == "the table's time was up" for row in late)
    slow = [row for row in rows if row["status"] == "ok" and "milliseconds" in row and row["table"] != "calls"]
    assert slow and all(row["repeats"] == 1 and row["milliseconds"] == pytest.approx(30_000.0) for row in slow)


def test_the_plan_of_a_real_run() -> None:
    plan = tables.Plan()
    assert sum(tables.SHARES.values()) <= 1 and plan.minutes <= 8 and plan.repeats >= 30
    groups = list(losses.groups(plan.sizes, plan.widths))
    fused = {(group.case, group.n, group.d) for group in groups}
    assert fused == {(case, n, d) for case in losses.CASES for n in plan.sizes for d in plan.widths}
    for rival, sizes in (("pml", set(plan.sizes)), ("compiled", {512, 2048, 8192})):
        assert {group.n for group in groups if rival in group.rivals and group.case == "five"} == sizes


def test_a_rival_that_fails_ends_nothing() -> None:
    device = StandIn()

    def broken(error: Exception) -> Callable[[], Callable[[], object]]:
        def build() -> Callable[[], object]:
            raise error

        return build

    def later() -> Callable[[], object]:
        calls = []

        def run() -> object:
            calls.append(1)
            if len(calls) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB")
            return torch.ones(())

        return run

    arms = {
        "products": lambda: lambda: None,
        "fused": lambda: lambda: torch.ones(()),
        "absent": broken(turns.Missing("memeff is not installed")),
        "large": broken(torch.OutOfMemoryError("CUDA out of memory")),
        "later": later,
        "wrong": broken(RuntimeError("an illegal\nmemory access")),
    }
    rows = turns.measure(device, arms, turns.Budget(device, 100.0, 4), 10.0)
    assert [rows[name]["status"] for name in arms] == ["ok", "ok", "missing", "memory", "memory", "error"]
    assert rows["wrong"]["detail"] == "RuntimeError: an illegal memory access" and rows["absent"]["detail"].endswith(
        "installed"
    )
    assert rows["fused"]["repeats"] == 4 and rows["fused"]["ratio"] == 1.0 and device.released >= 4
    assert tables.failed([{"table": "losses", "rival": name, **row} for name, row in rows.items()]) == []
    fused = {"table": "losses", "rival": "fused", "status": "error"}
    assert tables.failed([fused]) == [fused]


def test_a_build_for_another_device_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(StandIn):
        def build(self) -> measuring.Row:
            return {"status": "error", "detail": "built for 80, not for sm_120"}

    rows = tables.run(TINY, Other(), lambda rows: None, lambda text: None, passed)
    assert [row["table"] for row in rows] == ["build"] and tables.failed(rows) == rows


@pytest.mark.parametrize(
    ("archs", "capability", "status"),
    [
        ("80;90;100+PTX", (9, 0), "ok"),
        ("80;90;100+PTX", (8, 6), "ok"),
        ("80;90;100+PTX", (12, 0), "ok"),
        ("80;90", (10, 0), "error"),
        ("90", (8, 0), "error"),
        ("80+PTX", (7, 5), "error"),
    ],
)
def test_the_build_check(monkeypatch: pytest.MonkeyPatch, archs: str, capability: tuple[int, int], status: str) -> None:
    class Module:
        pass

    Module.archs = archs  # type: ignore[attr-defined]
    monkeypatch.setattr(devices.extension, "cuda", lambda: Module)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = object.__new__(devices.Cuda)
    device.torch = torch.device("cuda", 0)
    assert device.build()["status"] == status
    monkeypatch.setattr(devices.extension, "cuda", lambda: None)
    assert device.build()["status"] == "error"


def test_parts_of_a_large_evaluation() -> None:
    x, labels = evaluation.vectors(StandIn(), 64, 8)
    assert x.shape == (64, 8) and torch.bincount(labels).tolist() == [4] * 16
    whole, part = (evaluation.topk(StandIn(), 64, 8, queries)() for queries in (64, 16))
    assert 0 < whole <= 1 and 0 < part <= 1
    assert evaluation.map_at_r(torch.tensor([[0, 2, 1, 3]]), torch.tensor([0, 1, 0, 0])) == pytest.approx((1 + 2 / 3) / 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_needs_a_cuda_device(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "gpu", "--quick", "--csv", str(tmp_path / "gpu.csv")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.iterdir())
    assert done.stderr.count("\n") == 1 and "needs a CUDA device" in done.stderr


def test_a_step_on_paper_by_hand() -> None:
    step = roofline.Step(512, 128, 5)
    assert step.rows == 512 and step.is_kept and step.operations == 6 * 512 * 512 * 128 == 201_326_592
    forward = 1 + 5  # the product is written, and read by every loss
    backward = 5 + 1 + 2 * 4 + 2  # products read; slopes written once, added to four times, and read by two products
    assert step.chunk_bytes == 4 * 512 * 512 * (forward + backward) == 23_068_672
    assert step.vector_bytes == 4 * 512 * 128 * 4 and step.launches == 3 + 1 + 5 + 5 + 2 and step.gradient_tiles == 4
    assert step.instructions == 2 * 5 * 16 * 512 * 512
    seconds = step.seconds(roofline.H100)
    assert seconds["products"] == pytest.approx(201_326_592 / 494.7e12) and seconds["launches"] == pytest.approx(80e-6)
    assert seconds["bytes"] == pytest.approx((23_068_672 + 1_048_576) / 3.35e12)
    large = roofline.Step(65_536)
    assert (large.rows, large.chunks, large.gradient_tiles) == (64, 1024, 1) and large.operations == 8 * 65_536**2 * 128


def test_the_plan_on_paper_is_that_of_the_kernels() -> None:
    from dmlcore.kernels import cuda

    assert roofline.CHUNK_BYTES == cuda.WORKSPACE
    if (module := devices.extension.cuda()) is not None:  # plans without a device
        for n in (*roofline.SIZES, 3000, 50_000):
            call = ("ms", [2.0, 50.0, 0.5, 0.1], 0, 0)
            memory = {"workspace": cuda.WORKSPACE, "rows": 0, "columns": 0, "most_positives": 0}
            planned = module.Pass(n, None, 128, [call], own=False, list_length=None, **memory).plan
            assert (planned["rows"], planned["columns"]) == (roofline.Step(n).rows, n)
    page = ROOT / "docs" / "design" / "cuda.md"
    for table in (roofline.table(), roofline.table_together()):
        assert table in page.read_text(), "python -m benchmarks.gpu.roofline prints the tables of docs/design/cuda.md"
