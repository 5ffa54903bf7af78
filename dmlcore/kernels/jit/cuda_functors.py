"""Functors of plugins on CUDA devices: the driver loads their machine code (`cubins`), and their kernels join the passes of
`kernels/cuda.py`. The CPU's side is `cpu_functors`."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dmlcore.errors import DmlcoreError, PluginError
from dmlcore.kernels import extension
from dmlcore.kernels.jit import nvrtc
from dmlcore.kernels.jit.cubins import NUMBERS, Cubin, Form, cubin_of
from dmlcore.kernels.jit.driver import driver, why_not_there
from dmlcore.kernels.jit.sources import headers_with, why_not_enabled

_MOST_OPTIONS, _MOST_MEMORY = 16, 24
"""A functor's options, and floats per positive in a block's memory: what `_cuda` has room for."""
_MOST_READY = 256
"""Choices that a functor remembers; options that change with every step would pile them up."""


class Functor:
    """A functor that joined the passes on CUDA devices.

    Args:
        name: that it is listed under.
        header: the author's file.
    """

    def __init__(self, name: str, header: Path) -> None:
        self.name, self.header = name, header
        self._ready: dict[Any, Any] = {}

    def on(self, device: torch.device, options: tuple[float, ...], module: ModuleType) -> Any:
        """The binding's `External` for a device, of the narrowest form that takes the options.

        The first time for new options the host waits for the device's answer, unless there is one form only; in a capture,
        which may not wait, the widest is taken.
        """
        key = (module, device, options)
        external, _ = self._ready.get(key, (None, 0))
        if external is None:
            with _lock:
                cubin = compiled_for(self.header, device)
            forms, cuda = cubin.forms[self.name], driver()
            index = self._fitting(forms, cubin.file, device, options)
            form = forms[index or 0] if index is not None else forms[-1]
            kernels = [cuda.kernel(cubin.file, form.symbols[kernel], device) for kernel in ("forward", "close", "backward")]
            handles = [kernel.ptr for kernel in kernels]
            external = module.External(self.name, form.numbers[: NUMBERS - 2], *handles, cuda.launcher)
            if index is not None:
                if len(self._ready) >= _MOST_READY:
                    self._ready.clear()
                self._ready[key] = external, index
        return external

    def form(self, device: torch.device, options: tuple[float, ...], module: ModuleType) -> int | None:
        """The form that `on` found to take the options, counted from the narrowest; None: it has not been asked."""
        return self._ready.get((module, device, options), (None, None))[1]

    def _fitting(self, forms: tuple[Form, ...], file: Path, device: torch.device, options: Sequence[float]) -> int | None:
        """The number of the form, or None in a capture."""
        if len(forms) == 1 or len(options) * 4 != forms[0].numbers[1]:  # the binding refuses what is no option
            return 0
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None
        cuda = driver()
        return 0 if cuda.takes(cuda.kernel(file, forms[0].symbols["fits"], device), options, device) else 1


_lock = threading.RLock()
_compiled: dict[tuple[Path, int], Cubin] = {}  # by header and processor
_archs: dict[torch.device, int] = {}
_outcomes: dict[Path, str] = {}  # why a header did not join, or nothing where it did
_refused: dict[str, str] = {}  # functors, not whole headers
joined: dict[str, Functor] = {}
"""Functors that joined, by name."""


def why_not_loaded(functor: str, header: Path | None) -> str:
    """Make a functor ready for the current CUDA device, and say why that did not work, as `cpu_functors.why_not_loaded`."""
    entry = joined.get(functor)
    if entry is not None:
        is_same = header in (None, entry.header)
        return "" if is_same else f"the functor '{functor}' of {header} has the name of one of {entry.header}"
    module = extension.cuda()
    if module is None:
        return extension.why_not("cuda")
    if functor in module.functors():
        return "" if header is None else f"the functor '{functor}' of {header} has the name of one that is built in"
    candidates = [header] if header is not None else headers_with(functor)
    if not candidates:
        return f"the functor '{functor}' has no form for cuda tensors"
    reasons = [_prepare(path) for path in candidates]
    if functor in joined:
        return ""
    return _refused.get(functor) or next(filter(None, reasons), f"{candidates[0].name} lists no functor '{functor}'")


def compiled_for(header: Path, device: torch.device) -> Cubin:
    """A header's machine code for a device.

    Raises:
        DmlcoreError: the header is refused, or there is no compiler.
    """
    with _lock:
        if device not in _archs:
            _archs[device] = driver().capability(device)
        arch = _archs[device]
        if (header, arch) not in _compiled:
            _compiled[header, arch] = cubin_of(header, arch)
        return _compiled[header, arch]


def facts() -> dict[str, Any]:
    """For `info`: the compiler, what loads its code, which functors joined the passes on CUDA devices, and what failed."""
    compiler = nvrtc.compiler()
    return {
        "compiler": compiler if isinstance(compiler, str) else f"NVRTC {compiler.version}",
        "loader": why_not_there() or "cupy",
        "functors": {name: str(entry.header) for name, entry in joined.items()},
        "failed": {**{str(header): reason for header, reason in _outcomes.items() if reason}, **_refused},
    }


def _prepare(header: Path) -> str:
    if reason := why_not_enabled():
        return reason
    with _lock:
        if header not in _outcomes:
            try:
                device = driver().current()
                cubin = compiled_for(header, device)
                for name, forms in cubin.forms.items():
                    driver().kernel(cubin.file, forms[0].symbols["forward"], device)  # a driver may refuse it, too
                    _join(name, forms, header)
                _outcomes[header] = ""
            except (DmlcoreError, OSError) as error:
                _outcomes[header] = str(error)
                warnings.warn(f"on CUDA the loss of {header.name} runs in plain PyTorch: {error}", stacklevel=2)
        return _outcomes[header]


def _join(name: str, forms: tuple[Form, ...], header: Path) -> None:
    module = extension.cuda()
    assert module is not None
    if name in joined or name in module.functors():
        owner = f"of {joined[name].header}" if name in joined else "that is built in"
        raise PluginError(f"the functor '{name}' has the name of one {owner}")
    if reason := next(filter(None, (_why_refused(form) for form in forms)), ""):
        _refused[name] = f"the functor '{name}' of {header.name} {reason}"
        warnings.warn(f"on CUDA it runs in plain PyTorch: {_refused[name]}", stacklevel=2)
        return
    values, size = forms[0].numbers[:2]
    options = extension.FUNCTORS[name][0] if name in extension.FUNCTORS else tuple(f"option {k}" for k in range(size // 4))
    extension.CUDA_FUNCTORS[name] = (options, values)
    joined[name] = Functor(name, header)


def _why_refused(form: Form) -> str:
    size, memory, (has_table, is_cpu_only) = form.numbers[1], form.numbers[6], form.numbers[-2:]
    if is_cpu_only:
        return "is for the CPU only"
    if has_table:
        return "makes a table, which on CUDA built-in functors can only"
    if size > 4 * _MOST_OPTIONS:
        return f"has {size // 4} options, and there is room for {_MOST_OPTIONS}"
    if memory > _MOST_MEMORY:
        return f"keeps {memory} numbers per positive, and there is room for {_MOST_MEMORY}"
    return ""
