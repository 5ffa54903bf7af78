"""The page of a run and the page that compares runs: what they say is right, they open in a browser, and nothing in the data
can do anything there.
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import after_clicks, document, needs_browser
from data_files import image_folder

from dmlcore.cli import main
from dmlcore.data import FeatureStore, LabelledDataset
from dmlcore.errors import ConfigError
from dmlcore.evaluation import inspection, retrieval_metrics
from dmlcore.reports import curves, run_facts
from dmlcore.reports.comparison_page import difference
from dmlcore.reports.run_facts import RunFacts
from dmlcore.reports.run_page import run_page
from dmlcore.serving import TrainedRun, write_report
from dmlcore.serving.report import gather_run
from dmlcore.training import Logger, reporting, train

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "</script><b>", "\x1b[31mred\u202e", "a&b'c"]
SMALL = {"plugins": "ms,triplet", "steps": 6, "eval_every": 3, "log_every": 2, "classes_per_batch": 8, "embedding_dim": 8}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    """30 classes of 6 overlapping feature vectors; some names are hostile, and every class comes into the test part once."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 6)
    centres = generator.normal(size=(30, 12))
    names = np.array([HOSTILE[label % 6] + str(label) if label % 6 < len(HOSTILE) else f"class {label}" for label in range(30)])
    path = tmp_path_factory.mktemp("data") / "features.npz"
    np.savez(path, x=(centres[labels] + generator.normal(size=(180, 12))).astype(np.float32), y=names[labels])
    return str(path)


@pytest.fixture(scope="module")
def run(features: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a<b>&c"
    train(data=features, out=folder, **SMALL)
    return folder


@pytest.fixture(scope="module")
def other(features: str, run: Path) -> Path:
    train(data=features, out=run.parent / "other", **{**SMALL, "plugins": "contrastive", "steps": 9})
    return run.parent / "other"


def text_of(page: Path | str) -> str:
    """What a reader sees, without the script, the style and the data."""
    text = page.read_text(encoding="utf-8") if isinstance(page, Path) else page
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def values_of(page: Path) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="values">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)
    assert match is not None
    return json.loads(match[1])


def test_every_run_ends_with_a_page_that_says_its_result(run: Path) -> None:
    page, result = run / "report.html", TrainedRun(run).folder.read_result()
    text = text_of(page)
    for part in ("validation", "test"):
        assert f"{result['metrics'][part]['map@r']:.3f}" in text
    for name, values in result["baselines"].items():
        assert name in text
        assert f"{values['test']['map@r']:.3f}" in text
    for word in ("ms.alpha", "learning_rate", "torch", "dmlcore eval", "samples", "Cosines between"):
        assert word in text, word
    assert f"--config '{run}'/config.toml" in text, "a folder's name is quoted for the shell"
    drawn = {name for chart in values_of(page)["charts"] for name, _, _ in chart}
    roles = set(next(r["learning_rates"] for r in TrainedRun(run).folder.records() if r["kind"] == "step"))
    assert roles and {"total", "ms", "triplet", "R@1", "MAP@R", "ms, triplet", *roles} <= drawn


def test_the_page_needs_nothing_else(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    assert (
        not re.search(r'(?:src|href)="(?!#|data:)', text)
        and "http:" not in text
        and "https:" not in text
        and "@import" not in text
    )
    assert "default-src 'none'" in text


def test_names_from_the_data_are_text(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    classes = [entry[0] for entry in values_of(run / "report.html")["classes"].values()]
    assert any(name.startswith("<script>") for name in classes), "the test needs a hostile class in the test part"
    assert len(re.findall(r"<script\b", text)) == 2 and "<img src=x" not in text and "a<b>" not in text
    assert "\x1b" not in text and "\u202e" not in text


def test_the_report_can_be_left_out(features: str, tmp_path: Path) -> None:
    train(data=features, out=tmp_path / "run", report=False, **SMALL)
    assert not (tmp_path / "run" / "report.html").exists()
    assert write_report([tmp_path / "run"]).exists()


def test_a_run_that_is_trained_on_keeps_no_old_page(features: str, tmp_path: Path) -> None:
    train(data=features, out=tmp_path / "run", **SMALL)
    train(resume=tmp_path / "run", steps=8)
    assert "8 steps" in text_of(tmp_path / "run" / "report.html")
    train(resume=tmp_path / "run", steps=9, report=False)
    assert not (tmp_path / "run" / "report.html").exists()


class Notes(Logger):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("error", [RuntimeError("out of paper"), KeyboardInterrupt()])
def test_a_page_that_fails_breaks_no_run(
    features: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(facts: RunFacts) -> Path:
        raise error

    monkeypatch.setattr(reporting, "write_page", fail)
    notes = Notes()
    result = train(data=features, out=tmp_path / "run", loggers=[notes], **SMALL)
    assert result["metrics"]["test"] and (tmp_path / "run" / "result.json").exists()
    (line,) = [line for line in notes.lines if line.startswith("warning")]
    assert "dmlcore report" in line and ("out of paper" in line or "interrupted" in line)


def test_an_unfinished_run_shows_validation_classes_only(features: str, tmp_path: Path) -> None:
    class Stop(Logger):
        def step_ended(self, run: Any, record: dict[str, Any]) -> None:
            if record["step"] == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data=features, out=tmp_path / "run", loggers=[Stop()], **SMALL)
    assert not (tmp_path / "run" / "report.html").exists()
    path = write_report([tmp_path / "run"], tmp_path / "page.html")
    assert "not finished" in text_of(path) and "--resume" in text_of(path)
    splits = TrainedRun(tmp_path / "run").open()
    shown = {entry[0] for entry in values_of(path)["classes"].values()}
    assert shown and shown <= set(splits.validation.class_names)


def test_pictures_are_kept_once_and_few(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos", classes=12, samples=4, mode="RGB", size=(60, 40))
    train(data=str(folder), out=tmp_path / "run", **{**SMALL, "steps": 1})
    page = tmp_path / "run" / "report.html"
    values, text = values_of(page), page.read_text(encoding="utf-8")
    shown = set(re.findall(r'data-s="(\d+)"', text))
    assert shown and shown <= set(values["pictures"])
    assert all(address.startswith("data:image/") for address in values["pictures"].values())
    assert text.count("base64,") == len(values["pictures"]) <= 4 * 12
    for _, samples, _, _, positions, _ in values["classes"].values():
        assert samples == 4 and positions
    if "class 1/" in text:
        assert re.search(r'title="class \d+/\d.png"', text), "a picture names its file"


@needs_browser
def test_the_page_in_a_browser(run: Path, tmp_path: Path) -> None:
    text = document(run / "report.html", tmp_path)
    assert len(re.findall(r"<script\b", text)) == 2 and not re.search(r"<img[^>]+onerror", text)
    script = """
    const text = node => node.textContent;
    const panel = page.getElementById("opened");
    answers.push(panel.hidden);
    page.querySelector("#classes .of-class").click();
    answers.push(panel.hidden, text(panel.querySelector("h3")) === text(page.querySelector("#classes .of-class")));
    answers.push(page.querySelectorAll(".plane circle.picked").length);
    const heads = [...page.querySelectorAll("#classes th")];
    const column = index => [...page.querySelectorAll("#classes tbody tr")].map(row => text(row.cells[index]));
    heads[3].querySelector("button").click();
    answers.push(column(3));
    heads[3].querySelector("button").click();
    answers.push(column(3));
    heads[0].querySelector("button").click();
    answers.push(column(0));
    const legend = page.querySelector(".legend button");
    legend.click();
    answers.push(page.querySelectorAll(".curve.off").length);
    answers.push(page.querySelectorAll("script, iframe, img[src^=x]").length);
    answers.push(page.documentElement.scrollWidth <= page.documentElement.clientWidth);
    """
    hidden, opened_hidden, is_same, points, down, up, names, off, scripts, fits = after_clicks(
        run / "report.html", tmp_path, script
    )
    assert hidden and not opened_hidden and is_same and points == 6
    assert [float(value) for value in down] == sorted(map(float, down), reverse=True) and down != up
    assert [float(value) for value in up] == sorted(map(float, up)) and len(names) == len(set(names)) == len(up)
    assert off == 1 and scripts == 2 and fits


def test_several_runs_are_compared(run: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "page.html"
    assert main(["report", str(run), str(other), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(out)
    text = text_of(out)
    assert text.index("Differing settings") < text.index("Results") < text.index("Paired differences")
    assert "contrastive" in text and "eval_every" not in text, "settings that agree are left out"
    first, second = gather_run(run), gather_run(other)
    gain = difference(first, second, "map_at_r")
    a, b = (facts.view.scores.map_at_r for facts in (first, second) if facts.view is not None)
    assert gain.classes == len(a) and gain.mean == pytest.approx((b - a).mean())
    assert gain.better == (b > a).sum() and gain.worse == (b < a).sum()
    assert f"{gain.mean:+.3f}" in text and f"{gain.mean - gain.half:+.3f} to {gain.mean + gain.half:+.3f}" in text
    assert "<script>alert" not in out.read_text(encoding="utf-8")


def test_mistakes_are_one_line(run: Path, tmp_path: Path) -> None:
    for runs, out, words in (
        ([], None, "no run is given"),
        ([run, run], None, "given twice"),
        ([tmp_path], None, "there is no run"),
        ([run], tmp_path / "page.pdf", "must end in .html"),
    ):
        with pytest.raises(ConfigError, match=words):
            write_report(runs, out)


def test_queries_by_themselves_agree_with_the_means() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 40, (300,), generator=generator).numpy()
    for embeddings in (
        torch.randn(300, 5, generator=generator),
        torch.randn(300, 2, generator=generator).round(),  # many ties
        torch.randn(300, 5, generator=generator) * 1e-3 + 1,  # a narrow cone
        torch.zeros(300, 3),
    ):
        means, inspected = retrieval_metrics(embeddings, labels), inspection.inspect(embeddings, labels)
        assert np.nanmean(inspected.recall) == pytest.approx(means["recall@1"], abs=1e-12)
        assert np.nanmean(inspected.map_at_r) == pytest.approx(means["map@r"], abs=1e-12)
        assert (inspected.neighbours != inspected.queries[:, None]).all()
        scores = inspection.class_scores(inspected, np.unique(labels, return_inverse=True)[1])
        total = np.nansum(scores.map_at_r * scores.queries) / scores.queries.sum()
        assert total == pytest.approx(means["map@r"])


def test_confusions_are_counted() -> None:
    # On a line of angles: two of class 0 sit beside two of class 1, and a pair of class 2 is alone.
    angles = torch.tensor([0.0, 0.01, 1.0, 1.01, 0.011, 1.011])
    labels = np.array([0, 1, 2, 2, 1, 0])
    inspected = inspection.inspect(torch.stack([angles.cos(), angles.sin()], 1), labels)
    pairs = inspection.confusions(inspected, labels)
    assert [(c.of, c.taken_for, c.count) for c in pairs] == [(0, 1, 1), (0, 2, 1), (2, 0, 1)]
    assert pairs[0].share == 0.5 and pairs[0].examples == (0, 1)


def test_few_of_many_queries_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "FEWEST_QUERIES", 20)
    inspected = inspection.inspect(torch.randn(500, 4), np.repeat(np.arange(100), 5), cells=100)
    assert len(inspected.queries) == 20 and inspected.queries[0] == 0 and inspected.queries[-1] == 499
    assert inspected.neighbours.shape == (20, 8)


def test_many_samples_and_classes_make_no_large_page(run: Path) -> None:
    count, classes = 60_000, 20_000
    labels = np.arange(count) % classes
    names = [f"a rather long name of the class number {label}" * 4 for label in range(classes)]
    dataset = LabelledDataset(FeatureStore(np.zeros((count, 4), np.float32)), np.arange(count), labels, names, (4,))
    embeddings = torch.nn.functional.one_hot(torch.from_numpy(labels) % 8, 8) + 0.3 * torch.randn(count, 8)
    inspected = inspection.inspect(embeddings, labels, cells=1)
    view = run_facts.PartView(
        "test",
        dataset,
        [str(row) for row in range(count)],
        embeddings,
        inspected,
        inspection.class_scores(inspected, labels),
        None,
        inspection.confusions(inspected, labels),
    )
    records = [{"kind": "step", "step": step, "total": 1 / step, "terms": {"ms": 0.5}} for step in range(1, 20_001)]
    page = run_page(replace(gather_run(run), view=view, records=records))
    assert len(page) < 5_000_000
    assert b"2,000 of 20,000 classes" in page and b"2,000 of 60,000" in page


def test_curves_are_thinned_by_means() -> None:
    records = [{"kind": "step", "step": step, "total": float(step % 2), "terms": {"x": 1.0}} for step in range(1, 3001)]
    records.append({"kind": "step", "step": 3001, "total": None, "terms": {"x": float("nan")}})
    charts = curves.charts_of_run(records)
    (losses,) = [chart for chart in charts if chart.title == "Losses"]
    assert [curve.name for curve in losses.curves] == ["total", "x"]
    assert len(losses.curves[0].steps) == curves.POINTS and set(losses.curves[0].values) == {0.5}
    assert "NaN" not in curves.draw(charts) and "nan" not in curves.draw(charts)


@pytest.mark.parametrize(
    "ends", [(0.0, 1.0), (3.0, 3.0), (0.0, 0.0), (-5.0, -5.0), (1e-6, 1e5), (0.99991, 0.99993), (-2.0, 7e6)]
)
def test_axes_have_a_few_round_numbers(ends: tuple[float, float]) -> None:
    chart = curves.Chart("x", [curves.Curve("c", [1, 2], list(ends))])
    picture = curves.draw([chart])
    assert 2 <= picture.count('text-anchor="end">') <= 9
    places = [float(y) for y in re.findall(r'<text x="46" y="([-\d.]+)"', picture)]
    assert all(0 <= y <= curves.HEIGHT for y in places) and len(places) == len(set(places))
