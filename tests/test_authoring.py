"""What authors get: new packages that pass their own tests, the conformance kit and its faults, benchmarks, the commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmlcore import cli, plugins
from dmlcore.authoring import bench, create_package
from dmlcore.authoring.packages import KINDS
from dmlcore.data import BatchSampler, DataSource, FeatureStore, Table, Transform, TransformOptions
from dmlcore.ensemble import Compressor, Weighting
from dmlcore.errors import ConfigError, PluginError
from dmlcore.evaluation import Metric
from dmlcore.losses import Loss, Miner, PairLoss, Rows
from dmlcore.models import Trunk
from dmlcore.testing import check, check_loss, kind_of, run_checks_of
from dmlcore.testing.memory import describe, growth
from dmlcore.training import Logger

ROOT = Path(__file__).parents[1]
# What would take long by default.
QUICK: dict[str, dict[str, Any]] = {"linear": {"steps": 20, "batch": 32}, "lin_tanh_lin": {"batch": 32}}
OF_LIBRARIES = ("bn_inception", "hf", "timm", "torchvision", "tensorboard", "wandb", "mlflow")  # which have tests of their own
OF_THE_FIELD = ("cub", "cars", "sop", "in_shop", "flowers", "pets", "inaturalist", "tiny_imagenet")
NEED_A_PATH = (
    "folder",
    "csv",
    "npz",
    "mnist",
    "omniglot",
    "isolet",
    "hugging_face",
    "npy",
    "parquet",
    "webdataset",
    *OF_THE_FIELD,
)


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.mark.slow
def test_new_packages_of_every_kind_pass_their_own_tests(tmp_path: Path) -> None:
    assert set(KINDS) == set(plugins.KINDS)
    folders = [tmp_path / kind for kind in KINDS] + [tmp_path / "fused", ROOT / "plugins" / "dmlcore_example"]
    for kind in KINDS:
        create_package(f"my_{kind}", kind, out=tmp_path / kind)
    files = create_package("my_fused", fused=True, out=tmp_path / "fused")
    assert tmp_path / "fused" / "dmlcore_my_fused" / "my_fused.h" in files
    pytest_alone = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", "-c", os.devnull]
    done = subprocess.run(
        [*pytest_alone, "--rootdir", str(tmp_path), *(str(folder / "tests") for folder in folders)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) >= 30


def test_new_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"name": "Mine"}, "the name is 'Mine', but must be lower-case letters"),
        ({"name": "my-loss"}, "the name is 'my-loss'"),
        ({"name": "none"}, "means something else already"),
        ({"name": "ms"}, "there is a loss 'ms' already, of dmlcore"),
        ({"name": "mine", "kind": "los"}, "kind is 'los', but must be one of loss, miner"),
        ({"name": "mine", "kind": "miner", "fused": True}, "a miner has no fused form"),
        ({"name": "mine", "out": tmp_path / "there"}, "exists already"),
        ({"name": "mine", "out": tmp_path / "file" / "x"}, "cannot write into"),
    ]
    for arguments, words in cases:
        with pytest.raises(ConfigError, match=words):
            create_package(**{"out": tmp_path / "new", **arguments})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]


def test_new_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(ConfigError, match="cannot write .*new: No space left on device"):
        create_package("mine", out=tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_the_command_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Callable[..., tuple[int, str, str]]) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = here("plugins", "new", "mine")
    assert status == 0 and "pip install -e 'dmlcore-mine[test]'" in out
    status, _, err = here("plugins", "new", "mine")
    assert status == 2 and "dmlcore-mine exists already" in err
    status, out, _ = here("plugins", "new", "other", "--kind", "metric", "--out", "other", "--json")
    assert status == 0 and json.loads(out)["folder"] == "other"
    status, out, _ = here("plugins", "check", "dmlcore-mine/dmlcore_mine/__init__.py:Mine", "--json")
    report = json.loads(out)
    assert status == 0 and report["passed"] and report["kind"] == "loss"
    memory = next(entry for entry in report["checks"] if entry["name"] == "memory")
    assert memory["status"] == "not applicable" or memory["detail"].startswith("O(B)"), memory  # definitions are streamed


def test_the_kit_passes_everything_built_in() -> None:
    for kind in plugins.KINDS:
        for name, entry in plugins.registry(kind).items():
            if entry.owner == "dmlcore" and kind != "loss" and name not in (*NEED_A_PATH, *OF_LIBRARIES):
                report = run_checks_of(entry.component, **QUICK.get(name, {}))
                assert report.kind == kind and len(report.checks) >= 3
                report.raise_failures()


def test_check_loss_passes_every_builtin() -> None:
    for name, entry in plugins.registry("loss").items():
        if entry.owner == "dmlcore":
            report = run_checks_of(entry.component)
            assert all(entry.passed for entry in report.checks), report
            assert sum(entry.applies for entry in report.checks) > 15, name


class Dense(Loss):
    """All pairs at once."""

    name = "dense"

    def forward(self, embeddings, labels, *, references=None, reference_labels=None):
        return (embeddings @ embeddings.T).square().mean()


def test_growth_of_memory() -> None:
    assert describe({1024: 10.0, 2048: 20.0}) == "O(B) (10 MB at 1024, 20 MB at 2048)"
    assert describe({1024: 10.0, 2048: 41.0}).startswith("O(B^2)")
    assert describe({1024: 50.0}) == "growth with the batch unknown (50 MB at 1024)"
    assert growth(Dense, {}).startswith("O(B^2)")


class Faulty(PairLoss):
    """A loss with a fault."""

    name = "faulty"
    by_rows = False
    fault = ""

    def row_values(self, similarities, positive, negative):
        values = (similarities * negative).sum(1)[None]
        if self.fault == "scale":
            values = values * self.length
        return Rows(values, negative.sum(1).to(values)[None])

    def forward(self, embeddings, labels, **references):
        self.length = float(embeddings.detach().norm())
        if self.fault == "in place":
            embeddings.data.mul_(1.0001)
        if self.fault == "low precision" and embeddings.dtype == torch.bfloat16:
            return super().forward(embeddings * float("inf"), labels, **references)
        if self.fault == "autocast" and torch.is_autocast_enabled("cpu"):
            return super().forward(embeddings, labels, **references) + 1
        if self.fault == "memory" and references.get("references") is not None:
            return super().forward(embeddings, labels, **{**references, "own": None}) + 1
        return super().forward(embeddings, labels, **references)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("scale", "scale of the embeddings: it says that it normalises"),
        ("in place", "inputs stay as they are.*: forward changes its arguments in place"),
        ("low precision", "bfloat16"),
        ("autocast", "autocast: autocast gives"),
        ("memory", "cross-batch memory: a memory that holds the batch alone gives"),
    ],
)
def test_faults_of_losses_are_found(fault: str, words: str) -> None:
    broken = type("Broken", (Faulty,), {"fault": fault, "__doc__": "Broken."})
    with pytest.raises(PluginError, match=words):
        check_loss(broken)
    check_loss(Faulty)


class BadMiner(Miner):
    """Keeps what was no pair."""

    name = "bad_miner"

    def masks(self, similarities, positive, negative, compared):
        return torch.ones_like(positive), negative


class BadWeighting(Weighting):
    """Says other weights than it uses."""

    name = "bad_weighting"

    def forward(self, terms):
        return terms.sum()

    @property
    def weights(self):
        return 2 * self.initial


class BadCompressor(Compressor):
    """Too wide, and never refuses."""

    name = "bad_compressor"

    def learn(self, embeddings, labels, seed):
        pass

    def forward(self, z):
        return z


class BadTrunk(Trunk):
    """Features of another width than it says."""

    name = "bad_trunk"
    Options = TransformOptions
    accepts = frozenset(("features",))

    def __init__(self, options, sample_shape):
        super().__init__(options, sample_shape)
        self.features = 3

    def forward(self, samples):
        return samples


class BadData(DataSource):
    """Labels beyond its names, and other samples each time."""

    name = "bad_data"
    Options = TransformOptions

    def load(self):
        x = np.random.default_rng().normal(size=(20, 4)).astype(np.float32)
        return Table("features", FeatureStore(x), np.repeat(np.arange(5), 4), ["a", "b"], (4,))


class BadTransform(Transform):
    """Draws from the global stream."""

    name = "bad_transform"

    def __call__(self, samples, generator):
        return samples + torch.rand(())


class BadSampler(BatchSampler):
    """Draws from numpy's global stream."""

    name = "bad_sampler"

    def draw(self, step):
        return np.random.permutation(len(self.labels))[: self.classes_per_batch * self.samples_per_class]


class BadMetric(Metric):
    """Depends on the order, changes what it gets."""

    name = "bad_metric"

    def __call__(self, embeddings, labels):
        embeddings.mul_(2)
        return {"first": float(embeddings[0, 0])}


class BadLogger(Logger):
    """Fails."""

    name = "bad_logger"

    def step_ended(self, run, record):
        raise RuntimeError("no wire")


@pytest.mark.parametrize(
    ("component", "words"),
    [
        (BadMiner, "it keeps positives that were none"),
        (BadWeighting, "weights = derivative.*: weights are"),
        (BadCompressor, "96 embeddings give .*refuses before it is fitted: before it is fitted it must refuse"),
        (BadTrunk, r"4 samples give \[4, 10\], but must give \[4, 3\]"),
        (BadData, "labels are 0..4, but there are 2 class names.*loading again gives other samples"),
        (BadTransform, "it draws from torch's global random stream"),
        (BadSampler, "it draws from numpy's global random stream"),
        (BadMetric, "order of the samples.*it changes its arguments in place"),
        (BadLogger, "hears of a training: the logger 'bad_logger' .*RuntimeError: no wire"),
    ],
)
def test_faults_of_other_kinds_are_found(component: type, words: str) -> None:
    with pytest.raises(PluginError, match=words):
        check(component)


def test_what_is_checked_and_what_is_not() -> None:
    assert kind_of(BadMetric) == "metric"
    with pytest.raises(ConfigError, match="derives from none of"):
        check(dict)
    checks = {entry.name: entry for entry in run_checks_of(Dense).checks}
    assert checks["cross-batch memory"].status == "not applicable" and "no own" in checks["cross-batch memory"].detail
    assert checks["fused = plain on CUDA"].status in ("not applicable", "ok")
    silent = run_checks_of(type("Silent", (BadMetric,), {"__doc__": None}))
    assert any(entry.name == "name and docstring" and entry.status == "fails" for entry in silent.checks)


def test_the_command_check(here: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    status, out, _ = here("plugins", "check", "batch_hard")
    assert status == 0 and "ok   rows on their own" in out and "miner 'batch_hard': all" in out
    status, _, err = here("plugins", "check", "batch_herd")
    assert status == 2 and "Did you mean 'batch_hard'" in err
    status, _, err = here("plugins", "check", "angular")
    assert status == 2 and "'angular' is the name of a loss and a miner; say which by --kind" in err
    assert here("plugins", "check", "angular", "--kind", "miner", "--options", "angle=30")[0] == 0
    status, _, err = here("plugins", "check", "pair_margin", "--options", "wide")
    assert status == 2 and "must be NAME=VALUE" in err
    (tmp_path / "bad.py").write_text(
        "from dmlcore.evaluation import Metric\n\n\nclass Bad(Metric):\n    '''Bad.'''\n\n    name = 'bad'\n\n"
        "    def __call__(self, embeddings, labels):\n        return {'first': embeddings[0, 0]}\n"
    )
    status, out, _ = here("plugins", "check", tmp_path / "bad.py:Bad")
    assert status == 1 and "FAIL order of the samples" in out and "checks fail" in out
    assert here("plugins", "check", tmp_path / "none.py:Bad")[0] == 2


def test_the_command_bench(here: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: (_ for _ in ()).throw)  # stands for a machine without a compiler
    status, out, _ = here("plugins", "bench", "ms", "--samples", "64", "--dimensions", "8", "--seconds", "0.01", "--json")
    rows = {row["form"]: row for row in json.loads(out)["rows"]}
    assert status == 0 and rows["bare products"]["ratio"] == 1 and rows["definition"]["milliseconds"] > 0
    assert ("fused" in rows) == json.loads(out)["is_fused"]
    assert "failed" in rows["definition, torch.compile"]
    out = here("plugins", "bench", "proxy_anchor", "--samples", "64", "--dimensions", "8", "--seconds", "0.01")[1]
    assert "bare products" in out and "torch.compile failed" in out
    status, _, err = here("plugins", "bench", "ms", "--samples", "4")
    assert status == 2 and "samples is 4" in err
    assert here("plugins", "bench", "batch_hard")[0] == 2


def test_bench_compares_before_it_times() -> None:
    class Wrong(type(plugins.find("loss", "ms").component())):  # type: ignore[misc]
        """Another value than its definition."""

        by_rows = False

        def forward(self, embeddings, labels, **references):
            return 2 * super().forward(embeddings, labels, **references)

    if not Wrong().is_fused:
        pytest.skip(Wrong().why_not_fused)
    with pytest.raises(ConfigError, match="the fused form of ms gives"):
        bench(Wrong, samples=16, dimensions=4, seconds=0.01)


def test_the_command_hooks(here: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    status, out, _ = here("plugins", "hooks")
    assert status == 0 and "### `dmlcore_losses()`" in out
    assert len(json.loads(here("plugins", "hooks", "--json")[1])["hooks"]) == 19
    (tmp_path / "page.md").write_text("no marks\n")
    status, _, err = here("plugins", "hooks", "--write", tmp_path / "page.md")
    assert status == 2 and "must have the lines" in err


def test_a_header_that_does_not_compile_fails_the_check(here: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    create_package("my_broken", fused=True, out=tmp_path / "package")
    module = tmp_path / "package" / "dmlcore_my_broken" / "__init__.py"
    header = module.with_name("my_broken.h")
    header.write_text(header.read_text().replace("struct", "strukt", 1))
    with pytest.warns(UserWarning, match=r"my_broken\.h"):
        status, out, _ = here("plugins", "check", f"{module}:MyBroken")
    assert status == 1 and "the header compiles" in out and "my_broken.h:" in out
