"""`dmlcore ood report`: configurations compared on all splits of a folder of results: a table, a picture, an area each."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmlcore.errors import ConfigError
from dmlcore.files import plain, remove_temporaries, write_atomically
from dmlcore.protocols.cells import DONE, read_cell
from dmlcore.protocols.shift.area import area_under_shift
from dmlcore.reports import pictures
from dmlcore.reports.intervals import mean_and_half
from dmlcore.texts import in_markdown, in_picture

MEASURES = {"recall@1": "R@1", "map@r": "MAP@R"}
KEYS = ("name", "split", "seed", "adaptation")  # of the settings of a whole cell


@dataclass
class Results:
    """The cells of a folder.

    Attributes:
        names: of the configurations, in the order of their first cell.
        splits: about every split, by rising distance: `id`, `fid`, `swapped`, `removed`.
        seeds: of all cells.
        cells: results by configuration, split and seed.
        adaptation: how episodes were adapted to, or None.
    """

    names: list[str] = field(default_factory=list)
    splits: list[dict[str, Any]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    cells: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    adaptation: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: str | Path, names: Sequence[str] = ()) -> Results:
        """Read what is finished.

        Args:
            folder: of `dmlcore ood run`.
            names: of configurations. Empty: all.

        Raises:
            ConfigError: there is nothing; or results of different splits under one id.
            TrainingError: a damaged file.
        """
        results = cls()
        about: dict[str, dict[str, Any]] = {}
        for path in sorted(Path(folder).glob(f"{DONE}/*/*/seed*.json")):
            settings, result = read_cell(path, lambda settings, _: [settings[key] for key in KEYS])
            name, split, seed = settings["name"], settings["split"], settings["seed"]
            results.adaptation = settings["adaptation"] or results.adaptation
            if names and name not in names:
                continue
            if about.setdefault(split["id"], split) != split:
                raise ConfigError(
                    f"{folder} holds results of two different splits '{split['id']}'; keep one file of splits each"
                )
            results.cells[name, split["id"], seed] = result
        if not results.cells:
            raise ConfigError(f"there are no results of `dmlcore ood run` in {folder}")
        results.splits = sorted(about.values(), key=lambda split: split["fid"])
        results.names = list(names) or sorted({name for name, _, _ in results.cells})
        results.seeds = sorted({seed for _, _, seed in results.cells})
        return results

    def values(self, name: str, split: str, measure: str) -> list[float]:
        """A zero-shot measure for every seed that is there."""
        return [self.cells[name, split, seed]["zero_shot"][measure] for seed in self.seeds if (name, split, seed) in self.cells]

    def concatenated(self, name: str, split: str, measure: str) -> list[float]:
        """A zero-shot measure by the embeddings of all folds side by side, for every seed that has folds."""
        cells = (self.cells.get((name, split, seed), {}) for seed in self.seeds)
        return [cell["concatenated"][measure] for cell in cells if "concatenated" in cell]

    def folds(self) -> int | None:
        """The most models of a cell; None where every cell has one."""
        return max((len(cell["folds"]) for cell in self.cells.values() if "folds" in cell), default=None)

    def complete_seeds(self, *names: str) -> list[int]:
        """Seeds for which all configurations have all splits."""
        return [s for s in self.seeds if all((name, split["id"], s) in self.cells for name in names for split in self.splits)]

    def areas(self, name: str, measure: str, seeds: Sequence[int] | None = None) -> list[float]:
        """The area under the curve of each seed with all splits."""
        fids = [split["fid"] for split in self.splits]
        return [
            area_under_shift(fids, [self.cells[name, split["id"], seed]["zero_shot"][measure] for split in self.splits])
            for seed in (self.complete_seeds(name) if seeds is None else seeds)
        ]

    def gains(self, name: str, split: str, shots: str, measure: str = "recall@1") -> list[float]:
        """After minus before adaptation for every episode, each a mean over the seeds."""
        rows = [
            [
                episode["after"][measure] - episode["before"][measure]
                for episode in self.cells[name, split, seed]["few_shot"][shots]
            ]
            for seed in self.seeds
            if (name, split, seed) in self.cells and shots in self.cells[name, split, seed]["few_shot"]
        ]
        return [sum(column) / len(column) for column in zip(*rows, strict=False)]

    def before(self, name: str, split: str, shots: str, measure: str = "recall@1") -> float:
        """Mean of a measure before adaptation, over seeds and episodes."""
        values = [
            episode["before"][measure]
            for seed in self.seeds
            if (name, split, seed) in self.cells
            for episode in self.cells[name, split, seed]["few_shot"].get(shots, [])
        ]
        return sum(values) / len(values) if values else math.nan

    def shots(self) -> list[str]:
        """Numbers of shots that were adapted to."""
        return sorted({shots for cell in self.cells.values() for shots in cell["few_shot"]}, key=int)


def summary(results: Results) -> dict[str, Any]:
    """Everything the report says, as plain numbers: means and halves of 95 % t-intervals (None below two values)."""
    wide = len(results.splits) > 1 and results.splits[0]["fid"] < results.splits[-1]["fid"]
    numbers: dict[str, Any] = {
        "splits": results.splits,
        "seeds": results.seeds,
        "adaptation": results.adaptation,
        "folds": results.folds(),
        "configurations": {},
        "area_differences": {},
    }
    for name in results.names:
        configuration: dict[str, Any] = {"splits": {}, "area": {}}
        for split in results.splits:
            identity = split["id"]
            row: dict[str, Any] = {
                measure: _pair(results.values(name, identity, measure))
                for measure in MEASURES
                if results.values(name, identity, measure)
            }
            row["few_shot"] = {
                shots: {"before": results.before(name, identity, shots), "gain": _pair(gains)}
                for shots in results.shots()
                if (gains := results.gains(name, identity, shots))
            }
            concatenated = {m: _pair(values) for m in MEASURES if (values := results.concatenated(name, identity, m))}
            if concatenated:
                row["concatenated"] = concatenated
            configuration["splits"][identity] = row
        if wide:
            configuration["area"] = {m: _pair(areas) for m in MEASURES if (areas := results.areas(name, m))}
        numbers["configurations"][name] = configuration
    if wide:
        for index, first in enumerate(results.names):
            for second in results.names[index + 1 :]:
                seeds = results.complete_seeds(first, second)
                pairs = zip(results.areas(first, "recall@1", seeds), results.areas(second, "recall@1", seeds), strict=True)
                differences = [a - b for a, b in pairs]
                if differences:
                    numbers["area_differences"][f"{first} - {second}"] = _pair(differences)
    return plain(numbers)


def _pair(values: Sequence[float]) -> dict[str, Any]:
    mean, half = mean_and_half(values)
    return {"mean": mean, "half": half, "count": len(values)}


def markdown(numbers: dict[str, Any]) -> str:
    """The report as text, from `summary`."""
    numbers = in_markdown(numbers)
    lines = [
        "# Retrieval under shift",
        "",
        f"{len(numbers['configurations'])} configurations, {len(numbers['splits'])} splits, seeds "
        f"{', '.join(map(str, numbers['seeds']))}. Numbers are percent, with 95 % t-intervals over seeds.",
        "",
        *_on_folds(numbers),
        *tables(numbers),
    ]
    return "\n".join(lines) + "\n"


def _on_folds(numbers: dict[str, Any]) -> list[str]:
    if not numbers.get("folds"):
        return []
    number = numbers["folds"]
    text = (
        f"A cell is {number} models, each validated on another part of the training classes. Its numbers are means over them."
    )
    return [text, ""]


def tables(numbers: dict[str, Any]) -> list[str]:
    """The tables of the report, as lines of Markdown: areas, Recall@1 by split, gains of adaptation."""
    names = list(numbers["configurations"])
    lines: list[str] = []
    if any(numbers["configurations"][name]["area"] for name in names):
        lines += [
            "Area under the curve over FID scaled to [0, 1]:",
            "",
            "| configuration | R@1 | MAP@R |",
            "| --- | --- | --- |",
        ]
        ranked = sorted(names, key=lambda name: -_mean(numbers["configurations"][name]["area"].get("recall@1")))
        for name in ranked:
            area = numbers["configurations"][name]["area"]
            lines.append(f"| {name} | {percent(area.get('recall@1'))} | {percent(area.get('map@r'))} |")
        lines.append("")
    lines += _by_split("R@1", numbers, lambda row: percent(row.get("recall@1")))
    if numbers.get("folds"):  # summaries that were stored before lack it
        title = "R@1 of the embeddings of all folds side by side,"
        lines += ["", *_by_split(title, numbers, lambda row: percent(row.get("concatenated", {}).get("recall@1")))]
    shots = shots_of(numbers)
    for k in shots:
        lines += [
            "",
            f"{k} shots, R@1 among the other samples: before, and what tuning the last layer adds"
            " (95 % t-interval over episodes, each a mean over seeds):",
            "",
        ]

        def gain(row: dict[str, Any], k: str = k) -> str:
            few = row["few_shot"].get(k)
            return f"{100 * few['before']:.1f} {percent(few['gain'], signed=True)}" if few else ""

        lines += _by_split("", numbers, gain)
    return lines


def shots_of(numbers: dict[str, Any]) -> list[str]:
    """Numbers of shots that a summary has gains of, ascending."""
    rows = (row for configuration in numbers["configurations"].values() for row in configuration["splits"].values())
    return sorted({shots for row in rows for shots in row["few_shot"]}, key=int)


def _by_split(title: str, numbers: dict[str, Any], text_of: Any) -> list[str]:
    names = list(numbers["configurations"])
    lines = [f"{title} by split:", ""] if title else []
    lines += [f"| split | FID | {' | '.join(names)} |", f"| --- | --- |{' --- |' * len(names)}"]
    for split in numbers["splits"]:
        texts = (text_of(numbers["configurations"][name]["splits"][split["id"]]) for name in names)
        lines.append(f"| {split['id']} | {split['fid']:.4g} | {' | '.join(texts)} |")
    return lines


def _mean(pair: dict[str, Any] | None) -> float:
    return pair["mean"] if pair else -math.inf


def percent(pair: dict[str, Any] | None, signed: bool = False) -> str:
    """A mean in percent with half of its interval. Empty where there is none."""
    if not pair:
        return ""
    half = f" ± {100 * pair['half']:.1f}" if pair["half"] is not None else ""
    return f"{100 * pair['mean']:{'+' if signed else ''}.1f}{half}"


def draw(numbers: dict[str, Any], path: Path, title: str = "") -> Path:
    """The picture: Recall@1 against FID with bands, and the gains of adaptation where there are any."""
    pyplot, numbers = pictures.pyplot(), in_picture(numbers)
    shots = shots_of(numbers)
    figure, axes = pyplot.subplots(1, 1 + len(shots), figsize=(5.2 * (1 + len(shots)), 4), squeeze=False)
    panels = [("Recall@1, zero-shot", lambda row: row.get("recall@1"))]
    panels += [(f"Recall@1 gained by {k} shots", lambda row, k=k: row["few_shot"].get(k, {}).get("gain")) for k in shots]
    for axis, (label, of) in zip(axes[0], panels, strict=True):
        for name, configuration in numbers["configurations"].items():
            points = [(split["fid"], of(configuration["splits"][split["id"]])) for split in numbers["splits"]]
            points = [(fid, pair) for fid, pair in points if pair]
            x, y = [fid for fid, _ in points], [100 * pair["mean"] for _, pair in points]
            half = [100 * (pair["half"] or 0) for _, pair in points]
            (line,) = axis.plot(x, y, marker="o", markersize=3, label=name)
            low, high = ([a + sign * b for a, b in zip(y, half, strict=True)] for sign in (-1, 1))
            axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set(xlabel="FID between training and test classes", ylabel=f"{label}, %", title=title)
        axis.grid(True, alpha=0.3)
    axes[0][0].legend(fontsize="small")
    figure.tight_layout()
    return pictures.save(figure, path)


def write(folder: str | Path, names: Sequence[str] = ()) -> dict[str, Any]:
    """Write `report.json`, `report.md` and, where matplotlib is installed, `recall.svg`. Returns the summary and the paths."""
    folder = Path(folder)
    numbers = summary(Results.read(folder, names))
    remove_temporaries(folder)
    write_atomically(folder / "report.json", (json.dumps(numbers, indent=1) + "\n").encode())
    text = markdown(numbers)
    paths = {"json": str(folder / "report.json"), "markdown": str(folder / "report.md")}
    if pictures.can_draw():
        paths["picture"] = str(draw(numbers, folder / "recall.svg"))
        text += "\n![Recall@1 against FID](recall.svg)\n"
    write_atomically(folder / "report.md", text.encode(errors="backslashreplace"))
    return {**numbers, "files": paths}
