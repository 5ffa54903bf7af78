"""Whether the device computes what it should, before anything is timed."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.child import data, definition
from benchmarks.gpu.devices import Device
from benchmarks.gpu.losses import CASES, build
from benchmarks.gpu.turns import failure
from benchmarks.measuring import Row

TESTS = Path(__file__).parents[2] / "tests"
TOLERANCE = 1e-4  # of the value and of the gradient's largest entry, in full float32


def quick(device: Device, n: int = 300, d: int = 33) -> Iterator[Row]:
    """Every case's value and gradient against the definition in float64 on the CPU, and the evaluator against the definition.

    Yields:
        Rows of the table `correctness`: `case`, `status`, `detail`, `error` (relative).
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    x, y = data(n, d)
    try:
        for case in CASES:
            row: Row = {"table": "correctness", "case": case, "n": n, "d": d}
            try:
                module = build(case)
                exact = x.double().requires_grad_()
                truth = definition(module.double())(exact, y)
                (gradient,) = torch.autograd.grad(truth, exact)
                moved = build(case).to(device.torch)
                leaf = x.to(device.torch).requires_grad_()
                value = moved(leaf, y.to(device.torch))
                (own_gradient,) = torch.autograd.grad(value, leaf)
                value, truth = value.detach(), truth.detach()
                of_value = abs(float(value) - float(truth)) / max(1.0, abs(float(truth)))
                of_gradient = float((own_gradient.cpu().double() - gradient).abs().max() / gradient.abs().max())
                yield row | _judged(max(of_value, of_gradient), TOLERANCE)
            except Exception as error:
                yield row | failure(error)
        yield exact_ranks(device, n, d)
    finally:
        torch.set_float32_matmul_precision(before)


def exact_ranks(device: Device, n: int = 300, d: int = 33) -> Row:
    """The evaluator against the definition, on whole numbers with many ties: a row of the table `correctness`."""
    from dmlcore.evaluation import plain, retrieval_metrics

    row: Row = {"table": "correctness", "case": "evaluation", "n": n, "d": d}
    x, y = data(n, d)
    try:
        whole = (x * 4).round()
        truth_table = plain.rank_positives(whole, y, None, None, (1, 2), "dot")
        measures = retrieval_metrics(whole.to(device.torch), y.to(device.torch), recall_at=(1, 2), metric="dot")
        return row | _judged(abs(measures["map"] - float(truth_table[4].mean())), 1e-12)
    except Exception as error:
        return row | failure(error)


def _judged(error: float, limit: float) -> Row:
    wrong = not math.isfinite(error) or error > limit
    return {"status": "error" if wrong else "ok", "error": error, "detail": f"more than {limit}" if wrong else ""}


def device_tests(seconds: float) -> Row:
    """The tests marked `gpu`, in a process of their own: a row of the table `correctness`."""
    row: Row = {"table": "correctness", "case": "pytest -m gpu"}
    files = sorted(str(path) for path in TESTS.glob("test_cuda_*.py"))
    if not files:
        return row | {"status": "missing", "detail": "the tests are not here"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, timeout=max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        return row | {"status": "time", "detail": f"not finished within {seconds:.0f} s; run pytest -m gpu tests"}
    if "No module named pytest" in done.stderr:
        return row | {"status": "missing", "detail": "pytest is not installed"}
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    detail = "; ".join([*lines[-1:], *failed[:5]])[:300]
    return row | {"status": "ok" if done.returncode == 0 else "error", "detail": detail}
