"""`python -m benchmarks pictures`: training on pictures in single and in half precision, and a pretrained trunk against itself
before training. The page is docs/reports/pictures.md; its part on queries and a gallery comes from `retrieval`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import retrieval
from benchmarks.markdown import fill
from dmlcore.files import write_atomically
from dmlcore.reports.intervals import mean_and_half

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "pictures.json"
PAGE = ROOT / "docs" / "reports" / "pictures.md"
GROCERIES = "grocery_112"  # the folder of photographs, a folder for each class
DATA = {"glyphs": "characters, own network", "groceries": "photographs of 81 groceries, MobileNetV2"}
PRECISIONS = ("fp32", "bf16")
SEEDS = 3
MEASURES = {"R@1": "recall@1", "MAP@R": "map@r"}
STEPS, SIDE = 100, 96  # of the runs on photographs: a core of a small machine needs six minutes for one


def _cell(name: str, precision: str, seed: int, folder: Path | None, weights: Path | None) -> dict[str, Any]:
    import torch

    from dmlcore.training import train

    torch.set_num_threads(1)
    settings: dict[str, Any] = {"precision": precision, "seed": seed}
    if name == "groceries":
        assert folder is not None
        settings |= {"data": str(folder / GROCERIES), "model": "torchvision/mobilenet_v2", "image_size": SIDE, "steps": STEPS}
        settings |= {"torchvision": {"weights": str(weights)}, "classes_per_batch": 16}
    with tempfile.TemporaryDirectory() as out:
        result = train(out=Path(out) / "run", **settings)
    baselines = {side: values["test"] for side, values in result["baselines"].items()}
    before = next(values for side, values in baselines.items() if not side.startswith("raw"))
    return {
        "test": {measure: result["metrics"]["test"][key] for measure, key in MEASURES.items()},
        "before": {measure: before[key] for measure, key in MEASURES.items()},
        "chosen_step": result["chosen_step"],
    }


def run(
    folder: Path | None, weights: Path | None, tell: Callable[[str], None], file: Path = RESULTS
) -> dict[str, dict[str, dict[str, Any]]]:
    """Train what the file of results lacks, and write it after every run: data, precision, seed.

    Args:
        folder: holds `grocery_112`, photographs in a folder for each class. None: only `glyphs`.
        weights: of torchvision's `mobilenet_v2`, pretrained on ImageNet: a .pth file.
        tell: receives a line for every run.
        file: of results.
    """
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for name in DATA if folder and weights else ("glyphs",):
        for seed in range(SEEDS):
            for precision in PRECISIONS:
                cells = results.setdefault(name, {}).setdefault(precision, {})
                if str(seed) not in cells:
                    cells[str(seed)] = _cell(name, precision, seed, folder, weights)
                    write_atomically(file, (json.dumps(results, indent=1, sort_keys=True) + "\n").encode())
                    tell(f"{name}, {precision}, seed {seed}: {cells[str(seed)]}")
    return results


def differences(cells: dict[str, Any], against: dict[str, Any], side: str, measure: str) -> list[float]:
    """Paired differences of a test measure over the seeds that both have, in percentage points.

    Args:
        cells: of one precision, by seed.
        against: of another one, or the same.
        side: `test`, or `before` training; of `against`.
        measure: a key of `MEASURES`.
    """
    return [100 * (cells[seed]["test"][measure] - against[seed][side][measure]) for seed in sorted(cells.keys() & against)]


def page(results: dict[str, Any]) -> str:
    """The table of precisions."""
    lines = ["| data | seeds | fp32 R@1 | fp32 MAP@R | R@1 - before | MAP@R - before | bf16 R@1 - fp32 | bf16 MAP@R - fp32 |"]
    lines.append("|---" * 8 + "|")
    for name, about in DATA.items():
        single, half = (results.get(name, {}).get(precision, {}) for precision in PRECISIONS)
        if len(single) < 2 or len(half) < 2:
            continue
        means = [f"{100 * mean_and_half([cell['test'][measure] for cell in single.values()])[0]:.1f}" for measure in MEASURES]
        gains = [_interval(differences(single, single, "before", measure)) for measure in MEASURES]
        gains += [_interval(differences(half, single, "test", measure)) for measure in MEASURES]
        lines.append(f"| {about} | {len(single.keys() & half)} | " + " | ".join([*means, *gains]) + " |")
    return "\n".join(lines)


def _interval(values: list[float]) -> str:
    mean, half = mean_and_half(values)
    return f"{mean:+.1f} ± {half:.1f}"


def main(folder: Path | None, weights: Path | None, only_page: bool) -> None:
    """Run what is missing and fill the page."""
    if not only_page and folder and weights:
        retrieval.run(folder, weights, print)
    results = json.loads(RESULTS.read_text()) if only_page else run(folder, weights, print)
    retrieved = retrieval.read()
    fill(PAGE, lambda name, _: page(results) if name == "precisions" else retrieval.BLOCKS[name](retrieved))
    print(PAGE)
