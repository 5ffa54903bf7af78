"""Builds the CPU extension with AddressSanitizer and UndefinedBehaviorSanitizer, and runs the table of cases through it. Not a
test itself: `test_sanitized.py` builds, and runs this file as a script in a child process with the sanitizers preloaded."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from cuda_emulation import COMPILER, CSRC, SANITIZED, TESTS, loss_list, pybind_headers, sanitizers

X86 = platform.machine() in ("x86_64", "AMD64")
LEVELS = {"base": [], **({"avx2": ["-march=x86-64-v3"]} if X86 else {})}
FLAGS = [
    "-std=c++17",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
]
FLAGS += ["-w", "-DDML_SANITIZED"]
PER_LEVEL = ("level", "loss", "neighbours")  # as setup.py compiles them
# Optimising the sanitizers' code takes as long again as making it, and shows no more.
CHECKED = ["-O0", *SANITIZED]
BATCHES_RUN = ("odd", "unbalanced", "one sample", "one class", "all different", "zero vectors")
PLANS_RUN = (
    {},
    {"tile_rows": 5, "tile_columns": 32, "workspace": 0},
    {"triangle": 0, "workspace": 0, "tile_rows": 8, "tile_columns": 16},
    {"slot_bytes": 4000},
    {"threads": 2, "thread_work": 1, "tile_rows": 8, "tile_columns": 32},
    {"threads": 2, "thread_work": 1, "triangle": 0, "tile_rows": 8},
)


def shares(stems: Sequence[str]) -> dict[str, list[str]]:
    """Which level checks which loss. A loss is one text for all levels, so each is compiled for one of them: time halves."""
    names = list(LEVELS)
    return {level: [stem for k, stem in enumerate(sorted(stems)) if k % len(names) == n] for n, level in enumerate(names)}


def _stand_in(level: str, missing: str) -> str:
    """The planner asks for every level of x86; a level that is not built is replaced by another."""
    lines = ['#include "cpu/neighbours.h"', '#include "cpu/problem.h"', "namespace dml {"]
    for kind, prefix in (("Kernels", "kernels"), ("RankingKernels", "ranking")):
        for number, short in (("float", "f32"), ("double", "f64")):
            lines.append(f"{kind}<{number}> {prefix}_{short}_{level}();")
            lines.append(f"{kind}<{number}> {prefix}_{short}_{missing}() {{ return {prefix}_{short}_{level}(); }}")
    return "\n".join([*lines, "}", ""])


def build(folder: Path, losses: dict[str, list[str]], headers: Path = CSRC) -> Path:
    """Compile the extension.

    Args:
        folder: new files go here.
        losses: level to the headers (without `.h`) it is compiled with.
        headers: a folder with `losses/x.h`, searched before `csrc`.

    Returns:
        The module `_cpu.so`.
    """
    includes = [f"-I{sysconfig.get_path('include')}", f"-I{pybind_headers()}", f"-I{headers}", f"-I{CSRC}"]
    # The level that is not built is not offered either, whatever the machine has: its stand-in holds functors of another level.
    several = ["-DDML_X86", '-D__builtin_cpu_supports(name)=(__builtin_strcmp(name,"x86-64-v4")!=0)'] if len(losses) > 1 else []
    jobs: list[tuple[str, list[str]]] = []
    for level, stems in losses.items():
        listed, losses_source = loss_list(folder / f"include-{level}", stems, "cpu/loss.cpp")
        for source in (losses_source, str(CSRC / "cpu" / "level.cpp"), str(CSRC / "cpu" / "neighbours.cpp")):
            flags = [*CHECKED, *listed, f"-DDML_LEVEL={level}", *LEVELS[level]]
            jobs.append((f"{Path(source).stem}-{level}", [*flags, source]))
    jobs.append(("binding", ["-O1", str(CSRC / "bindings" / "cpu.cpp")]))
    for path in sorted((CSRC / "cpu").glob("*.cpp")):
        if path.stem not in PER_LEVEL:
            jobs.append((path.stem, [*CHECKED, *several, str(path)]))
    if several:
        (folder / "stand_in.cpp").write_text(_stand_in("avx2", "avx512"))
        jobs.append(("stand_in", ["-O0", str(folder / "stand_in.cpp")]))
    running: list[subprocess.Popen] = []
    for name, flags in jobs:  # at most two compilers at a time: each takes half a gigabyte
        while sum(process.poll() is None for process in running) >= 2:
            next(process for process in running if process.poll() is None).wait()
        command = [COMPILER, *FLAGS, *includes, *flags, "-c", "-o", str(folder / f"{name}.o")]
        running.append(subprocess.Popen(command, stderr=(folder / f"{name}.log").open("w")))
    for (name, _), process in zip(jobs, running, strict=True):
        assert process.wait() == 0, (folder / f"{name}.log").read_text()
    objects = [str(folder / f"{name}.o") for name, _ in jobs]
    command = [COMPILER, "-shared", "-fopenmp", *SANITIZED, *objects, "-o", str(folder / "_cpu.so")]
    subprocess.run(command, check=True)
    return folder / "_cpu.so"


def run(module: Path, level: str, *planted: str) -> subprocess.CompletedProcess[str]:
    """This file as a script, with the sanitizers in place: its output says `clean`, or what they found.

    Args:
        module: from `build`.
        level: the instruction set.
        planted: functors without a row in the table of cases, to run instead of the table, each followed by `batch` or
            `references`.
    """
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(sanitizers()),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": os.pathsep.join([str(TESTS), *[entry for entry in sys.path if entry]]),
        "DML_CPU_LEVEL": level,
        "DML_FUSED": "1",
        "OMP_WAIT_POLICY": "passive",
    }
    command = [sys.executable, "-P", __file__, str(module), *planted]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    done.stderr += _source_lines(module, done.stderr)
    return done


def _source_lines(module: Path, report: str) -> str:
    """Files and lines of the frames that the sanitizer names by their offset only: its reader gives up on large units."""
    offsets = re.findall(rf"\({re.escape(str(module))}\+(0x[0-9a-f]+)\)", report)[:8]
    if not offsets:
        return ""
    command = ["addr2line", "--inlines", f"--exe={module}", *offsets]  # comes with the linker
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _load(path: str) -> None:
    import torch  # noqa: F401  before the extension: it brings the OpenMP runtime they share

    spec = importlib.util.spec_from_file_location("_cpu", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["dmlcore._cpu"] = module  # what dmlcore.kernels finds instead of its own


def _run_all(path: str) -> None:
    _load(path)
    import torch
    from cases import BATCHES, FUSED, PAIRS, assert_close, embeddings_of, value_and_gradients

    import dmlcore
    from dmlcore.kernels import extension, functors, plan_options

    assert extension.cpu() is sys.modules["dmlcore._cpu"] and extension.cpu().__file__ == path
    torch.set_num_threads(1)
    extension.use_blas("own")  # the vendor's products are not instrumented
    checked = []
    for case in FUSED:
        if case.create().functor_call().functor not in functors():
            continue
        checked.append(case.id.replace(" ", ""))
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-2)):
            loss = case.create(dtype)
            for name in BATCHES_RUN:
                x, y = BATCHES[name][0].to(dtype), BATCHES[name][1]
                for plan in PLANS_RUN if name == "odd" else PLANS_RUN[:1]:
                    with plan_options(**plan):
                        result = value_and_gradients(loss, x, y, loss)
                if dtype == torch.float64:
                    assert_close(result, value_and_gradients(loss, x, y, loss.reference), tolerance)
            if case not in PAIRS:
                continue
            for plan in PLANS_RUN[:3]:
                x, y = BATCHES["odd"][0].to(dtype), BATCHES["odd"][1]
                references = embeddings_of(y[:21], dtype=dtype, seed=8).requires_grad_()
                with plan_options(**plan):
                    loss(x.clone().requires_grad_(), y, references=references, reference_labels=y[:21]).backward()
                    own = torch.arange(len(y)) % 22 - 1
                    loss(x.clone().requires_grad_(), y, references=references, reference_labels=y[:21], own=own).backward()
                    loss(x.clone().requires_grad_(), y, relation=lambda a, b: a[:, None] % 3 == b[None] % 3).backward()
    heads = [case.create(torch.float32) for case in PAIRS if case.id.replace(" ", "") in checked][:3]
    ensemble = dmlcore.LossEnsemble(heads, columns=[(11 * k, 11 * k + 11) for k in range(len(heads))])
    wide = torch.cat([BATCHES["odd"][0].float()] * 3, 1)  # columns that are no whole rows, on as many threads
    for plan in ({}, {"threads": 2, "thread_work": 20_000}):
        with plan_options(**plan):
            ensemble(wide.clone().requires_grad_(), BATCHES["odd"][1]).backward()
    for samples in (2, 40):  # positives compared one by one, and searched in a tree
        labels = torch.arange(97) // samples
        for dtype in (torch.float32, torch.float64):
            x = embeddings_of(labels, dtype=dtype)
            dmlcore.evaluation.retrieval_metrics(x, labels)
            dmlcore.evaluation.retrieval_metrics(x[:13], labels[:13], x, labels)
    print("clean:", *checked)


def _run_planted(path: str, *planted: str) -> None:
    _load(path)
    import torch
    from cases import BATCHES

    from dmlcore.kernels import FunctorCall, fused_rows

    torch.set_num_threads(1)
    x, y = BATCHES["one class"]
    for functor, against in zip(planted[::2], planted[1::2], strict=True):
        references = (x, y) if against == "references" else (None, None)
        values, _ = fused_rows(x.clone().requires_grad_(), y, *references, (FunctorCall(functor, (0.3,)),))
        values.sum().backward()
        print("clean:", functor, flush=True)


if __name__ == "__main__":
    _run_planted(*sys.argv[1:]) if len(sys.argv) > 2 else _run_all(sys.argv[1])
