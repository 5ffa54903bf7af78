"""docs/reports/fidelity.md from the rows of all publications."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.fidelity import adapted, deviations, ensembles, loaders, measures, shift, sphere, tested, training
from benchmarks.fidelity.rows import Row

PAGE = Path(__file__).parents[2] / "docs" / "reports" / "fidelity.md"
PUBLICATIONS = {
    "The ensemble of losses": ensembles,
    "The spherical embedding constraint": sphere,
    "Distribution shift: ooDML": shift,
    "Adapted deep embeddings": adapted,
    "How the recipes train": training,
    "Defaults that are other forms": deviations,
    "Published data sets": loaders,
    "What is measured": measures,
    "Networks, pictures and procedures": tested,
}
HEADER = """# Fidelity to the publications

`python -m benchmarks fidelity` makes this page. It compares dmlcore with the equations of the publications that it implements,
row by row. The equations are transcribed anew from the papers in `benchmarks/fidelity`, mostly as plain loops.

- **agrees**: the same values and the same gradients in float64, or the same numbers. The last column says how far apart they
  are, relative to the published one.
- **documented**: dmlcore deviates on purpose. The last column says by how much, or what the effect is.
- **differs** is a fault. `tests/test_fidelity.py` refuses it.

What cannot be checked here needs the published data or weights: the tables of results of the publications.
"""


def measure() -> dict[str, list[Row]]:
    """The rows of every publication."""
    return {title: module.rows() for title, module in PUBLICATIONS.items()}


def text(measured: dict[str, Sequence[Row]]) -> str:
    """The page."""
    parts = [HEADER]
    for title, rows in measured.items():
        lines = ["| published | where | here | result | measured |", "| --- | --- | --- | --- | --- |"]
        lines += [f"| {r.component} | {r.source} | {r.ours} | {r.status} | {r.evidence} |" for r in rows]
        parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def run() -> list[Row]:
    """Measure, write the page, and return the rows that differ."""
    measured = measure()
    PAGE.write_text(text(measured), encoding="utf-8")
    return [row for rows in measured.values() for row in rows if row.status == "differs"]
