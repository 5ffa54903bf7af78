"""The page of one run: `report.html`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dmlcore.config import flat_values
from dmlcore.evaluation.result_table import columns_of, table_rows
from dmlcore.reports import curves
from dmlcore.reports.html import Raw, commands, escape, facts, number, page, table
from dmlcore.reports.pictured import Pictured
from dmlcore.reports.projection import projections
from dmlcore.reports.run_facts import PartView, RunFacts

CLASSES = 2_000  # rows of the table of classes
GALLERY, WORST = 10, 12  # queries shown
POINT_RADIUS = 4
PLANE = 520  # side of the picture of the embedding


def run_page(run: RunFacts) -> bytes:
    """The page as a file's content, below 5 MB for any number of samples."""
    charts = curves.charts_of_run(run.records)
    data: dict[str, Any] = {"charts": [curves.values_of(chart) for chart in charts]}
    sections = [
        ("Result", _result(run)),
        ("Curves", curves.draw(charts)),
    ]
    if run.view is not None:
        pictures = Pictured(run.view)
        sections += [
            ("Embedding", _embedding(run.view, pictures, with_umap=run.with_umap)),
            ("Neighbours", _neighbours(run.view, pictures)),
            ("Worst queries", _worst(run.view, pictures)),
            ("Confusions", _confusions(run.view, pictures)),
            ("Classes", _classes(run.view, pictures)) if run.view.label_scores is None else ("Labels", _labels(run.view)),
        ]
        data |= pictures.for_script()
    sections += [
        ("Settings", f'<div class="tall">{settings_table([run.settings])}</div>'),
        ("Data", _data(run)),
        ("Environment", facts(run.environment.items())),
        ("Commands", commands(_commands(run))),
    ]
    return page(f"Run {run.name}", _about(run), sections, data)


def _about(run: RunFacts) -> str:
    losses = ", ".join(map(str, run.settings.get("plugins", ())))
    state = f"{run.result['steps']:,} steps" if run.result else "not finished: test classes are not looked at before the end"
    view = f", here on its {run.view.name} classes" if run.view else ""
    about = f"{losses} on {run.data['name']}. {state}. Model of step {run.step:,}{view}."
    return f'<p class="about">{escape(about)}</p>'


def _result(run: RunFacts) -> str:
    if run.result is None:
        best = max((r for r in run.records if r.get("kind") == "evaluation"), key=lambda r: r.get("map@r") or 0, default=None)
        shown = columns_of({"validation": best or {}})
        rows = [("validation, best so far", *(best.get(key) for key in shown.values()))] if best else []
        return table(["", *shown], rows, kind="results")
    result = run.result
    shown = columns_of(result["metrics"])
    rows = [
        (Raw(f'<span class="below">{escape(label)}</span>') if label.startswith(" ") else label, *values)
        for label, values in table_rows(result["metrics"], result["baselines"], measures=tuple(shown.values()))
    ]
    parts = [table(["", *shown], rows, kind="results")]
    further = {part: {key: v for key, v in values.items() if "." in key} for part, values in result["metrics"].items()}
    if names := list(dict.fromkeys(name for values in further.values() for name in values)):
        parts.append(table(["further measures", *names], [(p, *(v.get(n) for n in names)) for p, v in further.items()]))
    for part in next(iter(result.get("embeddings", {}).values()), {}):
        rows = [
            (name, int(values[part]["embedding_dim"]), *(values[part].get(key) for key in shown.values()))
            for name, values in result["embeddings"].items()
        ]
        parts.append(table([f"{part}, by embedding", "length", *shown], rows))
    chosen = f"The checkpoint of step {result['chosen_step']:,} was chosen by {result['chosen_by'].replace('map@r', 'MAP@R')}."
    trained = run.data.get("test_classes_trained_on", 0)
    seen = (
        f"{trained:,} of the test classes were trained on, with other samples"
        if trained
        else "Test classes were never trained on"
    )
    parts.append(f"<p>{escape(chosen)} {seen}. It took {result['wall_seconds']:,.0f} s.</p>")
    parts += [f'<p class="warning">{escape(text)}</p>' for text in result.get("warnings", ())]
    return "".join(parts)


def _embedding(view: PartView, pictures: Pictured, *, with_umap: bool) -> str:
    positions, places = projections(view.embeddings, with_umap=with_umap)
    classes = view.dataset.dense_labels[positions]
    pictures.mention(classes)
    figures = []
    for index, (name, plane) in enumerate(places.items()):
        margin, size = 2 * POINT_RADIUS, PLANE - 4 * POINT_RADIUS
        points = "".join(
            f'<circle cx="{margin + x * size:.1f}" cy="{margin + (1 - y) * size:.1f}" r="{POINT_RADIUS}" data-class="{label}"'
            f' fill="hsl({label * 137.508 % 360:.0f} 65% {(45, 60, 35)[label % 3]}%)"/>'
            for (x, y), label in zip(plane, classes, strict=True)
        )
        hidden = " hidden" if index else ""
        figures.append(
            f'<figure class="plane"{hidden}><figcaption>{escape(name)}</figcaption>'
            f'<svg viewBox="0 0 {PLANE} {PLANE}" role="img" aria-label="{escape(name)}">{points}</svg></figure>'
        )
    switch = '<button type="button" class="switch">Other picture</button>' if len(figures) > 1 else ""
    count = f"{len(positions):,} of {len(view.dataset):,}" if len(positions) < len(view.dataset) else f"{len(positions):,}"
    return (
        f"<p>Embeddings of {count} samples of the {escape(view.name)} classes. A colour is a class, as far as colours differ."
        f' Click a point to see its class. {switch}</p>{"".join(figures)}<p class="read" id="point">&nbsp;</p>'
    )


def _neighbours(view: PartView, pictures: Pictured) -> str:
    rows = np.unique(np.linspace(0, len(view.inspected.queries) - 1, GALLERY).round().astype(int))
    return (
        "<p>A query at the left, and the samples most similar to it. Green: "
        + ("of its class. Red: of another.</p>" if view.label_scores is None else "with a common label. Red: without.</p>")
        + _strips(view, pictures, rows)
    )


def _worst(view: PartView, pictures: Pictured) -> str:
    inspected = view.inspected
    counted = np.flatnonzero(inspected.positives > 0)
    # Of equal measures, the query that is surest of a wrong answer.
    order = np.lexsort((-inspected.similarities[counted, 0], inspected.map_at_r[counted]))
    rows = counted[order]
    of = view.dataset.dense_labels[inspected.queries[rows]]
    _, first = np.unique(of, return_index=True)  # one of a class, so that one bad class does not fill the list
    rows = rows[np.sort(first)][:WORST]
    return (
        "<p>The queries with the lowest MAP@R, one of a class. Wrong labels and unclear samples often show here.</p>"
        + _strips(view, pictures, rows)
    )


def _strips(view: PartView, pictures: Pictured, rows: Iterable[int]) -> str:
    lines = []
    for row in rows:
        query = int(view.inspected.queries[row])
        cells = [pictures.sample(query)]
        found = (view.inspected.neighbours[row], view.inspected.similarities[row], view.inspected.is_right[row])
        for near, cosine, is_right in zip(*found, strict=True):
            mark = "right" if is_right else "wrong"
            cells.append(pictures.sample(int(near), mark, f"cosine {round(float(cosine), 2) + 0.0:.2f}"))
        score = view.inspected.map_at_r[row]
        query_cell = f'<div class="query">{cells[0]}<small>MAP@R {number(score, 2)}</small></div>'
        lines.append(f'<div class="strip">{query_cell}{"".join(cells[1:])}</div>')
    return f'<div class="strips">{"".join(lines)}</div>'


def _confusions(view: PartView, pictures: Pictured) -> str:
    if view.confusions is None:
        return (
            "<p>Samples have several labels, so none is simply taken for another. The table of labels shows the weak ones.</p>"
        )
    if not view.confusions:
        return "<p>Every nearest neighbour is of the query's class.</p>"
    rows = [
        (
            pictures.class_link(confusion.of),
            pictures.class_link(confusion.taken_for),
            confusion.count,
            Raw(f"{confusion.share:.0%}"),
            Raw(f'<div class="pair">{pictures.sample(confusion.examples[0])}{pictures.sample(confusion.examples[1])}</div>'),
        )
        for confusion in view.confusions
    ]
    return "<p>Queries whose nearest neighbour is of another class, by pairs of classes.</p>" + table(
        ["class", "taken for", "queries", "of the class", "most similar pair"], rows
    )


def _labels(view: PartView) -> str:
    """The table of labels, where samples have several."""
    scores, dataset = view.label_scores, view.dataset
    assert scores is not None
    sizes = np.bincount(dataset.judged_sets().index, minlength=len(dataset.label_names))
    present = np.flatnonzero(sizes)
    order = present[np.argsort(scores.map_at_r[present], kind="stable")][:CLASSES]
    rows = [
        (dataset.label_names[label], int(sizes[label]), float(scores.recall[label]), float(scores.map_at_r[label]))
        for label in order
    ]
    notes = "A sample counts for each of its labels. Click a heading to sort."
    if len(order) < len(present):
        notes += f" The {len(order):,} of {len(present):,} labels with the lowest MAP@R."
    return f'<p>{notes}</p><div class="tall">{table(["label", "samples", "R@1", "MAP@R"], rows, sorts=True)}</div>'


def _classes(view: PartView, pictures: Pictured) -> str:
    sizes = np.bincount(view.dataset.dense_labels, minlength=view.dataset.num_classes)
    order = np.argsort(view.scores.map_at_r, kind="stable")[:CLASSES]  # NaN, of classes without a query, at the end
    rows = [
        (
            pictures.class_link(int(label)),
            int(sizes[label]),
            float(view.scores.recall[label]),
            float(view.scores.map_at_r[label]),
        )
        for label in order
    ]
    notes = "Click a heading to sort, a name to see the class."
    if len(order) < view.dataset.num_classes:
        notes += f" The {len(order):,} of {view.dataset.num_classes:,} classes with the lowest MAP@R."
    if len(view.inspected.queries) < len(view.dataset):
        notes += f" Measured by a sample of {len(view.inspected.queries):,} of {len(view.dataset):,} queries."
    return f'<p>{notes}</p><div class="tall">{table(["class", "samples", "R@1", "MAP@R"], rows, sorts=True)}</div>'


def settings_table(settings: Sequence[dict[str, Any]], names: Sequence[str] = ("value",)) -> str:
    """Settings and options by key, a column per run."""
    flat = [flat_values(values) for values in settings]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    return table(["setting", *names], [(key, *(values.get(key, "–") for values in flat)) for key in keys], kind="settings")


def _data(run: RunFacts) -> str:
    noun = "labels" if "labels" in run.data["parts"]["train"] else "classes"
    rows = [(part, int(counts[noun]), int(counts["samples"])) for part, counts in run.data["parts"].items()]
    shape = " x ".join(map(str, run.data["sample_shape"]))
    about = facts([("source", run.data["name"]), ("kind", run.data["kind"]), ("shape of a sample", shape)])
    notes = "".join(f"<li>{escape(note)}</li>" for note in run.data["notes"])
    why = f'<p class="warning">{escape(run.why_not_ranked)}</p>' if run.why_not_ranked else ""
    return about + table(["part", noun, "samples"], rows) + (f"<ul>{notes}</ul>" if notes else "") + why


def _commands(run: RunFacts) -> list[tuple[str, str]]:
    folder = shlex.quote(str(run.folder))
    lines = [("Train the same again.", f"dmlcore train --config {folder}/config.toml --out {folder}-again")]
    if run.result is None:
        lines.append(("Continue.", f"dmlcore train --resume {folder}"))
    else:
        lines.append(("Train on.", f"dmlcore train --resume {folder} --steps {2 * run.result['steps']}"))
        lines.append(("Measure again.", f"dmlcore eval {folder}"))
    lines.append(("Write embeddings.", f"dmlcore embed {folder} --data {shlex.quote(run.data['name'])} --out embeddings.npz"))
    return [*lines, ("Make this page again.", f"dmlcore report {folder}")]
