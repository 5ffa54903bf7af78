"""One kernel for several losses of a pass on a CUDA device, in the place of one for each (`csrc/cuda/set_kernels.h`). NVRTC
makes it for the functors of an ensemble, it is kept as those of plugins are, and the driver launches it.

Losses that look at a negative by itself can share one. The others keep their own launches: those with slots, partners, centres
or tables, and losses with windows.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dmlcore.errors import DmlcoreError, PluginError
from dmlcore.kernels.jit import cache, cubins, cuda_functors, headers, nvrtc
from dmlcore.kernels.jit.compiler import first_error
from dmlcore.kernels.jit.sources import FORMAT, hashed, why_not_enabled
from dmlcore.kernels.passes import FunctorCall

MOST = 16
"""Losses that share a kernel, as `kMostOfSet`."""
_KERNELS = ("rows_forward_set", "rows_backward_set")

Shared = tuple[list[bool], int, int, int]
"""Which losses share a kernel, the handles of its forward and backward, and the address that launches them."""


@dataclass(frozen=True)
class Member:
    """A functor of a set.

    Attributes:
        header: the file that lists it.
        struct: its template there.
        wide: the form that its options need.
        numbers: its layout, where it was compiled at run time: its header may have changed since.
    """

    header: str
    struct: str
    wide: bool
    numbers: tuple[int, ...] = ()

    @property
    def type(self) -> str:
        """Its name in C++."""
        return f"dml::{self.struct}<float, {'true' if self.wide else 'false'}>"


_lock = threading.RLock()
_kernels: dict[tuple[tuple[Member, ...], torch.device], tuple[int, int] | None] = {}


def shared_launch(
    calls: Sequence[FunctorCall], functors: Sequence[Any], device: torch.device, module: ModuleType
) -> Shared | None:
    """The kernel that losses of a pass share, compiled on first use; None where fewer than two can, or none is to be had.

    Args:
        calls: the losses.
        functors: as the binding wants them: names, and `External` for those compiled at run time.
        device: where the pass runs.
        module: the binding.
    """
    members = joining(calls, functors, device, module)
    together = tuple(member for member in members if member is not None)
    if len(together) < 2:
        return None
    if (together, device) not in _kernels:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None  # nothing is compiled or loaded in a capture
        with _lock:
            _kernels[together, device] = _made(together, device)
    handles = _kernels[together, device]
    if handles is None:
        return None
    return [member is not None for member in members], *handles, cuda_functors.driver().launcher


def joining(
    calls: Sequence[FunctorCall], functors: Sequence[Any], device: torch.device, module: ModuleType
) -> list[Member | None]:
    """Which losses of a pass could share a kernel; None for the others. Arguments as `shared_launch`."""
    members: list[Member | None] = []
    headers_of: dict[str, str] = {}  # two headers may name their structs alike
    for call, functor in zip(calls, functors, strict=True):
        member = _member(call, functor, device, module)
        if member is not None and headers_of.setdefault(member.struct, member.header) != member.header:
            member = None
        members.append(member if sum(other is not None for other in members) < MOST else None)
    return members


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """A device's time for a call, the shortest of three after one more. The host waits."""
    run()
    times = []
    for _ in range(3):
        before, after = (torch.Event(device=device, enable_timing=True) for _ in range(2))
        before.record()
        run()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) / 1e3)
    return min(times)


def source_key(members: Sequence[Member], arch: int) -> str:
    """A hash of all that the machine code depends on but the compiler.

    Raises:
        ConfigError: everybody can write to one of the headers.
    """
    root = headers.folder()
    ours = headers.shared(root, "cuda")
    facts = [FORMAT, f"sm_{arch}", *nvrtc.FLAGS, headers.fingerprint(root, "cuda")]
    parts = [hashed([*facts, member.type, *map(str, member.numbers)], Path(member.header), ours) for member in members]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def set_cubin(members: Sequence[Member], capability: int) -> tuple[Path, list[str]]:
    """The machine code of a set for a processor, and what forward and backward are called in it. No device is needed.

    Raises:
        DmlcoreError: there is no compiler that knows the processor, or run-time compilation is switched off.
    """
    if reason := why_not_enabled():
        raise DmlcoreError(reason)
    compiler = nvrtc.compiler()
    if isinstance(compiler, str):
        raise DmlcoreError(compiler)
    arch = cubins.nearest(compiler, capability)
    who = hashlib.sha256(f"nvrtc {compiler.version}".encode()).hexdigest()[:8]
    name = f"set-{source_key(members, arch)}-{who}"
    file, _ = cache.cached_or_compiled(f"{name}.cubin", lambda place: _compile(members, arch, compiler, place, name))
    return file, (cache.facts_of(file) or {})["symbols"]


def _member(call: FunctorCall, functor: Any, device: torch.device, module: ModuleType) -> Member | None:
    if call.windows is not None:
        return None
    if isinstance(functor, str):
        form, joins = module.form(functor, list(call.options))
        header, struct = _built_in().get(functor, ("", ""))
        return Member(header, struct, bool(form)) if joins and struct else None
    compiled = cuda_functors.joined[call.functor]
    form, struct = compiled.form(device, call.options, module), cubins.listed(compiled.header).get(call.functor, "")
    if not functor.joins or not struct or form is None:
        return None
    numbers = cuda_functors.compiled_for(compiled.header, device).forms[call.functor][form].numbers
    return Member(str(compiled.header), struct, bool(form), numbers)


@functools.cache
def _built_in() -> dict[str, tuple[str, str]]:
    """Header and template of the built-in functors, by name."""
    files = sorted((headers.folder() / "losses").glob("*.h"))
    return {name: (str(file), struct) for file in files for name, struct in cubins.listed(file).items()}


def _made(members: tuple[Member, ...], device: torch.device) -> tuple[int, int] | None:
    try:
        driver = cuda_functors.driver()
        file, symbols = set_cubin(members, driver.capability(device))
        forward, backward = (driver.kernel(file, symbol, device).ptr for symbol in symbols)
        return forward, backward
    except (DmlcoreError, OSError) as error:
        warnings.warn(f"the losses of a pass keep a launch each: {error}", stacklevel=2)
        return None


def _compile(members: Sequence[Member], arch: int, compiler: nvrtc.Compiler, place: Path, name: str) -> Path:
    began = time.perf_counter()
    types = ", ".join(member.type for member in members)
    includes = dict.fromkeys(member.header for member in members)
    source = '#include "cuda/functors.h"\n' + "".join(f'#include "{header}"\n' for header in includes)
    for member in members:
        for k, number in enumerate(member.numbers):
            source += (
                f'static_assert(dml::RowsLayout<{member.type}>::numbers[{k}] == {number}, "changed since it was loaded");\n'
            )
    try:
        code, symbols = compiler.compile(source, arch, headers.folder(), [f"dml::{kernel}<{types}>" for kernel in _KERNELS])
    except ValueError as error:
        reason = first_error(str(error), Path(members[0].header)) or str(error).strip()[:300]
        raise PluginError(f"the losses {types} do not compile together: {reason}") from None
    facts = {
        "header": members[0].header,
        "functors": [member.struct for member in members],
        "members": [[member.header, member.struct, member.wide, member.numbers] for member in members],
        "level": f"sm_{arch}",
        "compiler": f"NVRTC {compiler.version}",
        "seconds": round(time.perf_counter() - began, 3),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "symbols": symbols,
    }
    with cache.workplace(place) as work:
        (work / "set.cubin").write_bytes(code)
        return cache.add(place, name, work / "set.cubin", facts)
