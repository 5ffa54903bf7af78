"""`dmlcore eval` and `dmlcore embed` in several processes, and how a training of several ends: the numbers of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dmlcore import cli
from dmlcore.serving import load
from dmlcore.serving.evaluation import EvaluationOptions, evaluate

SECONDS = 240
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
]


def run(*line: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "dmlcore", *line]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    draws = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 20)
    x = draws.normal(size=(40, 12))[labels] + draws.normal(size=(800, 12))
    path = tmp_path_factory.mktemp("data") / "table.npz"
    np.savez(path, x=x.astype(np.float32), y=labels)
    return path


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory) -> Path:
    """A run of two processes, with a compressor and further measures."""
    folder = tmp_path_factory.mktemp("run") / "run"
    flags = ["--steps", "4", "--eval-every", "2", "--classes-per-batch", "6", "--metrics", "clustering", "--compress", "4"]
    done = run("train", "--data", str(table), "--out", str(folder), *flags, "--processes", "2")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_training_of_two_ends_with_the_numbers_of_one(trained) -> None:
    result = json.loads((trained / "result.json").read_text())
    alone = evaluate(load(trained), how=EvaluationOptions(bootstrap=0)).result
    assert result["metrics"] == alone["metrics"] and result["baselines"] == alone["baselines"]
    assert result["embeddings"] == alone["embeddings"] and len(result["embeddings"]) == 2
    assert "clustering.nmi" in alone["metrics"]["test"]
    assert (trained / "report.html").exists()


def test_eval_in_two_processes_says_what_one_says(trained, table, tmp_path, capsys) -> None:
    line = ["eval", str(trained), "--bootstrap", "20", "--rerank", "query-expansion", "--json"]
    assert cli.main([*line, "--per-query", str(tmp_path / "one.csv")]) == 0
    alone = json.loads(capsys.readouterr().out)
    done = run(*line, "--per-query", str(tmp_path / "two.csv"), "--processes", "2")
    assert done.returncode == 0, done.stderr
    shared = json.loads(done.stdout)
    assert alone.pop("per_query")["queries"] == shared.pop("per_query")["queries"]
    assert shared == alone
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_embed_in_two_processes_writes_what_one_writes(trained, table, tmp_path, monkeypatch) -> None:
    line = ["embed", str(trained), "--data", str(table), "--batch-size", "100"]
    assert cli.main([*line, "--out", str(tmp_path / "one.npz")]) == 0
    done = run(*line, "--out", str(tmp_path / "two.npz"), "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("embeddings of") == 1
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "two.npz") as two:
        assert one.files == two.files
        for name in one.files:
            assert np.array_equal(one[name], two[name]), name


@pytest.mark.parametrize("kind", ["ivf-flat", "ivf-pq"])
def test_an_index_of_two_is_that_of_one(kind: str, tmp_path) -> None:
    draws = np.random.default_rng(1)
    x = draws.normal(size=(60_000, 16)).astype(np.float32)  # more than a process puts in at once
    np.savez(tmp_path / "e.npz", x=x, y=draws.integers(0, 50, len(x)))
    for out, flags in (("one", []), ("two", ["--processes", "2"])):
        done = run("index", str(tmp_path / "e.npz"), "--kind", kind, "--out", str(tmp_path / out), *flags)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Search in it by") == 1
    for name in ("vectors-1.npy", "entries-1.arrow", "search-1.faiss"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == sorted(f.name for f in (tmp_path / "two").iterdir())
    done = run("index", str(tmp_path / "two"), "--remove", "label=3", "--processes", "2")
    assert done.returncode == 2 and "it is changed by one" in done.stderr


def test_an_index_is_embedded_by_two(trained, table, tmp_path) -> None:
    for out, flags in (("one", []), ("two", ["--processes", "2"])):
        done = run("index", str(trained), str(table), "--out", str(tmp_path / out), *flags)
        assert done.returncode == 0, done.stderr
    for name in ("vectors-1.npy", "entries-1.arrow"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    done = run("index", str(trained), str(table), "--out", str(tmp_path / "two"), "--processes", "2")
    assert done.returncode == 2 and done.stderr.count("error") == 1 and "holds an index already" in done.stderr


def test_a_mistake_is_told_once(tmp_path) -> None:
    done = run("eval", str(tmp_path / "nothing"), "--processes", "2")
    assert done.returncode == 2
    assert done.stderr.count("error") == 1 and "there is no" in done.stderr, done.stderr
