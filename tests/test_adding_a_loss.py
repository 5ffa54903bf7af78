"""Adding a fused loss is one header, one module and one row: the toy of `toy_loss` is dropped into a copy of the sources, which
is built and tested in child processes. No other file changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_emulation
import pytest

ROOT = Path(__file__).parents[1]
TOY = ROOT / "tests" / "toy_loss"
COMPANIONS = ("ms", "triplet")  # the losses of the copy, for time: one with slots, one without
CHECKS = """
import sys
import torch
import dmlcore
from dmlcore.testing import check_loss
from dmlcore_plugins.losses.toy import Toy

assert all(module.__file__.startswith(sys.argv[1]) for module in (dmlcore, sys.modules[Toy.__module__]))
toy = dmlcore.losses.create("toy", margin=0.1)
assert toy.is_fused, toy.why_not_fused
assert "toy" in dmlcore.kernels.info()["fused"]["cpu"]
check_loss(Toy)
check_loss(Toy, margin=0.7, reduction="sum")

torch.manual_seed(0)
x, y = torch.randn(90, 8, dtype=torch.float64), torch.arange(90) % 13
members = [toy, "ms", "triplet", dmlcore.losses.create("toy", margin=-0.5)]
ensemble = dmlcore.LossEnsemble(members, weights=[1.0, 2.0, 0.5, 3.0])
assert all(row["fused"] for row in ensemble.describe())
leaves = [x.clone().requires_grad_() for _ in range(2)]
total = ensemble(leaves[0], y)
alone = sum(weight * loss.reference(leaves[1], y) for weight, loss in zip([1.0, 2.0, 0.5, 3.0], ensemble.losses))
torch.testing.assert_close(total, alone, rtol=1e-10, atol=0)
torch.testing.assert_close(*(torch.autograd.grad(v, leaf)[0] for v, leaf in ((total, leaves[0]), (alone, leaves[1]))))
print("the toy is a loss like any other")
"""


def run(folder: Path, *command: str, **environment: str) -> str:
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "plugins")]), **environment}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(bool(cuda_emulation.missing()), reason=cuda_emulation.missing())
def test_a_toy_needs_a_header_a_module_and_a_row(tmp_path: Path) -> None:
    pytest.importorskip("pybind11", reason="the test extra is not installed")
    other = [path.name for path in (ROOT / "csrc" / "losses").glob("*.h") if path.stem not in COMPANIONS]
    for name in ("csrc", "dmlcore", "plugins/dmlcore_plugins", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "toy_loss", *other))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, tmp_path / name)

    shutil.copyfile(TOY / "toy.h", tmp_path / "csrc" / "losses" / "toy.h")
    shutil.copyfile(TOY / "toy.py", tmp_path / "plugins" / "dmlcore_plugins" / "losses" / "toy.py")
    table = tmp_path / "tests" / "cases.py"
    assert table.read_text().count("LOSSES = [\n") == 1
    table.write_text(table.read_text().replace("LOSSES = [\n", 'LOSSES = [\n    Case("toy", {"margin": 0.2}),\n'))

    # -O0: what the loss is, not how fast; the last -O counts
    run(tmp_path, "setup.py", "-q", "build_ext", "--inplace", DML_CUDA="0", DML_CXXFLAGS="-O0", MAX_JOBS="2")
    assert "like any other" in run(tmp_path, "-c", CHECKS, str(tmp_path), DMLCORE_PLUGINS="", DML_FUSED="1")
    report = run(
        tmp_path, "-m", "pytest", "tests/test_kernels.py", "-q", "-n", "0", "-x", "-p", "no:cacheprovider", "-k", "toy"
    )
    assert " passed" in report and "skipped" not in report.splitlines()[-1]
    assert int(report.splitlines()[-1].split(" passed")[0].split()[-1]) > 40  # every batch, plan and instruction set
