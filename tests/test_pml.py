"""The adapter of pytorch-metric-learning, installed by pip into a folder of its own: its tests, the command line with it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PACKAGE = Path(__file__).parents[1] / "plugins" / "dmlcore_pml"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target), str(PACKAGE)]
    done = subprocess.run([sys.executable, *install], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    labels = np.repeat(np.arange(12), 6)
    x = np.random.default_rng(0).normal(size=(12, 8))[labels] + np.random.default_rng(1).normal(size=(72, 8))
    np.savez(target / "features.npz", x=x.astype(np.float32), y=labels)
    return target


def run(site: Path, *words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if key != "DMLCORE_PLUGINS"}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [path and str(path), str(site), os.environ.get("PYTHONPATH", "")]))
    variables["COLUMNS"] = "200"  # long names in one line
    return subprocess.run([sys.executable, "-P", *words], capture_output=True, text=True, env=variables, cwd=site)


def dmlcore(site: Path, *commands: list[str], path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Commands in one process: most of the time of a short one is importing torch."""
    code = f"import sys; from dmlcore.cli import main; sys.exit(max(main(argv) for argv in {list(commands)}))"
    return run(site, "-c", code, path=path)


def first_terms(run: Path) -> dict[str, float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return next(record["terms"] for record in records if "terms" in record)


@pytest.mark.slow
def test_the_tests_of_the_package(site: Path) -> None:
    tests = ["-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--rootdir", str(PACKAGE), str(PACKAGE / "tests")]
    done = run(site, *tests)
    assert done.returncode == 0, done.stdout[-3000:]


def test_training_beside_fused_losses(site: Path) -> None:
    readme = (PACKAGE / "README.md").read_text()
    (settings,) = re.findall(r"^```toml\n(.*?)^```$", readme, re.M | re.S)
    (site / "settings.toml").write_text(settings)
    flags = ["--data", "features.npz", "--steps", "2", "--memory", "40", "--classes-per-batch", "4"]
    plugins = "ms,pml/contrastive_loss,pml/arc_face_loss"
    loss_flags = [
        "--pml/contrastive_loss.pos_margin",
        "0.2",
        "--pml/contrastive_loss.miner",
        "pml/pair_margin_miner(neg_margin=0.9)",
    ]
    commands = [shlex.split(line)[1:] for line in readme.splitlines() if line.startswith("dmlcore train")]
    commands = [[*words, *flags[:4], "--out", f"readme{number}"] for number, words in enumerate(commands)]
    assert len(commands) == 2
    done = dmlcore(
        site,
        ["train", "--config", "settings.toml", "--plugins", plugins, *loss_flags, *flags, "--out", "first"],
        ["train", "--config", "first/config.toml", "--out", "again"],
        ["eval", "first"],
        ["train", "--plugins", "pml/ranked_list_loss,contrastive", "--contrastive.miner", "pml/batch_hard_miner", *flags[:4]],
        *commands,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "pml/contrastive_loss (not fused: pytorch-metric-learning computes it; dmlcore's own form is 'contrastive')"
        in done.stderr
    )
    assert "in proxies" in done.stderr
    terms = first_terms(site / "first")
    assert set(terms) == {"ms", "pml/contrastive_loss", "pml/arc_face_loss"}
    config = (site / "first" / "config.toml").read_text()
    assert '["pml/contrastive_loss"]' in config and 'distance = "lp(p=2, power=2)"' in config and "pos_margin = 0.2" in config
    assert first_terms(site / "again") == terms
    (folder,) = (site / "runs").iterdir()  # a folder, not one inside another
    assert folder.name.endswith("-pml-ranked_list_loss+contrastive") and (folder / "result.json").exists()


def test_help_and_listing(site: Path) -> None:
    done = dmlcore(site, ["train", "--plugins", "ms,pml/smooth_ap_loss", "--help"], ["plugins", "--json"])
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "--pml/smooth_ap_loss.temperature" in said and "[default: 0.01]" in said
    assert "Known defects: It is wrong unless a batch has as many classes as samples of each" in said
    assert "Not offered: it compares two views" in said and "pml/triplet_margin_miner" in said


MISTAKES = [
    (["pml/vic_reg_loss"], "pml/vic_reg_loss is not offered: it compares two views of the same samples"),
    (
        ["pml/angular_loss", "--pml/angular_loss.distance", "cosine"],
        "AngularLoss requires the distance metric to be LpDistance",
    ),
    (["pml/angular_loss", "--pml/angular_loss.alpa", "3"], "pml/angular_loss has no option 'alpa'. Did you mean 'alpha'?"),
    (["ms", "--pml/angular_loss.alpha", "3"], "options of 'pml/angular_loss' are given, but that loss is not selected"),
    (["pml/angulr_loss"], "there is no loss 'pml/angulr_loss'. Did you mean 'pml/angular_loss'?"),
]


@pytest.mark.slow
def test_a_mistake_is_one_line(site: Path) -> None:
    commands = [["train", "--data", "features.npz", "--steps", "1", "--plugins", *words] for words, _ in MISTAKES]
    code = f"from dmlcore.cli import main; print([main(argv) for argv in {commands}])"
    done = run(site, "-c", code)
    assert done.stdout.strip() == str([2] * len(MISTAKES)), done.stderr
    for said, (_, line) in zip(done.stderr.splitlines(), MISTAKES, strict=True):
        assert said.startswith("error: ") and line in said


def test_an_old_library_is_one_line(site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pytorch_metric_learning-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: pytorch-metric-learning\nVersion: 1.0\n")
    done = dmlcore(site, ["plugins"], path=tmp_path)
    assert done.returncode != 0 and len(done.stderr.splitlines()) == 1
    assert "dmlcore-pml needs pytorch-metric-learning >= 2.9, but 1.0 is installed" in done.stderr
