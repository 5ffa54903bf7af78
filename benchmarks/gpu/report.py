"""The tables of docs/reports/performance.md on GPUs, from the rows of `python -m benchmarks gpu`."""

from __future__ import annotations

from benchmarks.gpu.losses import CASES
from benchmarks.measuring import Row

NOTHING = "No figure was measured on a GPU: they are missing, not forgotten."


def gpu(rows: list[Row]) -> str:
    """Everything measured, or that there is nothing."""
    if not any(row["table"] in ("losses", "calls", "infonce", "evaluation") and row["status"] == "ok" for row in rows):
        return NOTHING
    parts = ["\n".join(f"- {name}: {', '.join(_values(rows, name))}" for name in ("device", "driver", "torch", "commit"))]
    wrong = [row for row in rows if row["table"] in ("build", "correctness") and row["status"] == "error"]
    parts += [f"Failed checks: {', '.join(str(row['case']) for row in wrong)}"] if wrong else []
    parts += [*_losses(rows), _calls(rows), _rates(rows, "infonce", "ratio"), _rates(rows, "evaluation", "gigapairs")]
    return "\n\n".join(part for part in parts if part)


def _values(rows: list[Row], name: str) -> list[str]:
    return sorted({str(row[name]) for row in rows if row.get(name)})


def _table(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(entries) + " |" for entries in [header, ["---"] * len(header), *lines]) if lines else ""


def _time(row: Row | None) -> float | None:
    return float(row["milliseconds"]) if row and row["status"] == "ok" and row.get("milliseconds") else None


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _losses(rows: list[Row]) -> list[str]:
    high_precision = [
        row for row in rows if row["table"] == "losses" and row["dtype"] == "float32" and row["precision"] == "high"
    ]
    rows_of: dict[tuple[str, ...], list[Row]] = {}
    for row in high_precision:
        rows_of.setdefault(tuple(str(row[name]) for name in ("case", "rival", "n", "d")), []).append(row)

    def ratio(case: str, rival: str, n: str, d: str) -> str:
        theirs = rows_of.get((case, rival, n, d), [])
        if theirs and theirs[-1]["status"] == "memory":
            return "memory"
        # of the rows that were measured in turn with it
        place = [k for k, row in enumerate(high_precision) if theirs and row is theirs[-1]]
        own = [row for row in high_precision[: place[0]] if row["rival"] == "fused"] if place else []
        own_time, rival_time = _time(own[-1]) if own else None, _time(theirs[-1]) if theirs else None
        return "-" if own_time is None or rival_time is None else f"{rival_time / own_time:.3g}"

    parts = []
    for d in sorted({str(row["d"]) for row in high_precision}, key=int):
        sizes = sorted({str(row["n"]) for row in high_precision if str(row["d"]) == d}, key=int)
        lines = []
        for case in CASES:
            entries = []
            for n in sizes:
                fused = next((row for row in rows_of.get((case, "fused", n, d), []) if row["status"] == "ok"), None)
                bare = _figure(float(fused["ratio"])) if fused and fused.get("ratio") else "-"
                texts = [_figure(_time(fused)), bare, ratio(case, "compiled", n, d), ratio(case, "pml", n, d)]
                entries.append(" / ".join(texts))
            lines.append([case, *entries])
        legend = f"d = {d}: milliseconds / times the bare products / torch.compile and pytorch-metric-learning, times fused"
        parts.append(f"{legend}\n\n" + _table(["case", *(f"N = {n}" for n in sizes)], lines))
    return parts


def _calls(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        if row["table"] == "calls" and row["status"] == "ok":
            times = [_figure(1e3 * float(row[name])) for name in ("milliseconds", "device_ms")]
            lines.append([*(str(row[name]) for name in ("case", "rival", "n", "d")), *times])
    return _table(["case", "call", "N", "d", "per call, us", "on the device, us"], lines)


def _rates(rows: list[Row], table: str, figure: str) -> str:
    noun = {"ratio": "times the bare products", "gigapairs": "gigapairs/s"}[figure]
    lines = [
        [table, str(row["rival"]), str(row["n"]), str(row["d"]), _figure(_time(row)), _figure(float(row.get(figure) or "nan"))]
        if row["status"] == "ok"
        else [table, str(row["rival"]), str(row["n"]), str(row["d"]), str(row["status"]), ""]
        for row in rows
        if row["table"] == table
    ]
    return _table(["table", "rival", "N", "d", "ms", noun], lines)
