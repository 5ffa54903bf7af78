"""What a report says, from numbers made up so that the answer is known."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from dmlcore.protocols.fewshot import analysis, report
from dmlcore.protocols.fewshot.analysis import Errors, orderings, paired, reduction, regrets, verdict
from dmlcore.reports.intervals import mean_and_half

ARMS = ("baseline", "weight_transfer", "hist_loss", "proto_net", "adap_hist_loss", "adap_proto_net")


def cell(errors: dict[str, dict[int, float]]) -> dict[str, Any]:
    return {"arms": {arm: {str(k): {"error": e} for k, e in shots.items()} for arm, shots in errors.items()}}


def errors_of(*replications: dict[str, dict[int, float]], n: int = 5) -> Errors:
    return Errors.read((n, number, cell(errors)) for number, errors in enumerate(replications))


def steady(values: tuple[float, ...], shift: float = 0.0) -> dict[str, dict[int, float]]:
    return {arm: {10: value + shift} for arm, value in zip(ARMS, values, strict=True)}


def test_means_and_paired_differences_by_hand() -> None:
    errors = errors_of(steady((0.5, 0.4, 0.4, 0.3, 0.2, 0.3)), steady((0.7, 0.4, 0.2, 0.3, 0.1, 0.2)))
    row = next(row for row in analysis.means(errors) if row["arm"] == "baseline")
    assert row["error"] == pytest.approx(0.6) and row["standard_error"] == pytest.approx(0.1) and row["count"] == 2
    rows = {(row["arm"], row["against"]): row for row in paired(errors)}
    row_of_pair = rows["adap_hist_loss", "hist_loss"]
    assert row_of_pair["difference"] == pytest.approx(0.15)
    assert row_of_pair["half"] == pytest.approx(mean_and_half([0.2, 0.1])[1]) and row_of_pair["verdict"] == "noise"
    assert ("adap_proto_net", "weight_transfer") in rows and len(rows) == 6


def test_pairs_are_of_the_same_replication_only() -> None:
    errors = Errors.read(
        [(5, 0, cell({"hist_loss": {5: 0.4}})), (5, 1, cell({"hist_loss": {5: 0.5}, "adap_hist_loss": {5: 0.1}}))]
    )
    assert errors.differences("adap_hist_loss", "hist_loss", (5, 5)) == [pytest.approx(0.4)]


def test_verdicts_need_an_interval_clear_of_zero() -> None:
    assert verdict(0.1, 0.05) == "better" and verdict(-0.1, 0.05) == "worse"
    assert verdict(0.1, 0.2) == "noise" and verdict(0.1, math.nan) == "noise"


def test_the_reduction_by_hand() -> None:
    errors = errors_of(steady((0.9, 0.5, 0.4, 0.6, 0.2, 0.4)), steady((0.9, 0.5, 0.4, 0.6, 0.3, 0.3)))
    result = reduction(errors)
    assert result is not None and result["places"] == 1 and result["left_out"] == 0
    by_replication = [(0.5 + 0.0) / 2, (0.25 + 0.25) / 2]  # the best without adaptation is hist_loss, 0.4
    assert result["mean"] == pytest.approx(statistics.fmean(by_replication))
    assert result["by_arm"]["adap_hist_loss"]["mean"] == pytest.approx(1 - 0.25 / 0.4)
    mean, half = mean_and_half([0.5, 0.25])
    assert result["by_arm"]["adap_hist_loss"] == {"mean": pytest.approx(mean), "half": pytest.approx(half)}


def test_the_reduction_is_a_mean_over_cells_with_any_number_of_replications() -> None:
    few = [(5, r, cell(steady((1, 1, 0.5, 1, 0.25, 0.25)))) for r in range(2)]
    many = [(9, r, cell(steady((1, 1, 0.5, 1, 0.5, 0.5)))) for r in range(8)]
    result = reduction(Errors.read([*few, *many]))
    assert result is not None and result["mean"] == pytest.approx((0.5 + 0.0) / 2)
    lone = reduction(Errors.read(few[:1]))
    assert lone is not None and lone["mean"] == pytest.approx(0.5) and math.isnan(lone["half"])
    assert reduction(Errors.read([(5, 0, cell({"hist_loss": {1: 0.2}}))])) is None
    perfect = reduction(Errors.read([(5, 0, cell(steady((0, 0, 0, 0, 0.1, 0.1)))), *many]))
    assert perfect is not None and perfect["left_out"] == 1 and perfect["mean"] == pytest.approx(0)


def test_other_losses_are_compared_with_all_arms_without_adaptation() -> None:
    errors = steady((0.9, 0.5, 0.4, 0.6, 0.2, 0.4)) | {"ms": {10: 0.2}, "adap_ms": {10: 0.15}}
    reductions = analysis.reductions_of_losses(errors_of(errors))
    assert list(reductions) == ["adap_ms"] and reductions["adap_ms"]["mean"] == pytest.approx(0.25)  # over ms itself


def test_intervals_of_independent_groups_are_those_of_welch() -> None:
    from scipy import stats

    first, second = [0.1, 0.4, 0.2, 0.5], [0.3, 0.9, 0.8]
    mean, half = analysis._combined([(first, 1.0), (second, -1.0)])
    low, high = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert mean == pytest.approx((low + high) / 2) and half == pytest.approx((high - low) / 2)


def test_orderings_are_counted_from_the_numbers() -> None:
    paper = [steady((0.6, 0.58, 0.4, 0.45, 0.2, 0.25), shift) for shift in (0.0, 0.01, -0.01, 0.02)]
    for number, errors in enumerate(paper):  # some spread between the arms too
        for arm in errors:
            errors[arm][10] += 0.001 * (len(arm) % 3) * number
            errors[arm][3] = errors[arm][10]
    rows = {row["claim"]: row for row in orderings(errors_of(*paper))}
    best = rows["the better hybrid errs less than every other method"]
    assert best["verdict"] == "holds" and best["holds"] == best["places"] == best["clear"] == 2
    small = rows["embeddings without adaptation err less than classifiers at k <= 5"]
    assert small["places"] == 1 and small["verdict"] == "holds"
    large = rows["classifiers err less than embeddings without adaptation at k > 5"]
    assert large["places"] == 1 and large["against"] == 1 and large["verdict"] == "does not hold"
    swapped = [steady((0.2, 0.58, 0.4, 0.45, 0.3, 0.35), shift) for shift in (0.0, 0.01, -0.01)]
    for number, errors in enumerate(swapped):
        errors["baseline"][10] += 0.001 * number
    rows = {row["claim"]: row for row in orderings(errors_of(*swapped))}
    assert rows["the better hybrid errs less than every other method"]["verdict"] == "does not hold"
    single = {row["claim"]: row for row in orderings(errors_of(paper[0]))}
    assert single["the better hybrid errs less than every other method"]["verdict"] == "undecided"


def test_regrets_are_distances_to_the_best() -> None:
    result = regrets(errors_of(steady((0.5, 0.4, 0.3, 0.6, 0, 0))), ARMS[:4])
    assert result["hist_loss"] == {"mean": 0, "worst": 0} and result["proto_net"]["worst"] == pytest.approx(0.3)


def test_the_page_has_every_arm_and_marks_the_least_error() -> None:
    errors = errors_of(steady((0.5, 0.4, 0.3, 0.6, 0.25, 0.2)), steady((0.5, 0.4, 0.3, 0.6, 0.25, 0.2), 0.02))
    lines = report.errors_table(analysis.means(errors))
    assert lines[0] == "| arm | n 5, k 10 |" and "| adap_proto_net | **21.0** ± 1.0 |" in lines
    assert len(lines) == 2 + len(ARMS)
    said = " ".join(report.describe_reduction(json.loads(json.dumps(reduction(errors)))))
    assert "the paper reports 34 %" in said and "1 pairs" in said


def test_the_benchmark_fills_its_page(tmp_path: Path) -> None:
    from benchmarks import fewshot

    errors = errors_of(steady((0.5, 0.4, 0.3, 0.6, 0.25, 0.2)), steady((0.5, 0.4, 0.3, 0.6, 0.25, 0.2), 0.02))
    part = {
        "means": analysis.means(errors),
        "paired": paired(errors),
        "reduction": reduction(errors),
        "reductions_of_losses": analysis.reductions_of_losses(errors),
        "orderings": orderings(errors),
        "regrets": regrets(errors, ARMS[:4]),
    }
    page = tmp_path / "page.md"
    marks = ["errors mnist", "paired mnist", "errors emoji", "orderings", "reductions", "regrets"]
    page.write_text("# Page\n" + "\n".join(f"<!-- table: {mark} -->\nstale\n<!-- end -->" for mark in marks) + "\nlast\n")
    for _ in range(2):  # filling again changes nothing
        fewshot.write_page({"parts": {"mnist": part}}, page)
        text = page.read_text()
        assert text.startswith("# Page\n") and text.endswith("\nlast\n") and "stale" not in text
        assert "**21.0** ± 1.0" in text and "Not measured." in text and "| claim | mnist |" in text
    assert fewshot.draw({"parts": {"mnist": part}}, tmp_path / "curves.svg").exists()


def test_the_grids_of_the_benchmark_can_be_run() -> None:
    from benchmarks import fewshot
    from dmlcore.protocols.fewshot import grid

    part = next(part for part in fewshot.PARTS if part.name == "glyphs")
    for quick in (False, True):
        grids = part.grids(None, quick)
        grid.check(grids[0])
        assert [part_grid.numbers[0] for part_grid in grids] == ([5] if quick else [5, 10, 100])
    assert {name for name in fewshot.MAIN} <= {part.name for part in fewshot.PARTS}
    assert all(count >= 10 for part in fewshot.PARTS for n, count in part.replications.items() if n <= 10)
