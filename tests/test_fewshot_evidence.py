"""The page of few-shot transfer says what its stored results say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # last: an installed package stays what is measured

from benchmarks import fewshot  # noqa: E402

STORED = ROOT / "benchmarks" / "results" / "fewshot.json"


def test_the_page_shows_the_stored_results(tmp_path: Path) -> None:
    stored = json.loads(STORED.read_text())
    assert set(stored["parts"]) == {part.name for part in fewshot.PARTS}
    page = tmp_path / "fewshot.md"
    text = fewshot.PAGE.read_text(encoding="utf-8")
    page.write_text(text, encoding="utf-8")
    fewshot.write_page(stored, page)
    assert page.read_text(encoding="utf-8") == text, "docs/reports/fewshot.md differs from benchmarks/results/fewshot.json"


def test_the_means_are_those_of_the_stored_errors() -> None:
    for name, part in json.loads(STORED.read_text())["parts"].items():
        for row in part["means"]:
            errors = part["errors"][row["arm"]][f"n{row['n']} k{row['k']}"]
            assert abs(sum(errors) / len(errors) - row["error"]) < 2e-5, (name, row)
            assert len(errors) >= (10 if row["n"] <= 10 else 5)
