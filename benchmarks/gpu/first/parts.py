"""What the processes of a first run do. `python -m benchmarks.gpu.first.parts STAGE PART ...` does the parts and prints a line
after each, which `runner.py` reads."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu import checks, evaluation, losses
from benchmarks.gpu.devices import Cuda, Device
from benchmarks.gpu.first.runner import MARK, SPOILED
from benchmarks.gpu.turns import Budget, measure
from benchmarks.measuring import Row

sys.path.append(str(Path(__file__).parents[3] / "tests"))

from cases import LOSSES, ON_CUDA, Case, hold_draws, value_and_gradients
from cuda_comparison import FIVE, batch_of, compare

CHECKED = ("odd", "large")  # batches of the table of cases
TOLERANCE = 1e-4  # of a loss that runs as plain PyTorch there
SECONDS = 1.0  # of repeats of a group of arms
REPEATS = 30


def device_facts(device: Device, part: str) -> Row:
    """`facts`: what the device is. `build`: whether the kernels run on it."""
    if part == "build":
        return _state(device.build())
    row = device.about()
    if device.torch.type == "cuda":
        properties = torch.cuda.get_device_properties(device.torch)
        free, total = torch.cuda.mem_get_info(device.torch)
        row |= {
            "multiprocessors": properties.multi_processor_count,
            "l2_mb": properties.L2_cache_size / 2**20,
            "memory_gb": total / 2**30,
            "free_gb": free / 2**30,
        }
    return {"status": "passed", "facts": row}


def smallest(device: Device, part: str) -> Row:
    """`losses` and `evaluation` on the smallest shapes that reach every kernel, for compute-sanitizer, which takes long."""
    from dmlcore.evaluation import retrieval_metrics
    from dmlcore.kernels import fused_rows
    from dmlcore.kernels.planning import plan_options

    generator = torch.Generator().manual_seed(0)
    for n, classes in ((1, 1), (37, 9), (300, 1)):  # with one class positives lie in global memory
        x = torch.randn(n, 11, generator=generator).to(device.torch)
        y = (torch.arange(n) % classes).to(device.torch)
        if part == "losses":
            for options in ({}, {"tile_rows": 16}):  # one chunk, and many
                with plan_options(**options):
                    fused_rows(x.requires_grad_(), y, None, None, FIVE)[0].sum().backward()
        elif n > 1:
            retrieval_metrics(x, y)
    return {"status": "passed"}


def correctness(device: Device, part: str) -> Row:
    """A row of the table of cases against its definition in float64: at most twice the error of torch, value and gradient."""
    torch.set_float32_matmul_precision("highest")
    if part == "evaluation":
        return _state(checks.exact_ranks(device))
    case = next(case for case in LOSSES if case.id == part)
    is_fused, errors = case in ON_CUDA, []
    for batch in CHECKED:
        errors.append(_error(case, batch, device))
        try:
            if is_fused:
                compare(case, *batch_of(case, batch), device.torch.type)
            elif not errors[-1] <= TOLERANCE:  # so that NaN fails
                raise AssertionError
        except AssertionError:
            limit = "twice torch's error" if is_fused else f"{TOLERANCE}"
            detail = f"off by {errors[-1]:.1e} on the batch `{batch}`, limit: {limit}"
            return {"status": "failed", "detail": detail, "is_fused": is_fused}
    return {"status": "passed", "is_fused": is_fused, "error": max(errors)}


def _error(case: Case, batch: str, device: Device) -> float:
    """The worst relative error of value and gradients."""
    low, exact = case.create(torch.float32).to(device.torch), case.create().to(device.torch)
    exact.load_state_dict(low.state_dict())
    hold_draws(exact, low)
    x, y = (tensor.to(device.torch) for tensor in batch_of(case, batch))
    truth = value_and_gradients(exact, x.float().double(), y, exact.reference)
    result = value_and_gradients(low, x.float(), y, low)
    pairs = [(result[0], truth[0]), *zip(result[1], truth[1], strict=True)]
    errors = [(a.double() - b).abs().max() / b.abs().max().clamp(min=1e-3) for a, b in pairs if b.numel()]
    return float(torch.stack(errors).max())  # NaN where one is


def timing(device: Device, part: str) -> Row:
    """`CASE/N/D/RIVAL`: the bare products, fused and a rival in turns; `fused` as the rival stands for none."""
    case, n, d, rival = part.split("/")
    rivals = () if rival == "fused" else (rival,)
    group = losses.Group(case, int(n), int(d), rivals, dtype=torch.bfloat16 if case == "infonce" else torch.float32)
    builds = (losses.contrast_arms if case == "infonce" else losses.arms)(device, group)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(group.precision)
    try:
        rows = measure(device, builds, Budget(device, device.now() + 60 * SECONDS, REPEATS), SECONDS)
    finally:
        torch.set_float32_matmul_precision(before)
    return {"n": group.n, "d": group.d, "case": case, **_arms_state(rows, "fused", rival), "arms": rows}


def ranking(device: Device, part: str) -> Row:
    """`N/D/RIVAL`: the evaluator beside the bare products and a rival."""
    n, d, rival = part.split("/")
    rivals = tuple(dict.fromkeys(("products", "dmlcore", rival)))
    budget = Budget(device, device.now() + 60 * SECONDS, REPEATS)
    rows = {str(row["rival"]): row for row in evaluation.run(device, budget, (int(n),), (int(d),), 2 * SECONDS, rivals)}
    return {"n": int(n), "d": int(d), "case": "evaluation", **_arms_state(rows, "dmlcore", rival), "arms": rows}


def _arms_state(rows: dict[str, Row], own: str, rival: str) -> Row:
    """Failed where our own arm did not run. A rival may run out of memory or fail, which is a result."""
    if rows[own]["status"] != "ok":
        details = [f"{arm}: {row['status']}, {row.get('detail', '')}" for arm, row in rows.items() if row["status"] != "ok"]
        return {"status": "failed", "detail": "; ".join(details)}
    state = rows[rival]["status"]
    if state == "ok":
        return {"status": "passed"}
    detail = f"{rival}: {state}, {rows[rival].get('detail', '')}"
    return {"status": "skipped" if state == "missing" else "passed", "detail": detail}


def _state(row: Row) -> Row:
    """A row of the tables of `python -m benchmarks gpu` as a result."""
    return {**row, "status": "passed" if row["status"] == "ok" else "failed"}


STAGES: dict[str, Callable[[Device, str], Row]] = {
    "device": device_facts,
    "smallest": smallest,
    "correctness": correctness,
    "losses": timing,
    "evaluation": ranking,
}


def do(stage: str, parts: list[str], device: Device, say: Callable[[str], object], answers: Callable[[], bool]) -> int:
    """Do the parts of a stage in turn.

    Args:
        stage: a key of `STAGES`.
        parts: their names.
        device: where.
        say: gets a line of text per part.
        answers: whether the device still works. An illegal access spoils all that follows in its process.

    Returns:
        The exit status.
    """
    status = 0
    for part in parts:
        try:
            row = STAGES[stage](device, part)
        except Exception as error:
            row = {"status": "failed", "detail": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
        status = 1 if row["status"] == "failed" else status
        is_spoiled = not answers()  # by a rival, too, whose failure is no failure of the part
        say("\n" + MARK + json.dumps(row, default=str))  # on a line of its own, whatever was printed before
        if is_spoiled:
            return SPOILED
    return status


def _answers() -> bool:
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(do(sys.argv[1], sys.argv[2:], Cuda(), lambda text: print(text, flush=True), _answers))
