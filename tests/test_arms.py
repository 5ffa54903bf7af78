"""The comparison of ensembles with single losses that have the same tricks: cells, what comes after training, rules."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # last: an installed package stays what is compared

from benchmarks.arms import after, plan, report, rule, runs
from benchmarks.arms.data import prepare
from benchmarks.arms.plan import ARMS, SINGLES
from benchmarks.defaults.sets import SETS
from dmlcore.training import RunConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(24), 8)
    x = (rng.normal(size=(24, 280))[y] + rng.normal(size=(192, 280))).astype(np.float16)
    np.savez(path / "banking77_minilm.npz", x=x, y=y)
    pictures = rng.integers(0, 256, (192, 64, 64, 3), dtype=np.uint8)
    np.savez(path / "emoji_64.npz", x=pictures, y=y)
    return path


def _file(name: str, folder: Path, work: Path) -> str:
    return str(prepare(name, 0, folder, work))


def test_data_are_small_and_disjoint_in_classes(folder: Path, tmp_path: Path) -> None:
    with np.load(_file("emoji pictures", folder, tmp_path)) as arrays:
        assert arrays["x"].shape == (192, 16, 16, 3)
        parts = [set(arrays["y"][arrays["split"] == part]) for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [12, 4, 8] and len(set.union(*parts)) == 24


@pytest.mark.parametrize("name", ["emoji pictures", "intents"])
def test_every_cell_is_a_configuration_that_can_be_run(name: str, folder: Path, tmp_path: Path) -> None:
    file, kind = _file(name, folder, tmp_path), SETS[name].kind
    cells = [plan.single(name, kind, loss, 0) for loss in SINGLES]
    cells += [
        plan.cell(name, kind, arm, system, best, 0)
        for arm in ARMS.values()
        if plan.applies(arm, kind)
        for system in arm.systems
        for best in ("ms", "proxy_nca++")
    ]
    for cell in cells:
        settings = RunConfig.create(data=file, plugins=cell.losses, seed=0, **cell.settings).settings
        width = (settings.model.embedding_dim or 0) * (len(cell.losses) if settings.ensemble.has_heads else 1)
        assert settings.model.compress == plan.LENGTH and width in (255, 256), cell


def test_a_run_has_what_the_tables_need(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plan.STEPS, "features", 4)
    file = _file("intents", folder, tmp_path)
    row = runs.train_cell(plan.cell("intents", "features", ARMS["plain"], "same", "sup_con", 0), file)
    assert set(row["figures"]) == {"served", "raw", *plan.AFTER} and row["losses"] == ("sup_con",) * 3
    assert 0 < row["figures"]["whitened"]["test"]["MAP@R"] <= 100 and row["cpu_seconds"] > 0
    averaged = runs.train_cell(plan.cell("intents", "features", ARMS["soup"], "default", "proxy_nca++", 0), file)
    assert averaged["trained"] == list(plan.TRIO) and 0 < averaged["figures"]["served"]["test"]["MAP@R"] <= 100


def test_averaged_weights_are_the_mean() -> None:
    models: list[Any] = [torch.nn.Linear(2, 2) for _ in range(3)]
    mean = torch.stack([model.weight.detach().clone() for model in models]).mean(0)
    average: Any = after.averaged(models)
    assert torch.allclose(average.weight, mean)


def _row(data: str, arm: str, system: str, seed: int, test: float, validation: float = 50.0) -> dict[str, Any]:
    served = {"test": {"MAP@R": test, "R@1": test}, "validation": {"MAP@R": validation, "R@1": validation}}
    after_training = {name: {"test": {"MAP@R": test + 1, "R@1": test}} for name in plan.AFTER}
    return {
        "data": data, "arm": arm, "system": system, "seed": seed, "cpu_seconds": 2.0 if system == "wide" else 1.0,
        "figures": {"served": served, "raw": served, **after_training},
    }  # fmt: skip


@pytest.fixture
def rows() -> runs.Rows:
    """The default ahead of the controls by 2 on pictures and by 0.2 on tables, in all of three seeds but for a little."""
    lines = []
    for number, data in enumerate(plan.DATA):
        lead = 2.0 if SETS[data].kind == "images" else 0.2
        for seed in range(3):
            base, little = 40 + number + seed, 0.1 * seed
            for name in SINGLES:
                is_best = name == "ms"
                lines.append(_row(data, "single", name, seed, base if is_best else base + 9, 60 if is_best else 50))
            lines += [_row(data, "plain", "wide", seed, base), _row(data, "plain", "same", seed, base - 1, 49)]
            lines += [_row(data, "plain", "default", seed, base + lead + little), _row(data, "plain", "heads", seed, base)]
            lines.append(_row(data, "mixed", "default", seed, base + lead + little + 1.5 + 0.1 * number))
    return {(row["data"], row["arm"], row["system"], row["seed"]): row for row in lines}


def test_the_best_single_loss_is_chosen_on_validation(rows: runs.Rows) -> None:
    assert runs.best_single(rows, "glyphs") == "ms"
    assert rule.control(ARMS["layers"], "same") == ("layers", "same")
    assert rule.control(ARMS["layers"], "wide") == ("blocks", "wide")
    del rows["glyphs", "single", "circle", 0]
    assert runs.best_single(rows, "glyphs") is None


def test_an_ensemble_wins_only_where_the_rule_says(rows: runs.Rows) -> None:
    plain = next(v for v in rule.verdicts(rows) if (v.arm.name, v.system) == ("plain", "default"))
    assert (plain.pictures, plain.tables, plain.wins) == (4, 0, False)
    assert plain.wide.by_data["glyphs"] == pytest.approx([2.0, 2.1, 2.2])
    # the better control is `wide`, since `same` is worse on validation
    assert plain.lead.means["glyphs"] == pytest.approx(2.1)
    for data in ("emoji", "groceries"):
        for seed in range(3):
            rows[data, "plain", "default", seed]["figures"]["served"]["test"]["MAP@R"] += 2
    plain = next(v for v in rule.verdicts(rows) if (v.arm.name, v.system) == ("plain", "default"))
    assert (plain.pictures, plain.tables, plain.wins) == (4, 2, True)
    few = {key: row for key, row in rows.items() if key[3] < 2}
    assert not any(v.wins for v in rule.verdicts(few))  # no interval from two seeds


def test_a_trick_enters_the_default_by_gain_worst_and_cost(rows: runs.Rows) -> None:
    gain = rule.compare(rows, ("mixed", "default"), ("plain", "default"))
    p = rule.corrected([gain, rule.Comparison({})])
    assert p[0] < 0.05 and np.isnan(p[1])
    weak = rule.Comparison({"glyphs": [1.0], "emoji": [2.0], "intents": [4.0]})
    alone = rule.corrected([gain, weak])
    assert alone[1] == pytest.approx(weak.p) and alone[0] == pytest.approx(2 * gain.p)
    # what is added later is corrected over all, and changes nothing for those before it
    assert rule.corrected([weak, gain], [False, True]) == pytest.approx([weak.p, 2 * gain.p])
    assert rule.changes_default(gain, p[0], 1.5) and not rule.changes_default(gain, p[0], 1.6)
    assert not rule.changes_default(gain, 0.06, 1.0)
    assert not rule.changes_default(rule.Comparison({**gain.by_data, "emoji": [-1.6]}), p[0], 1.0)
    assert rule.cost(rows, ("mixed", "default")) == 1.0


def test_the_page_is_filled_from_results(rows: runs.Rows, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- table: {name} -->\nold\n<!-- end -->\n" for name in report.BLOCKS) + "kept\n")
    text = report.write(rows, page)
    assert "old" not in text and text.endswith("kept\n")
    assert "| default - wide | **+2.1 ± 0.2** |" in text and "no (4 of 4, 0 of 3)" in text
    assert "| default, mixed | **+1.80 ± 0.20** | 0.00 | +1.5 (glyphs) | 1.00 | becomes the default |" in text
    assert "| ms | **41.0** |" in text and "| circle | 50.0 |" in text
    assert "| default - wide, both whitened | +2.1 ± 0.2 |" in text.replace("**", "")
    assert "| default, whitened within the training classes before PCA | +1.0 ± 0.0 |" in text.replace("**", "")
    pytest.importorskip("matplotlib")
    assert report.draw(rows, tmp_path / "leads.svg").stat().st_size > 1000


def test_results_are_kept_and_a_cut_line_is_run_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: runs.Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    cell = plan.single("intents", "features", "ms", 0)
    file.write_text(json.dumps(rows[cell.key]) + "\n" + '{"cut')
    pool = runs.Pool(file, folder, tmp_path, 1, 1.0)
    printed = capsys.readouterr()
    assert pool.run([cell]) and printed.err == f"{file}: line 2 is damaged and was skipped\n" and printed.out == ""
    assert not runs.Pool(file, folder, tmp_path, 1, 1e-9).run([plan.single("intents", "features", "sup_con", 0)])
