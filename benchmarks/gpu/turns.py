"""How arms are measured: they take turns, each with a row of its own, whatever becomes of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.gpu.devices import Device, Run
from benchmarks.measuring import Row, quantiles

Build = Callable[[], Run]


class Missing(Exception):
    """A rival is not installed, or lacks what it needs: the text says what."""


@dataclass
class Budget:
    """The time of a table.

    Attributes:
        device: whose clock counts.
        ends: its reading at which the table ends.
        repeats: of every arm; fewer where a group's share of the time is spent.
    """

    device: Device
    ends: float
    repeats: int = 30

    def left(self) -> float:
        return self.ends - self.device.now()


def measure(
    device: Device, arms: dict[str, Build], budget: Budget, seconds: float, reference: str = "products"
) -> dict[str, Row]:
    """A row per arm.

    Every arm is built, run once for its memory and once more; then all take turns until each has its repeats or the seconds
    are spent, at least once. An arm whose first run took longer than that is not run again: that run's wall time counts. An arm
    that fails is left out and says why.

    Args:
        arms: how to build each; `reference` is what ratios divide by.
        seconds: for the turns of these arms.

    Returns:
        By arm: `status` (`ok`, `memory`, `missing`, `error`, `time`), `detail`; where it ran `milliseconds` (median), `low`
        and `high` (20 and 80 %), `repeats`, `peak_mb`, `value`, and `ratio` to the reference of the same turns.
    """
    rows, ready, times = _first_runs(device, arms, budget, seconds)
    _take_turns(device, budget, seconds, rows, ready, times)
    for name in times:
        middle, low, high = quantiles(times[name])
        rows[name] |= {
            "milliseconds": 1e3 * middle,
            "low": 1e3 * low,
            "high": 1e3 * high,
            "repeats": len(times[name]),
        }
    if reference in times:
        for name in times:
            rows[name]["ratio"] = rows[name]["milliseconds"] / rows[reference]["milliseconds"]
    device.release()
    return rows


def _first_runs(
    device: Device, arms: dict[str, Build], budget: Budget, seconds: float
) -> tuple[dict[str, Row], dict[str, Run], dict[str, list[float]]]:
    """Build every arm and run it for its memory: rows, the arms that take turns, and the times of those that do not."""
    rows: dict[str, Row] = {}
    ready: dict[str, Run] = {}
    times: dict[str, list[float]] = {}
    for name, build in arms.items():
        if budget.left() <= 0:
            rows[name] = {"status": "time", "detail": "the table's time was up"}
            continue
        try:
            run = build()
            value: list[object] = []
            began = device.now()
            peak = device.peak(lambda run=run, value=value: value.append(run()))
            first = device.now() - began
            if first <= seconds:
                device.seconds(run)
        except Exception as error:
            rows[name] = failure(error)
            device.release()
            continue
        times[name] = [first] if first > seconds else []
        if first <= seconds:
            ready[name] = run
        rows[name] = {"status": "ok", "peak_mb": peak, "value": _number(value[0])}
    return rows, ready, times


def _take_turns(
    device: Device,
    budget: Budget,
    seconds: float,
    rows: dict[str, Row],
    ready: dict[str, Run],
    times: dict[str, list[float]],
) -> None:
    """Measure the ready arms in turn, into `times`. One that fails leaves `ready` and `times`, and its row says why."""
    until = min(device.now() + seconds, budget.ends)
    for turn in range(budget.repeats):
        if turn and device.now() > until:
            break
        for name in list(ready):
            try:
                times[name].append(device.seconds(ready[name]))
            except Exception as error:  # memory that lasted for the first calls only
                rows[name] = failure(error)
                del ready[name], times[name]
                device.release()


def failure(error: Exception) -> Row:
    """The row of an arm that did not run."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, Missing | ImportError):
        return {"status": "missing", "detail": text}
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in text.lower():
        return {"status": "memory", "detail": text}
    return {"status": "error", "detail": f"{type(error).__name__}: {text}"}


def _number(value: object) -> float | str:
    return float(value) if isinstance(value, torch.Tensor | float | int) else ""
