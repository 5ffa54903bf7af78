"""`dmlcore train --seeds`: a run with each seed, means and intervals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dmlcore.cli import main
from dmlcore.errors import ConfigError
from dmlcore.protocols import repeats
from dmlcore.training import RunConfig, train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "features.npz"
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(24), 6)
    np.savez(path, x=(generator.normal(size=(24, 9))[labels] + generator.normal(size=(144, 9))).astype(np.float32), y=labels)
    return str(path)


@pytest.mark.parametrize("text, seeds", [("0-4", [0, 1, 2, 3, 4]), ("7,2", [7, 2]), ("0-1, 5", [0, 1, 5])])
def test_seeds_are_named(text: str, seeds: list[int]) -> None:
    assert repeats.seeds_of(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3", "4-2", "1,1", "0-1000", "-1", "1-", "0-99999999999999999999999"])
def test_what_names_no_seeds(text: str) -> None:
    with pytest.raises(ConfigError, match="seeds"):
        repeats.seeds_of(text)


def test_runs_with_several_seeds(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["train", "--data", data, "--plugins", "ms", "--steps", "4", "--eval-every", "2", "--out", str(tmp_path / "grid")]
    assert main([*flags, "--seeds", "0-2", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    scores, raw = [], []
    for seed in range(3):
        alone = train(data=data, plugins="ms", steps=4, eval_every=2, seed=seed, out=tmp_path / f"alone{seed}")
        scores.append(alone["metrics"]["test"]["map@r"])
        raw.append(alone["baselines"]["raw features"]["test"]["map@r"])
        assert (tmp_path / "grid" / f"seed-{seed}" / "config.toml").exists()
    mean, half = summary["metrics"]["test"]["map@r"]
    assert mean == pytest.approx(np.mean(scores), abs=1e-6)
    assert half == pytest.approx(4.302652729696142 * np.std(scores, ddof=1) / np.sqrt(3), abs=1e-6)  # t(2, 97.5 %)
    gain = summary["gains"]["raw features"]["test"]["map@r"]
    assert gain[0] == pytest.approx(np.mean(np.subtract(scores, raw)), abs=1e-6)
    before = (tmp_path / "grid" / "seed-0" / "result.json").stat().st_mtime_ns
    assert main([*flags, "--seeds", "0-3"]) == 0  # goes on with what is missing
    shown = capsys.readouterr()
    assert "3 of 4 cells are there already" in shown.err and "mean of 4 seeds" in shown.out and "±" in shown.out
    assert all(len(line) <= 80 for line in shown.out.partition("Each seed")[0].splitlines())
    assert (tmp_path / "grid" / "seed-0" / "result.json").stat().st_mtime_ns == before
    for more, told in ((["--seed", "1"], "--seed"), (["--resume", "x"], "--resume"), (["--processes", "0"], "processes")):
        assert main([*flags, "--seeds", "0-2", *more]) == 2
        assert told in capsys.readouterr().err
    assert main(["train", "--data", data, "--plugins", "triplet", "--out", str(tmp_path / "grid"), "--seeds", "0-2"]) == 2
    assert "instead of" in " ".join(capsys.readouterr().err.split())


def test_seeds_in_processes_are_the_same(data: str, tmp_path: Path) -> None:
    config = RunConfig.create(data=data, plugins="ms", steps=2, eval_every=2)
    results = [repeats.run(config, [0, 1], tmp_path / str(n), processes=n)["metrics"] for n in (1, 2)]
    assert results[0] == results[1]
