"""`python -m benchmarks features`: the default of `dmlcore train` on features of good networks, against the features themselves
and against the default that it replaced. The page is docs/reports/features.md.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks import feature_starts, text_starts
from dmlcore.reports.intervals import mean_and_half

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "features.json"
PAGE = ROOT / "docs" / "reports" / "features.md"
TABLES = {
    "banking77_minilm": "texts of 77 intents, sentence encoder",
    "grocery_mobilenetv2": "photographs of 81 groceries, MobileNetV2",
    "emoji_mobilenetv2": "pictures of 1,179 emoji, MobileNetV2",
    "glyphs_mobilenetv2": "300 characters, MobileNetV2",
    "glosses_minilm": "definitions of 41 subjects, sentence encoder",
}
_LINEAR = {"model": "identity", "eval_every": 100}
ARMS: dict[str, dict[str, Any]] = {
    "default": {**_LINEAR, "plugins": "circle,binomial_deviance,norm_softmax"},
    "three losses": {**_LINEAR, "plugins": "ms,proxy_anchor,triplet"},
    "proxy_anchor": {**_LINEAR, "plugins": "proxy_anchor"},
    "ms": {**_LINEAR, "plugins": "ms"},
    "triplet": {**_LINEAR, "plugins": "triplet"},
    "before": {
        "model": "mlp",
        "head_start": "random",
        "embedding_dim": 256,
        "compress": 64,
        "learning_rate": 2e-3,
        "eval_every": 100,
    },
}
"""Settings of each arm. `default` is what was the default before docs/reports/defaults.md. `before` is the default of still
earlier versions: 256 numbers of an MLP at random, PCA to 64, rate 2e-3."""
RIVALS = ("proxy_anchor", "ms", "triplet", "default")  # of the three losses together
SEEDS = {"default": 5, "before": 5}  # of an arm; 3 of the others
MEASURES = {"R@1": "recall@1", "MAP@R": "map@r"}


def _cell(file: Path, arm: str, seed: int) -> dict[str, Any]:
    import torch

    from dmlcore.training import train

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = train(out=Path(folder) / "run", data=str(file), seed=seed, **ARMS[arm])
    raw = next(values for name, values in result["baselines"].items() if name.startswith("raw"))
    return {
        "test": {name: result["metrics"]["test"][key] for name, key in MEASURES.items()},
        "raw": {name: raw["test"][key] for name, key in MEASURES.items()},
        "chosen_step": result["chosen_step"],
    }


def run(folder: Path, processes: int, tell: Callable[[str], None], file: Path = RESULTS) -> dict[str, Any]:
    """Train what the file of results lacks, and write it after every run.

    Args:
        folder: of the tables, NAME.npz.
        processes: at a time.
        tell: receives a line for every run.
        file: of results.
    """
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    order = sorted(ARMS, key=lambda arm: -SEEDS.get(arm, 3))
    cells = [(name, arm, str(seed)) for arm in order for seed in range(SEEDS.get(arm, 3)) for name in TABLES]
    missing = [(n, a, s) for n, a, s in cells if s not in results.get(n, {}).get(a, {}) and (folder / f"{n}.npz").exists()]
    with ProcessPoolExecutor(processes) as pool:
        futures = {pool.submit(_cell, folder / f"{name}.npz", arm, int(seed)): (name, arm, seed) for name, arm, seed in missing}
        for future in as_completed(futures):
            name, arm, seed = futures[future]
            results.setdefault(name, {}).setdefault(arm, {})[seed] = future.result()
            file.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
            tell(f"{name}, {arm}, seed {seed}: {future.result()['test']}")
    return results


def differences(results: dict[str, Any], name: str, arm: str, against: str, measure: str) -> tuple[float, float, int]:
    """Mean of the paired differences of test measures, half of its interval, in percentage points, and their number.

    Args:
        results: of `run`.
        name: of the table.
        arm: whose test measure.
        against: `raw`, or another arm.
        measure: a key of `MEASURES`.
    """
    own = results[name].get(arm, {})
    other = {seed: cell["raw"] for seed, cell in own.items()} if against == "raw" else None
    if other is None:
        other = {seed: cell["test"] for seed, cell in results[name].get(against, {}).items()}
    values = [100 * (own[seed]["test"][measure] - other[seed][measure]) for seed in sorted(own.keys() & other.keys())]
    return (*mean_and_half(values), len(values))


def page(results: dict[str, Any]) -> str:
    """The tables of the report, between its markers."""
    lines = ["| data | raw R@1 | default R@1 | raw MAP@R | default MAP@R | MAP@R - raw | R@1 - raw | MAP@R - before |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, about in TABLES.items():
        if name not in results:
            continue
        cells = results[name]["default"].values()
        means = [
            100 * mean_and_half([cell[side][measure] for cell in cells])[0] for measure in MEASURES for side in ("raw", "test")
        ]
        gains = [
            _interval(differences(results, name, "default", against, measure))
            for against, measure in (("raw", "MAP@R"), ("raw", "R@1"), ("before", "MAP@R"))
        ]
        lines.append(f"| {about} | " + " | ".join([*(f"{mean:.1f}" for mean in means), *gains]) + " |")
    lines += ["", "| data | " + " | ".join(f"`{arm}`" for arm in ARMS) + " |", "|---" * (len(ARMS) + 1) + "|"]
    for name, about in TABLES.items():
        if name in results:
            row = [_interval(differences(results, name, arm, "raw", "MAP@R")) for arm in ARMS]
            lines.append(f"| {about} | " + " | ".join(row) + " |")
    lines += ["", "| `three losses` minus | " + " | ".join(f"`{arm}`" for arm in RIVALS) + " |"]
    lines.append("|---" * (len(RIVALS) + 1) + "|")
    for name, about in TABLES.items():
        if name in results:
            row = [_interval(differences(results, name, "three losses", arm, "MAP@R")) for arm in RIVALS]
            lines.append(f"| {about} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _interval(difference: tuple[float, float, int]) -> str:
    mean, half, count = difference
    return f"{mean:+.1f} ± {half:.1f}" if count > 1 else "-"


def main(folder: Path | None, processes: int, only_page: bool) -> None:
    """Run what is missing and fill the page."""
    if folder is None and not only_page:
        raise SystemExit("features needs --folder, with " + ", ".join(f"{name}.npz" for name in TABLES))
    if only_page or folder is None:
        results, texts = json.loads(RESULTS.read_text()), feature_starts.read(text_starts.RESULTS)
        starts = feature_starts.with_races(feature_starts.read())
    else:
        results, starts = run(folder, processes, print), feature_starts.run(folder, processes, print)
        texts = text_starts.run(folder, print)
    parts = {"results": page(results), "starts": feature_starts.page(starts), "texts": text_starts.page(texts)}
    text = PAGE.read_text()
    for name, tables in parts.items():
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        _, _, after = rest.partition("<!-- end -->")
        text = f"{before}<!-- {name} -->\n{tables}\n<!-- end -->{after}"
    PAGE.write_text(text)
    print(PAGE)
