"""Photographs of groceries with queries and a gallery: a pretrained trunk frozen and fine-tuned, below single losses and the
default ensemble. A part of `python -m benchmarks pictures`. This text, the systems and the rule were written before any of the
figures on test classes existed.

**Data.** `grocery_112`: the Grocery Store data set (Klasson, Zhang, Kjellström, WACV 2019) at 112 pixels, brought to `SIDE`.
Its 81 classes are numbered in the order of `manifest.csv`. Classes 40 to 80 are never trained on. Of these, the official test
part are the queries, and the official training and validation parts the gallery. All photographs of classes 0 to 39 are for
training, apart from those of `HELD_OUT` classes that a seed draws, which choose the checkpoint.

**Systems.** MobileNetV2 with weights of ImageNet. `raw`: its 1,280 features. `PCA 64`: 64 principal axes of the features of the
training classes. `frozen`: a linear head on the features, which the trunk keeps, by the defaults for features, but as long as
the head below. `tuned`: trunk and head are trained as `dmlcore train` does it by default with a pretrained trunk, for
`TUNED_STEPS` steps. Both heads give 512 numbers and begin as the principal axes of the features.

**Losses.** Those of `SINGLES`, each alone with its default options, and the default of `dmlcore train`, the `ensemble`.

**Seeds.** `SEEDS` by kind of system. A seed draws the validation classes and the batches. All systems share them.

**Figures.** R@1 and MAP@R of the queries against the gallery, in points, and differences paired by seed with 95 % t-intervals.
The queries are the same for all seeds, so that intervals speak of training, and not of other products.

**Rule.** The ensemble beats a single loss if it is ahead in MAP@R with p < .05 of the paired t-test, after Holm's correction
over all comparisons of the table, those of frozen and of tuned systems together. The reverse is told by the same rule. No
default changes by this table.
"""

from __future__ import annotations

import csv
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import rows as kept_rows
from benchmarks.markdown import table
from dmlcore.errors import DataError
from dmlcore.reports.intervals import mean_and_half

RESULTS = Path(__file__).parent / "results" / "retrieval.jsonl"
FOLDER = "grocery_112"
SEEN, HELD_OUT = 40, 8  # classes
SIDE = 96  # pixels
NUMBERS = {"raw": 1280, "PCA 64": 64, "frozen": 512, "tuned": 512}
SEEDS = {"raw": (0,), "PCA 64": (0, 1, 2, 3, 4), "frozen": (0, 1, 2, 3, 4), "tuned": (0, 1, 2)}
TUNED_STEPS = 40
SINGLES = ("ms", "proxy_anchor", "sup_con", "triplet")
ENSEMBLE = "ensemble"
MEASURES = {"R@1": "recall@1", "MAP@R": "map@r"}
TRAINED: dict[str, dict[str, Any]] = {
    "frozen": {"model": "identity", "embedding_dim": 512, "head_start": "principal"},
    "tuned": {"model": "torchvision/mobilenet_v2", "image_size": SIDE, "steps": TUNED_STEPS, "eval_every": TUNED_STEPS // 2,
              "classes_per_batch": 16},
}  # fmt: skip
"""Settings of `dmlcore train` that are not its defaults."""


@dataclass(frozen=True)
class System:
    """A row of the table.

    Attributes:
        kind: of `NUMBERS`.
        loss: of `SINGLES`, or `ENSEMBLE`; empty: nothing is trained.
    """

    kind: str
    loss: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.loss}" if self.loss else self.kind


SYSTEMS = [System("raw"), System("PCA 64"), *(System(kind, loss) for kind in TRAINED for loss in (*SINGLES, ENSEMBLE))]
Results = dict[tuple[str, int], dict[str, Any]]  # by name of the system and seed


def read(file: Path = RESULTS) -> Results:
    """The results so far."""
    return {(row["system"], row["seed"]): row for row in kept_rows.read(file)}


def parts(folder: Path, seed: int) -> list[tuple[str, str, str]]:
    """Path, class and part of every photograph.

    Args:
        folder: of the photographs, with `manifest.csv`: columns `path`, `label`, `official_split`.
        seed: draws the validation classes.

    Raises:
        DataError: there is no manifest.
    """
    manifest = folder / "manifest.csv"
    if not manifest.is_file():
        raise DataError(f"there is no {manifest}, a list of the photographs with path,label,official_split")
    with manifest.open(newline="") as opened:
        listed = list(csv.DictReader(opened))
    classes = list(dict.fromkeys(row["label"] for row in listed))
    held_out = {classes[number] for number in np.random.default_rng((seed, 40)).permutation(SEEN)[:HELD_OUT]}
    unseen = set(classes[SEEN:])

    def part(row: dict[str, str]) -> str:
        if row["label"] in unseen:
            return "query" if row["official_split"] == "test" else "gallery"
        return "validation" if row["label"] in held_out else "train"

    return [(str((folder / row["path"]).absolute()), row["label"], part(row)) for row in listed]


class Photographs:
    """The data of every seed, as pictures and as features of the frozen trunk, which are computed once.

    Args:
        folder: of the photographs.
        weights: of torchvision's `mobilenet_v2`, a .pth file.
        work: where splits and features are kept.

    Attributes:
        seconds: CPU time that the features took. None: they were there.
    """

    def __init__(self, folder: Path, weights: Path, work: Path) -> None:
        self.folder, self.weights, self.work = folder, weights, work
        self.seconds: float | None = None
        work.mkdir(parents=True, exist_ok=True)

    def pictures(self, seed: int) -> Path:
        """The list of photographs that `dmlcore train --data` reads."""
        file = self.work / f"pictures-{seed}.csv"
        with file.open("w", newline="") as opened:
            csv.writer(opened).writerows([("path", "label", "split"), *parts(self.folder, seed)])
        return file

    def features(self, seed: int) -> Path:
        """The table of features that `dmlcore train --data` reads."""
        listed, by_path = parts(self.folder, seed), self._features()
        file = self.work / f"features-{seed}.npz"
        x = np.stack([by_path[path] for path, _, _ in listed])
        np.savez(file, x=x, y=np.array([label for _, label, _ in listed]), split=np.array([part for *_, part in listed]))
        return file

    def _features(self) -> dict[str, np.ndarray]:
        file = self.work / f"features-of-{SIDE}.npz"
        if not file.exists():
            began = time.process_time()
            paths, x = self._embedded()
            self.seconds = time.process_time() - began
            unfinished = file.with_name(f"{file.stem}.{os.getpid()}.npz")
            np.savez(unfinished, paths=paths, x=x)
            unfinished.replace(file)
        with np.load(file) as arrays:
            return dict(zip(arrays["paths"].tolist(), arrays["x"], strict=True))

    def _embedded(self) -> tuple[np.ndarray, np.ndarray]:
        from dmlcore.data import open_data
        from dmlcore.evaluation import evaluating
        from dmlcore.models import build_trunk, images_wanted

        name, options = "torchvision/mobilenet_v2", {"weights": str(self.weights)}
        interpolation = images_wanted(name, options).interpolation
        splits = open_data(self.pictures(0), image_size=SIDE, interpolation=interpolation)
        trunk = build_trunk(name, sample_shape=splits.sample_shape, kind="images", options=options)
        assert splits.paths is not None
        of_parts = (splits.train, splits.validation, splits.test)
        paths = [splits.paths[row] for part in of_parts for row in part.rows]
        return np.array(paths), np.concatenate([evaluating.embed(trunk, part).numpy() for part in of_parts])


def _points(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: round(100 * metrics[key], 3) for name, key in MEASURES.items()}


def figures(system: System, seed: int, data: Photographs) -> dict[str, Any]:
    """The row of a system: test and validation figures, CPU seconds of training with its evaluations."""
    import torch

    torch.set_num_threads(1)
    file = data.pictures(seed) if system.kind == "tuned" else data.features(seed)
    began = time.process_time()
    result = _trained(system, seed, file, data.weights) if system.loss else _measured(system, file)
    return {"system": system.name, "seed": seed, **result, "cpu_seconds": round(time.process_time() - began, 2)}


def _trained(system: System, seed: int, file: Path, weights: Path) -> dict[str, Any]:
    from dmlcore.training import train

    settings = dict(TRAINED[system.kind])
    if system.kind == "tuned":
        settings["torchvision"] = {"weights": str(weights)}
    if system.loss != ENSEMBLE:
        settings["plugins"] = (system.loss,)
    # a run would also measure the network before training: the table has rows for that, and it takes a third of a short run
    unkept = mock.patch("dmlcore.training.kept._is_baseline", return_value=False)
    unmade = mock.patch("dmlcore.training.result.baseline_model", return_value=None)
    with unkept, unmade, tempfile.TemporaryDirectory(prefix="retrieval-") as out:
        result = train(out=Path(out) / "run", data=str(file), seed=seed, device="cpu", report=False, **settings)
    return {
        **{part: _points(result["metrics"][part]) for part in ("validation", "test")},
        "chosen_step": result["chosen_step"],
        "losses": [loss["name"] for loss in result["losses"]],
    }


def _measured(system: System, file: Path) -> dict[str, Any]:
    import torch

    from benchmarks.arms.after import compressed, measure
    from dmlcore.data import open_data
    from dmlcore.evaluation import evaluating

    splits = open_data(file)
    rows = {part: torch.cat(list(evaluating.samples(getattr(splits, part)))) for part in ("train", "validation", "test")}
    unit = {part: torch.nn.functional.normalize(features) for part, features in rows.items()}
    return measure(unit if system.kind == "raw" else compressed(unit, splits.train.labels), splits)


def run(folder: Path, weights: Path, tell: Callable[[str], None], file: Path = RESULTS) -> Results:
    """Measure what the file of results lacks, a line for every row.

    Args:
        folder: holds `grocery_112`.
        weights: of torchvision's `mobilenet_v2`, pretrained on ImageNet: a .pth file.
        tell: receives a line for every run.
        file: of results.
    """
    results = read(file)
    data = Photographs(folder / FOLDER, weights, Path(tempfile.gettempdir()) / f"dmlcore-retrieval-{os.getuid()}")
    with kept_rows.appending(file) as append:
        for system, seed in _order():
            if (system.name, seed) not in results:
                row = figures(system, seed, data)
                if data.seconds is not None:
                    row["features_seconds"], data.seconds = round(data.seconds, 1), None
                results[system.name, seed] = row
                append(row)
                tell(f"{system.name:22} seed {seed}  validation MAP@R {row['validation']['MAP@R']:5.1f}"
                     f"  {row['cpu_seconds']:6.1f} s")  # fmt: skip
    return results


def _order() -> Iterator[tuple[System, int]]:
    """What is cheap first; of the rest, seed by seed."""
    for is_tuned in (False, True):
        for seed in range(max(map(len, SEEDS.values()))):
            for system in SYSTEMS:
                if (system.kind == "tuned") == is_tuned and seed in SEEDS[system.kind]:
                    yield system, seed


def paired(results: Results, one: System, other: System, measure: str) -> list[float]:
    """Differences of a test measure in points, over the seeds that both have. `raw` has the same figures for all seeds."""
    differences = []
    for seed in SEEDS[one.kind]:
        against = results.get((other.name, 0 if other.kind == "raw" else seed))
        if (one.name, seed) in results and against is not None:
            differences.append(results[one.name, seed]["test"][measure] - against["test"][measure])
    return differences


def comparisons(results: Results) -> list[tuple[System, System, float]]:
    """Ensemble, single loss, and the p-value of the rule, for those that have two seeds."""
    from scipy import stats

    from dmlcore.evaluation.resampling import holm

    pairs = [(System(kind, ENSEMBLE), System(kind, loss)) for kind in TRAINED for loss in SINGLES]
    pairs = [pair for pair in pairs if len(paired(results, *pair, "MAP@R")) > 1]
    p = [float(stats.ttest_1samp(paired(results, *pair, "MAP@R"), 0).pvalue) for pair in pairs]
    return [(*pair, float(value)) for pair, value in zip(pairs, holm(np.array(p)) if p else [], strict=True)]


def _interval(values: list[float]) -> str:
    if len(values) < 2:
        return ""
    mean, half = mean_and_half(values)
    return f"{mean:+.1f} ± {half:.1f}"


def systems_table(results: Results) -> str:
    """Figures and cost of every system, and its lead on the raw features, whose cost is that of computing all features."""
    features_seconds = [row["features_seconds"] for row in results.values() if "features_seconds" in row]
    lines = []
    for system in SYSTEMS:
        own = [results[system.name, seed] for seed in SEEDS[system.kind] if (system.name, seed) in results]
        if own:
            means = [f"{statistics.fmean(row['test'][measure] for row in own):.1f}" for measure in MEASURES]
            leads = [_interval(paired(results, system, System("raw"), m)) if system.kind != "raw" else "" for m in MEASURES]
            seconds = [row["cpu_seconds"] for row in own] if system.loss else features_seconds if system.kind == "raw" else []
            cost = f"{statistics.fmean(seconds):.0f}" if seconds else ""
            lines.append([system.name, str(NUMBERS[system.kind]), str(len(own)), *means, *leads, cost])
    return table(["", "numbers", "seeds", *MEASURES, *(f"{measure} - raw" for measure in MEASURES), "CPU s"], lines)


def comparisons_table(results: Results) -> str:
    """The ensemble minus each single loss, and what the rule says."""
    lines = []
    for ensemble, single, p in comparisons(results):
        leads = [_interval(paired(results, ensemble, single, measure)) for measure in MEASURES]
        ahead = statistics.fmean(paired(results, ensemble, single, "MAP@R")) > 0
        verdict = "level" if p >= 0.05 else "ensemble" if ahead else single.loss
        lines.append([f"{ensemble.name} - {single.loss}", *leads, f"{p:.2f}", verdict])
    return table(["", *MEASURES, "p", "better"], lines)


BLOCKS: dict[str, Callable[[Results], str]] = {"retrieval_systems": systems_table, "retrieval_comparisons": comparisons_table}
