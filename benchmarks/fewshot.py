"""`python -m benchmarks fewshot`: few-shot transfer on what is at hand, the grids behind docs/reports/fewshot.md.

Every part is a grid as `dmlcore fewshot` runs it. Its cells are kept in a folder for temporary files, so an interrupted
benchmark goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks import markdown
from benchmarks.measuring import environment, rounded, slug
from dmlcore.errors import DataError
from dmlcore.files import plain, write_atomically
from dmlcore.protocols.fewshot import curves, grid, report
from dmlcore.protocols.fewshot.arms import ADAPTED
from dmlcore.protocols.fewshot.budgets import budget_of
from dmlcore.protocols.fewshot.cell import Plan
from dmlcore.reports import pictures

PAGE = Path(__file__).parents[1] / "docs" / "reports" / "fewshot.md"
LOSSES = ["ms", "circle+binomial_deviance+norm_softmax"]  # a single loss, and a set of three
SCRIPTS = "@Latin,@Latin extended,@Cyrillic,@Cyrillic extended,@Punctuation,@Hiragana,@Katakana"
BUDGET = {"epochs": 40, "episodes": 200, "episode_check": 10, "episode_patience": 50}
CONV = ("conv", {"channels": [16, 32, 64], "norm": "none"})


@dataclass(frozen=True)
class Part:
    """One grid.

    Attributes:
        name: in the page.
        data: a data set's name, or a file in the folder of data sets.
        source: classes, as `--source-classes`.
        shots, replications: k, and R for each n.
        model: name and options of the trunk; None: the default.
        source_samples: kept of each source class; 0: all.
        changes: fields of the plan that differ.
    """

    name: str
    data: str
    source: str
    shots: list[int]
    replications: dict[int, int]
    model: tuple[str | None, dict[str, Any]] = (None, {})
    source_samples: int = 0
    changes: dict[str, Any] = field(default_factory=dict)

    def grids(self, folder: Path | None, quick: bool) -> list[grid.Grid]:
        """A grid for each n, as the n have different numbers of replications."""
        data = str((folder or Path()) / self.data) if self.data.endswith(".npz") else self.data
        lengths = {} if quick else {**BUDGET, "source_samples": self.source_samples}
        kind = "features" if self.data.endswith(".npz") else "images"
        budget = budget_of("quick" if quick else "cpu", lengths, kind)
        grids = []
        for n, replications in list(self.replications.items())[: 1 if quick else None]:
            plan = Plan(
                data=data,
                data_options={},
                image_size=None,
                source_classes=self.source,
                target_classes=None,
                n=n,
                source_n=0,
                shots=self.shots[:2] if quick else self.shots,
                losses=LOSSES,
                loss_options={},
                model=self.model[0],
                model_options=self.model[1],
                embedding_dim=64,
                init="default",
                stopping="paper",
                budget=asdict(budget),
                seed=0,
                replication=0,
            )
            grids.append(grid.Grid(Plan(**{**asdict(plan), **self.changes}), [n], 2 if quick else replications))
        return grids


PARTS = (
    Part("emoji", "emoji_mobilenetv2.npz", "random", [1, 3], {5: 10, 10: 10, 100: 5}),
    Part("mnist", "mnist_sample", "0-4", [1, 5, 10, 50, 100], {5: 10}, CONV, 100),
    Part("glyphs", "glyphs", SCRIPTS, [1, 3, 5], {5: 10, 10: 10, 100: 5}, CONV),
    Part("banking", "banking77_minilm.npz", "random", [1, 5, 10, 50], {5: 10, 10: 10, 30: 5}, source_samples=60),
    Part(
        "banking held-out",
        "banking77_minilm.npz",
        "random",
        [5, 10, 50],
        {5: 10},
        (None, {}),
        60,
        {"stopping": "validation"},
    ),
    Part("banking normal", "banking77_minilm.npz", "random", [5, 10, 50], {5: 10}, (None, {}), 60, {"init": "normal"}),
    Part("banking xavier", "banking77_minilm.npz", "random", [5, 10, 50], {5: 10}, (None, {}), 60, {"init": "xavier"}),
    Part("glyphs normal", "glyphs", SCRIPTS, [1, 3, 5], {5: 10}, CONV, 0, {"init": "normal"}),
    Part("glyphs xavier", "glyphs", SCRIPTS, [1, 3, 5], {5: 10}, CONV, 0, {"init": "xavier"}),
)
"""The last five are variants of two of the others: with held-out stopping, and with other weights."""
LARGE = 100  # target classes from which on a grid is left to the end: minutes a cell
MAIN = ("emoji", "mnist", "glyphs", "banking")


class OutOfTime(Exception):
    """The minutes are over."""


def run(
    work: Path,
    file: Path,
    folder: Path | None,
    *,
    processes: int = 2,
    minutes: float = 90,
    quick: bool = False,
    only: Sequence[str] | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run what is missing, as far as the minutes go, and write the results of all that is there.

    Args:
        work: where the cells are kept.
        file: of the results, .json.
        folder: of the feature tables; parts whose table is not there are left out, and said.
        processes: at a time.
        minutes: no cell is waited for after these.
        quick: two cells of each part, short training.
        only: names of parts; None: all.
        tell: receives progress.
    """
    until = time.monotonic() + 60 * minutes
    parts = [part for part in PARTS if only is None or part.name in only]

    def tell_or_stop(line: str) -> None:
        tell(line)
        if time.monotonic() > until:
            raise OutOfTime

    grids = _checked_grids(parts, folder, quick, tell)
    try:
        for name, next_grid in sorted(grids, key=lambda named: named[1].numbers[0] >= LARGE):
            tell(f"{name}, n = {next_grid.numbers[0]}")
            grid.run(next_grid, work / slug(name), processes=processes, tell=tell_or_stop, again="the same command")
    except OutOfTime:
        tell(f"{minutes:g} minutes are over; the same command goes on")
    results = collect(work, [part.name for part in parts])
    write_atomically(file, (json.dumps(plain(results), separators=(",", ":")) + "\n").encode())
    return results


def _checked_grids(
    parts: Sequence[Part], folder: Path | None, quick: bool, tell: Callable[[str], None]
) -> list[tuple[str, grid.Grid]]:
    """The grids that can be run, each with the name of its part."""
    grids = []
    for part in parts:
        if part.data.endswith(".npz") and not (folder and (folder / part.data).exists()):
            tell(f"{part.name}: left out, {part.data} is not in --folder {folder}")
            continue
        try:
            grids_of_part = part.grids(folder, quick)
            for part_grid in grids_of_part:
                grid.check(part_grid)
            grids += [(part.name, part_grid) for part_grid in grids_of_part]
        except DataError as error:
            tell(f"{part.name}: left out, {error}")
    return grids


def collect(work: Path, names: Sequence[str]) -> dict[str, Any]:
    """What is there of each part: the report's summary, all errors by replication, the median of the target epochs chosen."""
    parts = {}
    for name in names:
        if not any((work / slug(name)).glob("cells/*/*.json")):
            continue
        cells = report.read(work / slug(name))
        summary = report.summarise(cells)
        summary["settings"]["data"] = Path(summary["settings"]["data"]).name  # where it lay is nobody's business
        errors: dict[str, dict[str, list[float]]] = {}
        epochs: dict[str, dict[str, list[int]]] = {}
        for settings, result in sorted(cells, key=lambda cell: cell[0]["replication"]):
            for arm, shots in result["arms"].items():
                for k, measured in shots.items():
                    errors.setdefault(arm, {}).setdefault(f"n{settings['n']} k{k}", []).append(round(measured["error"], 5))
                    if "epoch" in measured:
                        epochs.setdefault(arm, {}).setdefault(f"n{settings['n']} k{k}", []).append(measured["epoch"])
        median_epochs = {arm: {place: median(values) for place, values in places.items()} for arm, places in epochs.items()}
        parts[name] = {**rounded(summary), "errors": errors, "median_epochs": median_epochs}
    return {"environment": environment(), "parts": parts}


def draw(results: dict[str, Any], file: Path) -> Path:
    """The curves of the main parts."""
    shown = [(name, results["parts"][name]["means"]) for name in MAIN if name in results["parts"]]
    return pictures.save(curves.figure(shown), file)


def write_page(results: dict[str, Any], page: Path = PAGE) -> None:
    """Fill the markers `<!-- table: WHAT [PART] -->` to `<!-- end -->` of a page."""
    markdown.fill(page, lambda table, part: "\n".join(_TABLES[table](results["parts"], part)))


def _part(of: Callable[[dict[str, Any]], list[str]]) -> Callable[[dict[str, Any], str], list[str]]:
    return lambda parts, name: of(parts[name]) if name in parts else ["Not measured."]


def _all_reductions(parts: dict[str, Any], _: str) -> list[str]:
    """The reduction of the error in every part."""

    def said(reduction: dict[str, Any] | None) -> str:
        return "" if reduction is None else report.percent(reduction)

    rows = []
    for name, part in parts.items():
        reduction = part["reduction"]
        by_arm = reduction["by_arm"]
        shown = [said(reduction), *(said(by_arm.get(arm)) for arm in ("adap_hist_loss", "adap_proto_net"))]
        shown += [said(part["reductions_of_losses"].get(ADAPTED + loss)) for loss in LOSSES]
        rows.append([name, *shown, str(reduction["places"])])
    main = [parts[name]["reduction"]["mean"] for name in MAIN if name in parts]
    rows.append([f"mean of {', '.join(name for name in MAIN if name in parts)}", f"{100 * fmean(main):.0f} %", *[""] * 5])
    adapted = ["adap_hist_loss", "adap_proto_net", *(ADAPTED + loss for loss in LOSSES)]
    return report.table(["", "both hybrids", *adapted, "pairs of n and k"], rows)


def _all_orderings(parts: dict[str, Any], _: str) -> list[str]:
    """Every claim in every main part: how often it holds, is clear, is clearly wrong."""
    names = [name for name in MAIN if name in parts]
    claims = list(dict.fromkeys(row["claim"] for name in names for row in parts[name]["orderings"]))
    rows = []
    for claim in claims:
        entries = [claim]
        for name in names:
            row = next((row for row in parts[name]["orderings"] if row["claim"] == claim), None)
            said = f"{row['holds']}/{row['places']} (+{row['clear']} -{row['against']}): {row['verdict']}" if row else ""
            entries.append(said)
        rows.append(entries)
    return report.table(["claim", *names], rows)


def _all_regrets(parts: dict[str, Any], _: str) -> list[str]:
    """How far each method without adaptation is behind the best of them."""
    names = [name for name in MAIN if name in parts]
    arms = list(dict.fromkeys(arm for name in names for arm in parts[name]["regrets"]))

    def said(regret: dict[str, float]) -> str:
        return f"{100 * regret['mean']:.1f} (worst {100 * regret['worst']:.1f})"

    return report.table(["", *names], [[arm, *(said(parts[name]["regrets"][arm]) for name in names)] for arm in arms])


_TABLES: dict[str, Callable[[dict[str, Any], str], list[str]]] = {
    "errors": _part(lambda part: report.errors_table(part["means"])),
    "paired": _part(lambda part: report.paired_table(part["paired"])),
    "orderings": _all_orderings,
    "reductions": _all_reductions,
    "regrets": _all_regrets,
}
