"""The functors of plugins on whatever device is asked for, and what `info` says of run-time compilation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmlcore.errors import DmlcoreError
from dmlcore.kernels.jit import cache, cpu_functors, cuda_functors
from dmlcore.kernels.jit.compiler import Compiler, find_compiler
from dmlcore.kernels.jit.sources import why_not_enabled


def why_not_loaded(functor: str, header: Path | None, device: str = "cpu") -> str:
    """Make a functor ready, and say why that did not work, or return an empty string.

    Args:
        functor: the name that `functor_call` gives.
        header: the file that lists it; None: a built-in functor, or one of a header that a plugin's hook names.
        device: `cpu` or `cuda`.
    """
    if device == "cuda":
        return cuda_functors.why_not_loaded(functor, header)
    if device != "cpu":
        return f"the functor '{functor}' has no form for {device} tensors"
    return cpu_functors.why_not_loaded(functor, header)


def facts() -> dict[str, Any]:
    """For `info`: whether functors are compiled at run time, by whom, where they are kept, and which joined."""
    compiler = find_compiler()
    try:
        folder = str(cache.folder())
    except DmlcoreError as error:
        folder = str(error)
    return {
        "enabled": not why_not_enabled(),
        "compiler": " ".join(compiler.command) if isinstance(compiler, Compiler) else compiler,
        "folder": folder,
        "functors": {name: str(entry.header) for entry in cpu_functors.loaded() for name in entry.functors},
        "failed": cpu_functors.failed(),
        "cuda": cuda_functors.facts(),
    }
