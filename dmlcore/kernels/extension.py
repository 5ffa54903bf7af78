"""Loading the compiled extensions: which are there, which instruction set and BLAS they use, and why one is not used."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import ParamSpec, TypeVar

import torch  # before the extensions: it brings the OpenMP runtime they share

from dmlcore.errors import ConfigError, suggestion

P = ParamSpec("P")
R = TypeVar("R")


def _load(name: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(f"dmlcore.{name}"), ""
    except ImportError as error:
        return None, _why_not_loaded(name, error)


def _why_not_loaded(name: str, error: ImportError) -> str:
    """What to do where an extension is missing: Python may have been started in the sources, which hide what is installed."""
    if name == "_cuda":
        return "dmlcore._cuda was not built"
    package = Path(__file__).parents[1]
    if next(package.glob(f"{name}.*"), None) is not None:  # it is there, but does not load: another Python, a missing library
        return f"dmlcore.{name} cannot be loaded ({error}); install dmlcore again"
    if not (package.parent / "csrc").is_dir():
        return f"dmlcore was installed without {name}"
    sources = f"Python runs in dmlcore's source folder {package.parent}, where {name} is not compiled"
    elsewhere = (Path(entry, "dmlcore") for entry in sys.path if entry and Path(entry) != package.parent)
    if installed := next((folder for folder in elsewhere if next(folder.glob(f"{name}.*"), None)), None):
        return f"{sources}; leave that folder, or use `python -P`, to use the package in {installed.parent}"
    return f"{sources}; run `pip install -e .` there, or `pip install .` and leave that folder"


def _vendor_products() -> tuple[int, int, int]:
    """Addresses of sgemm_, dgemm_ and of the per-thread thread count in torch's own BLAS; 0 where there is none."""
    for library in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        try:
            loaded = ctypes.CDLL(str(library))
            products = [ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value or 0 for name in ("sgemm_", "dgemm_")]
        except (OSError, AttributeError):
            continue
        try:
            threads = ctypes.cast(loaded.MKL_Set_Num_Threads_Local, ctypes.c_void_p).value or 0
        except AttributeError:
            threads = 0
        return products[0], products[1], threads
    return 0, 0, 0


def use_blas(kind: str) -> None:
    """Choose who multiplies matrices in the CPU kernels.

    Args:
        kind: `vendor` for torch's BLAS where its symbols can be found, `own` for the kernels' own product.

    Raises:
        ConfigError: another kind.
    """
    if kind not in ("vendor", "own"):
        raise ConfigError(f"DML_BLAS is '{kind}', but must be 'vendor' or 'own'")
    if CPU is not None:
        CPU.use_blas(*(_vendor_products() if kind == "vendor" else (0, 0, 0)))


def use_default_blas() -> None:
    """Choose who multiplies as a new process does: by `DML_BLAS`, else the `preferred_blas` of the instruction set in use."""
    if CPU is not None:
        preferred = preferred_blas(_vendor_products()[2] != 0, CPU.level(), _maker_of_processor())
        use_blas(os.environ.get("DML_BLAS") or preferred)


def preferred_blas(is_mkl: bool, level: str, maker: str) -> str:
    """Who multiplies unless the user says so: `own` where there is AVX-512 but MKL takes its kernel for AVX2, as it does on an
    AMD. There that reaches about 0.4 of the peak, and the own product 0.8. Else `vendor`.

    Args:
        is_mkl: torch's BLAS is MKL.
        level: instruction set of the CPU kernels.
        maker: of the processor, as Linux calls it.
    """
    return "own" if is_mkl and level == "avx512" and maker == "AuthenticAMD" else "vendor"


def _maker_of_processor() -> str:
    """As the first lines of Linux's `/proc/cpuinfo` say; empty elsewhere."""
    try:
        with Path("/proc/cpuinfo").open(errors="replace") as lines:
            maker = next((line for line in itertools.islice(lines, 8) if line.startswith("vendor_id")), "")
    except OSError:
        return ""
    return maker.partition(":")[2].strip()


def use_level(level: str) -> None:
    """Choose the instruction set of the CPU kernels.

    Args:
        level: one of `info()["cpu"]["levels"]`.

    Raises:
        ConfigError: this machine cannot run it.
    """
    if CPU is None:
        return
    if level not in CPU.levels():
        raise ConfigError(f"DML_CPU_LEVEL is '{level}', which this machine cannot run.{suggestion(level, CPU.levels())}")
    CPU.use_level(level)
    refresh()


def refresh() -> None:
    """Ask the CPU extension which functors its instruction set has now: another one was chosen, or some were loaded."""
    global FUNCTORS, PARTNERS, MERGING, generation
    assert CPU is not None
    functors = CPU.functors()
    FUNCTORS = {name: (tuple(options.split()), values) for name, (options, values, *_) in functors.items()}
    PARTNERS = frozenset(name for name, (_, _, partners, _) in functors.items() if partners)
    MERGING = frozenset(name for name, (*_, merges) in functors.items() if merges)
    generation += 1


# Loaded with the package, so that compiled code (torch.compile) sees plain constants.
CPU, _WHY_NO_CPU = _load("_cpu")
_CUDA, _WHY_NO_CUDA = _load("_cuda")
FUNCTORS: dict[str, tuple[tuple[str, ...], int]] = {}
CUDA_FUNCTORS: dict[str, tuple[tuple[str, ...], int]] = {}
PARTNERS: frozenset[str] = frozenset()
MERGING: frozenset[str] = frozenset()
generation = 0
"""Grows whenever the functors may be others than before: what was found out about a loss holds for one generation."""
SWITCH = "DML_FUSED"
"""The environment variable that asks for plain PyTorch everywhere, by `0`."""
if CPU is not None:
    refresh()
    if os.environ.get("DML_CPU_LEVEL"):
        use_level(os.environ["DML_CPU_LEVEL"])
    use_default_blas()
elif os.environ.get(SWITCH, "1") != "0":
    warnings.warn(f"losses run in plain PyTorch, many times slower: {_WHY_NO_CPU}", stacklevel=2)


if _CUDA is not None:
    CUDA_FUNCTORS = {name: layout for name, layout in FUNCTORS.items() if name in _CUDA.functors()}


def cpu() -> ModuleType | None:
    """`dmlcore._cpu`, or None when it was not built."""
    return CPU


def level() -> str:
    """The instruction set the CPU kernels use, or an empty string."""
    return "" if CPU is None else CPU.level()


def cuda() -> ModuleType | None:
    """`dmlcore._cuda`, or None when it was not built. It loads without a GPU; `info` says whether one is usable."""
    return _CUDA


def fused_enabled() -> bool:
    """False when the environment asks for plain PyTorch everywhere (`DML_FUSED=0`)."""
    return os.environ.get(SWITCH) != "0"


def constant_in_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Let torch.compile call a function once and keep what it returns, as `torch.compiler.assume_constant_result` does.

    That one loads the compiler with all its modules, which takes longer than torch itself, for setting this attribute.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


@constant_in_graphs
def why_not(device: str) -> str:
    """Why fused losses cannot run on a device type, or an empty string.

    Args:
        device: `cpu`, `cuda`, or another torch device type.
    """
    if not fused_enabled():
        return "DML_FUSED=0 asks for plain PyTorch"
    if device == "cpu":
        return _WHY_NO_CPU
    if device == "cuda":
        return f"{_WHY_NO_CUDA}; it is built where a working nvcc is found" if _CUDA is None else ""
    return f"there are no kernels for {device} tensors"


def functors(device: str = "cpu") -> dict[str, tuple[tuple[str, ...], int]]:
    """The functors of a device type, built in or loaded so far: name to (its option names in order, values per anchor)."""
    return CUDA_FUNCTORS if device == "cuda" else FUNCTORS


def partner_functors() -> frozenset[str]:
    """The functors that couple an anchor with its positives, and so take no references."""
    return PARTNERS


def merging_functors() -> frozenset[str]:
    """The functors of the CPU that keep nothing of an anchor but sums over its negatives, so that ranks can merge theirs."""
    return MERGING
