"""The report on fidelity to the publications: no row differs, and the page has every row."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from benchmarks.fidelity import page, rows  # noqa: E402


@pytest.mark.parametrize("title", page.PUBLICATIONS)
def test_no_row_differs_and_the_page_is_up_to_date(title: str) -> None:
    measured = page.PUBLICATIONS[title].rows()
    assert [row for row in measured if row.status == "differs"] == []
    written = page.PAGE.read_text(encoding="utf-8")
    for row in measured:
        assert f"| {row.component} | {row.source} | {row.ours} | {row.status} | " in written


def test_what_differs_is_seen() -> None:
    x, _ = rows.batch(0)
    apart = rows.distance(lambda e: e.square().sum(), lambda e: 1.001 * e.square().sum(), [x])
    assert rows.same("", "", "", apart).status == "differs"
    assert apart.cosine == pytest.approx(1) and apart.length == pytest.approx(1.001)
    assert rows.equal("", "", "", 1e-3, "").status == "differs"
