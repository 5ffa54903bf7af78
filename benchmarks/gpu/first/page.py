"""The report of a first run, as Markdown: what passed, failed or was skipped, the figures, and what to do next."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from benchmarks.gpu.first.runner import WRONG, Case, Row

MEANINGS = {
    "passed": "as expected",
    "failed": "wrong, or ended with an error",
    "crashed": "ended by a signal",
    "hung": "killed at its time limit",
    "skipped": "cannot run here",
    "time": "no time was left",
}


def text(cases: Sequence[Case], rows: Sequence[Row], command: str) -> str:
    """The whole report.

    Args:
        cases: what should be done.
        rows: results of the runner, in the order of the cases.
        command: what goes on where something had no time.
    """
    facts = next((row["facts"] for row in rows if "facts" in row), {})
    parts = [
        "# First run on a GPU",
        "\n".join(f"- {name}: {value}" for name, value in facts.items() if value != ""),
        _counts(rows),
        _wrong(cases, rows),
        _reasons(rows),
        _times(rows),
        "## What to do next\n\n" + "\n".join(f"{k}. {step}" for k, step in enumerate(next_steps(cases, rows, command), 1)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def next_steps(cases: Sequence[Case], rows: Sequence[Row], command: str) -> list[str]:
    """What to do, the most urgent first."""
    steps: list[str] = []
    status = {row["key"]: row["status"] for row in rows}
    if status.get("device/build", "passed") in WRONG:
        detail = next(row["detail"] for row in rows if row["key"] == "device/build")
        return [f"Build the kernels for this device, everything else needs them: {detail}.", f"Then run `{command}` again."]
    wrong = [case for case in cases if any(status.get(key) in WRONG for key in case.keys)]
    if wrong:
        steps.append(f"Begin with `{wrong[0].name}`: what failed later may follow from it. {wrong[0].advice}".strip())
        steps += [
            f"`{case.name}`: {case.advice}".strip() for case in wrong[1:] if case.advice and case.advice != wrong[0].advice
        ]
        steps.append(f"After a repair run `{command} --fresh`.")
    if "time" in status.values():
        steps.append(f"Run `{command}` again: it goes on with what had no time.")
    missing = sorted({row["detail"] for row in rows if row["status"] == "skipped" and "did not pass" not in row["detail"]})
    if missing:
        steps.append(f"Install what was missing if it matters, and run `{command}` again: {'; '.join(missing)}.")
    if not wrong and "time" not in status.values():
        steps.append("Run all tests for devices, `pytest -n 0 -m gpu tests`, and all tables, `python -m benchmarks gpu`.")
        steps.append("Compare the times with the plan on paper in `docs/design/cuda.md`, and profile what is farthest from it.")
    return steps


def line(row: Row) -> str:
    """A result as a line of the terminal."""
    return f"{row['status']:8} {row['seconds']:6.1f} s  {row['key']}  {row['detail'] or _figures(row)}"[:300].rstrip()


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    cells = [[entry.replace("|", "/") for entry in entries] for entries in [header, ["---"] * len(header), *lines]]
    return "\n".join("| " + " | ".join(entries) + " |" for entries in cells) if lines else ""


def _counts(rows: Sequence[Row]) -> str:
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    counts = {stage: Counter(row["status"] for row in rows if row["stage"] == stage) for stage in stages}
    header = ["stage", *MEANINGS]
    lines = [[stage, *(str(counts[stage][status] or "") for status in MEANINGS)] for stage in stages]
    meanings = ", ".join(f"{status}: {meaning}" for status, meaning in MEANINGS.items())
    return f"{_table(header, lines)}\n\n{meanings[0].upper()}{meanings[1:]}."


def _wrong(cases: Sequence[Case], rows: Sequence[Row]) -> str:
    case_of = {key: case for case in cases for key in case.keys}
    entries = []
    for row in rows:
        if row["status"] in WRONG:
            case = case_of[row["key"]]
            parts = [row["key"].removeprefix(f"{case.name}/")] if case.parts else []
            command = shlex.join(["python", *case.command[1:], *parts] if "python" in case.command[0] else case.command)
            settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in case.environment.items())
            entries.append(f"- `{row['key']}` {row['status']}: {row['detail']}\n  `{f'{settings} {command}'.strip()}`")
    return "## What went wrong\n\n" + "\n".join(entries) if entries else ""


def _reasons(rows: Sequence[Row]) -> str:
    keys_of: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] == "skipped":
            keys_of.setdefault(row["detail"], []).append(f"`{row['key']}`")
    lines = [f"- {reason}: {', '.join(keys[:8])}{' ...' if len(keys) > 8 else ''}" for reason, keys in keys_of.items()]
    return "## What was skipped\n\n" + "\n".join(lines) if lines else ""


def _figures(row: Row) -> str:
    arms = row.get("arms", {})
    return ", ".join(
        f"{name} {arm['milliseconds']:.3g} ms" if "milliseconds" in arm else f"{name}: {arm['status']}"
        for name, arm in arms.items()
    )


def _times(rows: Sequence[Row]) -> str:
    """A line per arm of everything that was timed."""
    lines = []
    for row in rows:
        products = row.get("arms", {}).get("products", {}).get("milliseconds")
        for name, arm in row.get("arms", {}).items():
            place = [str(row["case"]), str(row["n"]), str(row["d"]), name]
            if "milliseconds" not in arm:
                lines.append([*place, str(arm["status"]), "", "", ""])
                continue
            # arms of the evaluator take different numbers of queries: rates compare there
            times = arm["milliseconds"] / products if products and "gigapairs" not in arm else None
            rate = f"{arm['gigapairs']:.3g}" if "gigapairs" in arm else ""
            figures = [f"{arm['milliseconds']:.3g}", "" if times is None else f"{times:.3g}", rate, f"{arm['peak_mb']:.0f}"]
            lines.append([*place, *figures])
    header = ["case", "N", "d", "arm", "ms", "times the bare products", "gigapairs/s", "MB"]
    return "## Times and memory\n\n" + _table(header, lines) if lines else ""
