"""The cases of a first run, in their order, and the shares of the time."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from benchmarks.gpu.first.runner import Case, by_exit_status
from benchmarks.gpu.first.watching import Ending

ROOT = Path(__file__).parents[3]
SHARES = {"device": 0.08, "tests": 0.27, "sanitizer": 0.16, "correctness": 0.15, "losses": 0.24, "evaluation": 0.1}
"""Of the whole time, by stage, in this order."""
BUILD = "device/build"

TESTS = (
    ("ranks", "test_cuda_neighbours.py", ("test_equals_the_definition_with_ties", "test_duplicates_are_exactly_equal")),
    ("same bits", "test_cuda_device.py", ("test_same_bits_every_time",)),
    ("no wait", "test_cuda_device.py", ("test_the_host_does_not_wait",)),
    ("both passes", "test_cuda_device.py", ("test_both_passes_see_the_same_product",)),
    ("large classes", "test_cuda_device.py", ("test_large_classes",)),
    ("graphs", "test_cuda_device.py", ("test_graph", "test_a_step_in_a_graph")),
    ("streams and memory", "test_cuda_device.py", ("test_another_stream", "test_memory_is_linear")),
    ("precision", "test_cuda_device.py", ("test_autocast_and_half_precision", "test_scaler")),
    ("streamed columns", "test_cuda_device.py", ("test_many_proxies_and_a_large_memory",)),
    (
        "run-time compilation",
        "test_cuda_functors_device.py",
        ("test_equals_its_plain_form", "test_in_an_ensemble", "test_a_thread_without_a_context"),
    ),
    ("one launch", "test_cuda_functors_device.py", ("test_losses_share_a_launch",)),
    ("torch.compile", "test_cuda_device.py", ("test_compiled",)),
    ("indexes of faiss", "test_index_gpu.py", ("test_on_a_device",)),
)
"""Name, file and functions of the tests marked `gpu` that matter most, the most telling first."""
TOOLS = (("memcheck", "losses"), ("memcheck", "evaluation"), ("racecheck", "losses"), ("synccheck", "losses"))
TIMED = (
    *(f"five/{n}/128/{rival}" for rival in ("fused", "plain", "pml") for n in (512, 2048, 8192)),
    *(f"five/{n}/128/one launch" for n in (512, 2048, 8192)),
    "ms/2048/128/plain",
    "five/2048/128/compiled",
    "infonce/32768/512/memeff",
    "five/32768/128/fused",
    "five/2048/512/plain",
    "ms/2048/128/pml",
    "ms/2048/128/compiled",
    "five/512/128/compiled",
)
RANKED = ("60000/128/dmlcore", "60000/128/torch topk", "60000/128/faiss-gpu", "1000000/128/dmlcore")


def cases() -> list[Case]:
    """All of them. Those that cannot run on this machine say why."""
    from benchmarks.gpu.first.parts import LOSSES

    checked = ("evaluation", *dict.fromkeys(case.id for case in LOSSES))
    return [
        _parts("device", ("build", "facts"), needs="", advice="`nvidia-smi` and `dmlcore info` say more."),
        *map(_test, TESTS),
        *(_sanitizer(tool, part) for tool, part in TOOLS),
        _parts("correctness", checked, advice="Run the loss alone: `pytest -n 0 -m gpu tests/test_cuda_device.py -k NAME`."),
        _parts("losses", TIMED, seconds=60.0, advice="Profile it with `ncu`, as `docs/design/cuda.md` shows."),
        _parts("evaluation", RANKED, seconds=45.0, advice="Profile `count_kernel` with `ncu`, as `docs/design/cuda.md` shows."),
    ]


def _parts(stage: str, parts: tuple[str, ...], seconds: float = 20.0, needs: str = BUILD, advice: str = "") -> Case:
    command = (sys.executable, "-m", "benchmarks.gpu.first.parts", stage)
    return Case(stage, stage, command, parts, seconds, needs=needs, advice=advice, environment=_environment())


def _environment(**settings: str) -> dict[str, str]:
    return {"DMLCORE_PLUGINS": "", "PYTHONUNBUFFERED": "1", **settings}


def _test(entry: tuple[str, str, tuple[str, ...]]) -> Case:
    name, file, functions = entry
    missing = "" if importlib.util.find_spec("pytest") else "pytest is not installed: pip install 'dmlcore[test]'"
    flags = ("-q", "-rsfE", "-m", "gpu", "-p", "no:cacheprovider", "-n", "0")
    if not importlib.util.find_spec("xdist"):
        flags = (*flags[:-2], "-o", "addopts=")
    command = (sys.executable, "-m", "pytest", *flags, *(f"tests/{file}::{function}" for function in functions))
    advice = "Run the command of this case with `-x`, then under `compute-sanitizer --tool memcheck`."
    return Case(
        f"tests/{name}",
        "tests",
        command,
        seconds=60.0,
        needs=BUILD,
        skip=missing,
        judge=judge_tests,
        advice=advice,
        environment=_environment(),
    )


def judge_tests(ending: Ending) -> tuple[str, str]:
    """State and detail of pytest. A run in which all tests were skipped proves nothing."""
    status, detail = by_exit_status(ending)
    reasons = [line for line in ending.lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    last = ending.lines[-1] if ending.lines else "no output"
    if status == "passed" and " passed" not in last:
        return "skipped", " | ".join([last, *reasons[:2]])[:600]
    if ending.status == 5:
        return "failed", f"no test of that name: {last}"
    return status, last if status == "passed" else " | ".join([last, *reasons[:4]])[:600] if reasons else detail


def _sanitizer(tool: str, part: str) -> Case:
    program = _find_sanitizer()
    inner = (sys.executable, "-m", "benchmarks.gpu.first.parts", "smallest", part)
    return Case(
        f"sanitizer/{tool} {part}",
        "sanitizer",
        (program or "compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *inner),
        seconds=60.0,
        needs=BUILD,
        skip="" if program else "compute-sanitizer is not installed: it is part of the CUDA toolkit",
        advice="Run the command of this case and read its first report. It names the line of the kernel.",
        # torch's allocator would hide accesses beyond a tensor in its own pool
        environment=_environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1"),
    )


def _find_sanitizer() -> str | None:
    folders = [Path(os.environ.get(name, "")) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders), "/usr/local/cuda/bin"])
    return shutil.which("compute-sanitizer", path=path)
