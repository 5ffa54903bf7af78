"""Headers of plugins as machine code for a CUDA processor: compiled by NVRTC, kept beside the shared objects of the CPU.
No device and no driver are needed here; `driver` loads what this makes."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlcore.errors import DmlcoreError, PluginError
from dmlcore.kernels import extension
from dmlcore.kernels.jit import cache, headers, nvrtc
from dmlcore.kernels.jit.compiler import first_error
from dmlcore.kernels.jit.sources import FORMAT, check_header, hashed, why_not_enabled

KERNELS = {"forward": "rows_forward", "close": "rows_close", "backward": "rows_backward", "fits": "rows_fits"}
"""What a pass needs of a functor, as `csrc/cuda` calls it."""
NUMBERS = 12
"""Of `RowsLayout` in `csrc/cuda/functors.h`; the binding takes the first ten."""
_LISTED = re.compile(r"\badd\s*<\s*(?:dml::)?(\w+)\s*>\s*\(\s*\"(\w+)\"\s*\)")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


@dataclass(frozen=True)
class Form:
    """A functor's machine code for `<float, false>` or `<float, true>`.

    Attributes:
        numbers: of `RowsLayout`.
        symbols: what its kernels are called in the code.
    """

    numbers: tuple[int, ...]
    symbols: dict[str, str]


@dataclass(frozen=True)
class Cubin:
    """A header compiled for one processor.

    Attributes:
        header: the author's file.
        file: the machine code.
        arch: as 90 for sm_90.
        forms: of each functor, narrow before wide, or the only one.
        compiled: whether this process compiled it, or found it.
        seconds: what that took.
    """

    header: Path
    file: Path
    arch: int
    forms: dict[str, tuple[Form, ...]]
    compiled: bool
    seconds: float


def cubin_of(header: Path, capability: int) -> Cubin:
    """Compile a header's functors for a processor, or find them compiled. Neither a device nor a driver is needed.

    Args:
        header: the author's file, `my_loss.h`, with `struct my_loss_functors`.
        capability: as 90 for 9.0.

    Raises:
        PluginError: its text is refused.
        ConfigError: it, or the folder of compiled functors, can be written by others.
        DmlcoreError: there is no extension, no compiler that knows the processor, or run-time compilation is switched off.
    """
    began, module = time.perf_counter(), extension.cuda()
    if module is None:
        raise DmlcoreError(why_not_enabled() or extension.why_not("cuda"))
    check_header(header, headers.folder(), "cuda", getattr(module, "headers", ""))  # an older build says nothing
    compiler = nvrtc.compiler()
    if isinstance(compiler, str):  # what was compiled before will do, whoever did
        arch, compiled = capability, False
        file = cache.latest(f"{header.stem}-{source_key(header, arch)}-*.cubin")
        if file is None:
            raise DmlcoreError(compiler)
    else:
        arch = nearest(compiler, capability)
        who = hashlib.sha256(f"nvrtc {compiler.version}".encode()).hexdigest()[:8]
        name = f"{header.stem}-{source_key(header, arch)}-{who}.cubin"
        file, compiled = cache.cached_or_compiled(name, lambda place: _compile(header, arch, compiler, place, who))
    facts = cache.facts_of(file) or {}
    forms = {
        functor: tuple(Form(tuple(form["numbers"]), form["symbols"]) for form in stored)
        for functor, stored in facts.get("kernels", {}).items()
    }
    return Cubin(header, file, arch, forms, compiled, time.perf_counter() - began)


def source_key(header: Path, arch: int) -> str:
    """A hash of all that the machine code depends on but the compiler."""
    root = headers.folder()
    facts = [FORMAT, header.stem, f"sm_{arch}", *nvrtc.FLAGS, headers.fingerprint(root, "cuda")]
    return hashed(facts, header, headers.shared(root, "cuda"))


def nearest(compiler: nvrtc.Compiler, capability: int) -> int:
    """A processor the compiler knows whose code the device runs: of the same generation, and no newer."""
    fitting = [arch for arch in compiler.archs if arch // 10 == capability // 10 and arch <= capability]
    if not fitting:
        raise DmlcoreError(f"NVRTC {compiler.version} does not know the processor sm_{capability}; install a newer PyTorch")
    return max(fitting)


def listed(header: Path) -> dict[str, str]:
    """The templates of a header's functors, by the names that it lists them under."""
    return {name: functor for functor, name in _LISTED.findall(_COMMENT.sub("", header.read_text(errors="replace")))}


def _compile(header: Path, arch: int, compiler: nvrtc.Compiler, place: Path, who: str) -> Path:
    root, began = headers.folder(), time.perf_counter()
    while True:
        key = source_key(header, arch)
        functors = listed(header)
        if not functors:
            raise PluginError(f'{header.name}: list() must say `add<Functor>("name")` as it stands, for CUDA to find it')
        names = [_names(functor, wide) for functor in functors.values() for wide in ("false", "true")]
        source = f'#include "cuda/functors.h"\n#include "{header}"\n'
        try:
            code, symbols = compiler.compile(source, arch, root, [name for form in names for name in form.values()])
        except ValueError as error:
            raise PluginError(first_error(str(error), header) or f"{header.name}: {str(error).strip()[:300]}") from None
        if key != source_key(header, arch):
            continue  # saved by an editor meanwhile
        count = len(names[0])
        forms = [_form(dict(zip(names[0], symbols[k : k + count], strict=True))) for k in range(0, len(symbols), count)]
        pairs = zip(forms[::2], forms[1::2], strict=True)  # equal where the functor has one form
        kernels = {
            name: [first] if first == wide else [first, wide] for name, (first, wide) in zip(functors, pairs, strict=True)
        }
        facts = {
            "header": str(header),
            "functors": list(functors),
            "level": f"sm_{arch}",
            "compiler": f"NVRTC {compiler.version}",
            "seconds": round(time.perf_counter() - began, 3),
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "kernels": kernels,
        }
        with cache.workplace(place) as work:
            (work / "functors.cubin").write_bytes(code)
            return cache.add(place, f"{header.stem}-{key}-{who}", work / "functors.cubin", facts)


def _names(functor: str, wide: str) -> dict[str, str]:
    """C++ names of all that is asked for: the kernels, and one whose parameters are the layout."""
    form = f"dml::{functor}<float, {wide}>"
    numbers = ", ".join(f"dml::RowsLayout<{form}>::numbers[{k}]" for k in range(NUMBERS))
    return {**{kernel: f"dml::{name}<{form}>" for kernel, name in KERNELS.items()}, "told": f"dml::rows_told<{numbers}>"}


def _form(symbols: dict[str, str]) -> dict[str, Any]:
    numbers = [int(number) for number in re.findall(r"Li(\d+)E", symbols.pop("told"))]  # by the rules all compilers mangle by
    assert len(numbers) == NUMBERS
    return {"numbers": numbers, "symbols": symbols}
