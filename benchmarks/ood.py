"""`python -m benchmarks ood`: six ways to train on splits of growing shift. Singles and ensembles have embeddings of one length
and the same compression, so that they differ by their losses alone.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import rounded, slug

PAGE = Path(__file__).parents[1] / "docs" / "reports" / "ood.md"
RESULTS = Path(__file__).parent / "results"
WIDE: dict[str, Any] = {"embedding_dim": 256, "compress": 64}
DEFAULT = ("circle", "binomial_deviance", "norm_softmax")  # the losses of `dmlcore train` when this was measured
METHODS: dict[str, dict[str, Any]] = {
    "ms": {"plugins": ["ms"], **WIDE},
    "circle": {"plugins": ["circle"], **WIDE},
    "norm_softmax": {"plugins": ["norm_softmax"], **WIDE},
    "three shared": {"plugins": [*DEFAULT], "weighting": "equal_gradient_norms", **WIDE},
    "three heads": {"plugins": [*DEFAULT], "ensemble": "heads", "embedding_dim": 64, "compress": 64},
    "ms + sec": {"plugins": ["ms", "sec"], **WIDE},  # its weight is chosen, see `_constraint`
}
ETAS = (0.001, 0.01, 0.1, 0.5)  # weights of the constraint that are tried
SHOTS, STEPS, RATE = (2, 5), (50, 75), 1e-3
QUICK = 6  # steps


@dataclass(frozen=True)
class Family:
    """Splits of one data set.

    Attributes:
        name: in the tables.
        data: `--data`, in the folder of data sets where it is a file.
        build: settings of `dmlcore splits ood`.
        settings: of `dmlcore train`, the same for every method.
        seeds: of weights and batches.
        raw: the baseline without a network.
    """

    name: str
    data: str
    build: dict[str, Any]
    settings: dict[str, Any]
    seeds: int
    raw: str = "raw pixels"


PICTURES: dict[str, Any] = {"steps": 250, "eval_every": 50, "conv": {"channels": [16, 32, 64, 128]}}
SCRIPTS = ("Greek", "Hebrew", "Ethiopic", "Hangul", "Kanji")
FAMILIES = (
    Family("glyphs, whole scripts", "glyphs", {"driver": "groups", "test_groups": SCRIPTS, "number": 6}, PICTURES, 3),
    Family("glyphs, class means", "glyphs", {"number": 6}, {**PICTURES, "steps": 150}, 3),
    Family(
        "emoji, class means",
        "emoji_mobilenetv2.npz",
        {"number": 7},
        {
            "steps": 300,
            "eval_every": 50,
            "learning_rate": 1e-3,
            "model": "mlp",
            "head_start": "random",
            "embedding_dim": 256,
            "compress": 64,
        },
        3,
        "raw features",
    ),
)


def run(folder: Path | None, work: Path | None, processes: int, quick: bool, only: str | None, file: Path, page: Path | None,
        tell: Callable[[str], None] = print) -> dict[str, Any]:  # fmt: skip
    """Build the splits, run what is missing and write the results.

    Args:
        folder: of the feature tables.
        work: of splits, configurations and cells; the same folder goes on.
        processes: at a time.
        quick: two splits, one seed, few steps.
        only: part of a family's name.
        file: of the results, `.json`; pictures are put beside it.
        page: to fill, or None.
        tell: receives lines of progress.
    """
    from dmlcore.files import write_atomically
    from dmlcore.protocols.shift import report

    work = work or Path(tempfile.gettempdir()) / f"dmlcore-ood-{os.getuid()}{'-quick' if quick else ''}"
    stored: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for family in FAMILIES:
        data = family.data if family.data == "glyphs" else str((folder or Path()) / family.data)
        if (only and only not in family.name) or not (family.data == "glyphs" or Path(data).exists()):
            continue
        summary, about = _run_family(family, data, work / slug(family.name), processes, quick, tell)
        stored = rounded({**stored, family.name: {**summary, **about}})
        write_atomically(file, (json.dumps(stored, indent=1) + "\n").encode())
        report.draw(summary, file.with_name(f"{file.stem}-{slug(family.name)}.svg"), family.name)
    if page is not None:
        fill(stored, page)
    return stored


def _run_family(
    family: Family, data: str, place: Path, processes: int, quick: bool, tell: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run what is missing of a family: the report's summary, and what is stored beside it."""
    from dmlcore.protocols.shift import report, running
    from dmlcore.protocols.shift.adapting import Adaptation

    episodes = 2 if quick else 10
    adaptation = Adaptation(SHOTS, (QUICK,) if quick else STEPS, RATE, episodes, learn_beta=True, augment=False, cutoff=1.4)
    splits = _splits(family, data, place, tell)
    tried = _constraint(family, splits.default, place, quick, tell)
    configs = _configs(family, place, METHODS, quick, max(tried, key=lambda eta: tried[eta]))
    ids = [split.id for split in splits.splits]
    cells, places = running.plan(
        place / "splits.json",
        configs,
        seeds=1 if quick else family.seeds,
        adaptation=adaptation,
        only=[ids[0], ids[-1]] if quick else (),
    )
    tell(f"{family.name}: {len(cells)} cells")
    results = running.run(cells, places, place / "cells", processes=processes, tell=tell)
    return report.summary(report.Results.read(place / "cells", list(METHODS))), {
        "baselines": _baselines(cells, results, family.raw),
        "constraint": {f"{eta:g}": score for eta, score in tried.items()},
        "build": dict(splits.made_by),
        "settings": {**family.settings, "methods": METHODS},
        "classes": {split.id: [len(split.train_part), len(split.validation_part), len(split.test)] for split in splits.splits},
        "cpu_seconds": round(sum(result["cpu_seconds"] for result in results.values())),
        "versions": next(iter(results.values()))["versions"],
        "cells": {key: _kept(result) for key, result in results.items()},
    }


def _splits(family: Family, data: str, place: Path, tell: Callable[[str], None]) -> Any:
    from dmlcore.data import SplitFile
    from dmlcore.protocols.shift.building import build_splits
    from dmlcore.protocols.shift.options import BuildOptions

    place.mkdir(parents=True, exist_ok=True)
    path = place / "splits.json"
    if not path.exists():
        splits, notes = build_splits(data, {}, BuildOptions(**family.build))
        path.write_bytes(splits.to_json())
        for note in notes:
            tell(note)
    return SplitFile.read(path)


def _configs(family: Family, place: Path, methods: dict[str, dict[str, Any]], quick: bool, eta: float) -> list[Path]:
    import tomli_w

    configs = []
    for name, method in methods.items():
        settings = {**family.settings, **method, "device": "cpu", **({"steps": QUICK, "eval_every": QUICK} if quick else {})}
        settings["log_every"] = settings["steps"]
        if "sec" in settings["plugins"]:
            settings.setdefault("weights", [1.0, eta])
        configs.append(place / f"{name}.toml")
        configs[-1].write_text(tomli_w.dumps(settings))
    return configs


def _constraint(family: Family, default: str, place: Path, quick: bool, tell: Callable[[str], None]) -> dict[float, float]:
    """MAP@R of the validation classes of the default split by weight of the constraint: the best one is used on all splits."""
    from dmlcore.protocols.shift import running

    etas = ETAS[:2] if quick else ETAS
    methods = {f"sec {eta:g}": {**METHODS["ms + sec"], "weights": [1.0, eta]} for eta in etas}
    configs = _configs(family, place, methods, quick, 0.0)
    cells, places = running.plan(place / "splits.json", configs, seeds=1, only=[default])
    results = running.run(cells, places, place / "constraint", tell=tell)
    return {eta: result["validation"]["map@r"] for eta, result in zip(etas, results.values(), strict=True)}


def _kept(result: dict[str, Any]) -> dict[str, Any]:
    return {"recall@1": result["zero_shot"]["recall@1"], "map@r": result["zero_shot"]["map@r"], "step": result["chosen_step"]}


def _baselines(cells: list[Any], results: dict[str, Any], raw: str) -> dict[str, dict[str, float]]:
    """Recall@1 without training, by split: raw samples, and the mean over the untrained networks of the first method."""
    first = next(iter(METHODS))
    by_name: dict[str, dict[str, list[float]]] = {}
    for cell in cells:
        if cell.settings["name"] == first:
            measured = results[cell.key]["baselines"]
            for name in (raw, "untrained network"):
                by_name.setdefault(name, {}).setdefault(cell.settings["split"]["id"], []).append(measured[name]["recall@1"])
    return {name: {split: sum(v) / len(v) for split, v in rows.items()} for name, rows in by_name.items()}


def fill(stored: dict[str, Any], page: Path) -> None:
    """Put the tables between the marks `<!-- results: FAMILY -->` and `<!-- end -->` of the page."""
    text = page.read_text()
    for name, family in stored.items():
        pattern = re.compile(rf"(<!-- results: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        table = "\n".join(tables(family))
        text = pattern.sub(lambda marks, table=table: f"{marks[1]}\n{table}\n\n{marks[2]}", text)
    page.write_text(text)


def tables(family: dict[str, Any]) -> list[str]:
    """The tables of a family: those of `dmlcore ood report`, with the baselines and the areas' differences."""
    from dmlcore.protocols.shift import report
    from dmlcore.protocols.shift.area import area_under_shift

    lines = report.tables(family)
    fids = {split["id"]: split["fid"] for split in family["splits"]}
    lines += ["", "Without training, R@1:", "", f"| | {' | '.join(fids)} | area |", f"| --- |{' --- |' * (len(fids) + 1)}"]
    for name, rows in family["baselines"].items():
        area = area_under_shift([fids[split] for split in fids], [rows[split] for split in fids])
        lines.append(f"| {name} | {' | '.join(f'{100 * rows[split]:.1f}' for split in fids)} | {100 * area:.1f} |")
    lines += ["", "Differences of the area of R@1, paired by seed:", "", "| | points |", "| --- | --- |"]
    for pair, difference in family["area_differences"].items():
        half = "" if difference["half"] is None else f" ± {100 * difference['half']:.2f}"
        lines.append(f"| {pair} | {100 * difference['mean']:+.2f}{half} |")
    return lines


def main(options: Any) -> None:
    """The command, from the flags of `python -m benchmarks`."""
    file = options.csv or RESULTS / ("ood-quick.json" if options.quick else "ood.json")
    page = options.page or (None if options.quick else PAGE)
    run(
        options.folder,
        options.work,
        options.processes,
        options.quick,
        options.only,
        file,
        page,
        lambda line: print(line, flush=True),
    )
