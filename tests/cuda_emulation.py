"""Builds the CUDA kernels for the CPU: the sources of `csrc/cuda` and the binding, compiled by the host compiler with
`cuda_on_cpu.h`. Not a test itself; also run as a script under AddressSanitizer by `test_cuda_emulated.py`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

TESTS = Path(__file__).parent
CSRC = TESTS.parent / "csrc"
COMPILER = os.environ.get("CXX", "g++")
COMMON = ["-std=c++20", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wno-deprecated", "-Wno-unknown-pragmas"]
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g1"]
EMULATED = ["-x", "c++", "-include", str(TESTS / "cuda_on_cpu.h"), "-DDML_LEVEL=cuda", f"-I{CSRC}"]
SANITIZED_LOSSES = ("ms", "triplet", "triplet_mined", "smooth_ap", "histogram", "soft_triple", "lifted_structure")  # each shape


def missing() -> str:
    """Why the kernels cannot be built here, or an empty string."""
    if shutil.which(COMPILER) is None:
        return f"there is no {COMPILER}"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers are not installed"
    return "" if CSRC.exists() else "the sources are not here"


def sanitizers() -> list[str]:
    """The sanitizers' runtime libraries, to be loaded before everything else; empty where they are not installed."""
    libraries = []
    for name in ("libasan.so", "libubsan.so"):
        path = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if not os.path.isabs(path):
            return []
        libraries.append(os.path.realpath(path))
    return libraries


def pybind_headers() -> str:
    """The folder of pybind11's headers."""
    try:
        import pybind11

        return pybind11.get_include()
    except ImportError:  # torch ships the headers too
        return str(Path(torch.__file__).parent / "include")


def loss_list(folder: Path, stems: list[str], unit: str) -> tuple[list[str], str]:
    """Writes `dml_losses.h` of some headers into a new folder, and one source that compiles them all.

    Args:
        folder: to be made.
        stems: the headers.
        unit: what the build compiles once per loss, as `cpu/loss.cpp`; here one after the other, for time.

    Returns:
        The flag that finds the list, and the source.
    """
    folder.mkdir()
    (folder / "dml_losses.h").write_text("#define DML_LOSSES(use) " + " ".join(f"use({stem})" for stem in stems) + "\n")
    source = folder / f"all_{Path(unit).name}"
    source.write_text("".join(f'#define DML_LOSS {stem}\n#include "{unit}"\n#undef DML_LOSS\n' for stem in stems))
    return [f"-I{folder}"], str(source)


def build(folder: Path, sanitized: bool) -> None:
    """Compile into a folder: `plain/_cuda.so`, and with `sanitized` the same under `sanitized/`."""
    from dmlcore.kernels.jit.headers import fingerprint  # not above: `cpu_sanitized.py` brings kernels that dmlcore is to find

    headers = sorted(path.stem for path in (CSRC / "losses").glob("*.h"))
    python = [f"-I{sysconfig.get_path('include')}", f"-I{pybind_headers()}", f"-I{CSRC}"]
    binding = folder / "binding.o"
    source = str(CSRC / "bindings" / "cuda.cpp")
    agreed = f'-DDML_CUDA_HEADERS="{fingerprint(CSRC, "cuda")}"'
    jobs = [["-std=c++17", "-fPIC", "-fvisibility=hidden", "-O1", agreed, *python, "-c", source, "-o", str(binding)]]
    links = []
    for kind in ["plain", "sanitized"][: 1 + sanitized]:
        out = folder / kind
        out.mkdir()
        flags = _flags(kind)
        listed, losses = loss_list(out / "include", headers if kind == "plain" else list(SANITIZED_LOSSES), "cuda/loss.cu")
        objects = []
        sources = [str(path) for path in sorted((CSRC / "cuda").glob("*.cu")) if path.stem != "loss"]
        for source in [*sources, losses]:
            objects.append(str(out / f"{Path(source).stem}.o"))
            jobs.insert(0, [*flags, *EMULATED, *listed, "-c", source, "-o", objects[-1]])
        if kind == "plain":
            jobs.append([*flags, "-shared", *EMULATED, str(TESTS / "cuda_external.cu"), "-o", str(out / "external.so")])
        links.append([*flags, "-shared", *objects, str(binding), "-o", str(out / "_cuda.so")])
    for batch in (jobs, links):
        _compile(batch)


def build_faults(folder: Path, sanitized: bool) -> None:
    """Compile `cuda_faults.cu` into a folder: `plain.so`, and with `sanitized` `sanitized.so`."""
    kinds = ["plain", "sanitized"][: 1 + sanitized]
    source = str(TESTS / "cuda_faults.cu")
    _compile([[*_flags(kind), "-shared", *EMULATED, source, "-o", str(folder / f"{kind}.so")] for kind in kinds])


def _flags(kind: str) -> list[str]:
    # the sanitizers' code takes 30 s to compile from -O1 on
    return [*COMMON, *(["-O0", *SANITIZED] if kind == "sanitized" else ["-O1"])]


def _compile(jobs: list[list[str]]) -> None:
    running = [subprocess.Popen([COMPILER, *job], stderr=subprocess.PIPE, text=True) for job in jobs]
    errors = [process.communicate()[1] for process in running]
    for process, error in zip(running, errors, strict=True):
        assert process.returncode == 0, error


def sanitized_environment() -> dict[str, str]:
    """What a process needs to load a library that was built with the sanitizers."""
    path = os.pathsep.join([str(TESTS), *[entry for entry in sys.path if entry]])
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(sanitizers()),
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": path,
        "CUEMU_ORDER": "3",
        "OMP_NUM_THREADS": "2",
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    }


def load(path: Path) -> ModuleType:
    """The binding, as a module that `CudaPass` takes."""
    spec = importlib.util.spec_from_file_location("_cuda", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run_all(path: str) -> None:
    from dmlcore.kernels import FunctorCall, Pass, Relations, plan_options
    from dmlcore.kernels.cuda import CudaPass

    module = load(Path(path))

    def check(
        x: Tensor, labels: Tensor, r: Tensor | None, ry: Tensor | None, calls: Any, *, relations: Any = None, **plan: int
    ) -> None:
        with plan_options(**plan):
            state = CudaPass(Pass(x, labels, r, ry, tuple(calls), (True, True), relations or Relations()), module=module)
            values, _, tables = state.forward()
            grad, _ = state.backward(torch.ones_like(values), torch.ones_like(tables))
        assert torch.isfinite(values).all() and torch.isfinite(grad).all()

    def windows(count: int) -> Tensor:
        return torch.tensor([[-0.5], [0.9], [-0.9], [0.8]]).repeat(1, count)

    for anchors, references, width in ((33, None, 17), (1, None, 3), (67, 5, 1), (2, 0, 4), (3, 65, 130), (0, 4, 2)):
        torch.manual_seed(0)
        x, labels = torch.randn(anchors, width), torch.randint(4, (anchors,))
        r = None if references is None else torch.randn(references, width)
        ry = None if references is None else torch.randint(4, (references,))
        calls = [
            FunctorCall("ms", (2.0, 50.0, 0.5, 0.1)),
            FunctorCall("ms", (2.0, 500.0, 0.5, 1e9)),
            FunctorCall("triplet_semihard", (0.1,)),
            FunctorCall("triplet_semihard_hardest", (0.1, 0.0)),
            FunctorCall("triplet_hard", (0.1, 0.0)),
            FunctorCall("smooth_ap", (0.1,), torch.ones(1, anchors)),
            FunctorCall("histogram", (9.0,), cells=18),
        ]
        check(x, labels, r, ry, calls + ([FunctorCall("lifted_structure", (1.0, 0.0))] if r is None else []))
        check(x, labels, r, ry, [replace(call, windows=windows(anchors)) for call in calls], tile_rows=7, tile_columns=5)
        starts = torch.arange(anchors + 1) * min(2, references or 0)
        lists = torch.arange(min(2, references or 0)).repeat(anchors)
        if r is not None:
            check(x, labels, r, ry, calls, relations=Relations(torch.full((anchors,), -1), starts, lists), tile_columns=3)
    labels = torch.cat([torch.zeros(258, dtype=torch.int64), torch.arange(3)])  # beyond what fits shared memory
    check(
        torch.randn(5, 2), labels[:5], torch.randn(261, 2), labels, [calls[0], calls[2]], relations=Relations(torch.arange(5))
    )
    classes = torch.arange(4).repeat_interleave(3)
    check(
        torch.randn(9, 5),
        classes[:9],
        torch.randn(12, 5),
        classes,
        [FunctorCall("soft_triple", (3.0, 0.1, 20.0, 0.01))],
        tile_columns=7,
    )
    for ranked in rankings():
        ranked(module)
    print("clean")


def rankings() -> list[Callable[[ModuleType], Tensor]]:
    """Rankings over every path of the kernels: compared and searched positives, runs, references, each metric and type."""
    from dmlcore.kernels.cuda_neighbours import rank_positives

    def of(n: int, m: int, d: int, classes: int, metric: str, memory: int, few: int, dtype: torch.dtype) -> Any:
        generator = torch.Generator().manual_seed(n + m)
        x, r = (torch.randn(rows, d, generator=generator).to(dtype) for rows in (n, m))
        y, ry = (torch.randint(classes, (rows,), generator=generator) for rows in (n, m))
        vectors, labels = (r, ry) if m else (None, None)
        return lambda module: rank_positives(x, y, vectors, labels, (1, 8), metric, memory=memory, few=few, module=module)

    single, double = torch.float32, torch.float64
    return [
        of(1, 0, 3, 1, "cosine", 0, 0, single),
        of(200, 0, 17, 60, "cosine", 0, 0, single),
        of(150, 0, 5, 3, "dot", 4000, 0, single),
        of(67, 140, 33, 20, "euclidean", 0, 2, single),
        of(3, 1, 1, 2, "dot", 0, 0, single),
        of(90, 0, 9, 25, "euclidean", 3000, 2, double),
        of(5, 70, 2, 1, "cosine", 0, 0, double),
    ]


if __name__ == "__main__":
    _run_all(sys.argv[1])
