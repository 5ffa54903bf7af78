"""Functors of plugins on the CPU: a header is compiled on first use, kept, loaded, and joins the extension's table,
and so every pass.

A functor is looked for under the class's own `header`, else among the headers that plugins name by `dmlcore_kernel_headers`.
Whatever stands in the way is a reason, given once as a warning. The loss then runs in plain PyTorch.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from dmlcore.errors import DmlcoreError, PluginError
from dmlcore.kernels import extension
from dmlcore.kernels.jit import cache, headers
from dmlcore.kernels.jit.compiler import Compiler, compile_shared, find_compiler
from dmlcore.kernels.jit.sources import FORMAT, check_header, hashed, headers_with, why_not_enabled


@dataclass(frozen=True)
class Loaded:
    """A header whose functors joined the table.

    Attributes:
        header: the author's file.
        file: the shared object.
        level: the instruction set it is for.
        functors: the names it brought.
        compiled: whether this process compiled it, or found it.
        seconds: what that took, loading included.
    """

    header: Path
    file: Path
    level: str
    functors: tuple[str, ...]
    compiled: bool
    seconds: float


_lock = threading.RLock()
_loaded: dict[tuple[str, Path], Loaded] = {}  # by level and header
_failed: dict[tuple[str, Path], str] = {}  # by level, or another device, and header
_libraries: list[ctypes.CDLL] = []  # never unloaded: the table points into them


def why_not_loaded(functor: str, header: Path | None) -> str:
    """Make a functor ready for the CPU, and say why that did not work, or return an empty string.

    Args:
        functor: the name that `functor_call` gives.
        header: the file that lists it; None: a built-in functor, or one of a header that a plugin's hook names.
    """
    if functor in extension.functors():
        owner = None if header is None else header_of(functor)
        if owner == header:
            return ""
        return f"the functor '{functor}' of {header} has the name of one {f'of {owner}' if owner else 'that is built in'}"
    if extension.cpu() is None:
        return extension.why_not("cpu")
    candidates = [header] if header is not None else headers_with(functor)
    if not candidates:
        return f"the extension was built without the functor '{functor}'; install again"
    reasons = [_prepare(path) for path in candidates]
    if functor in extension.functors():
        return ""
    names = ", ".join(joined.functors[0] for joined in _loaded.values() if joined.header in candidates)
    return next(filter(None, reasons), f"{candidates[0].name} lists no functor '{functor}', but {names}")


def header_of(functor: str) -> Path | None:
    """The header that brought a functor at the instruction set in use; None for those that are built in."""
    level = extension.level()
    entries = list(_loaded.items())  # another thread may be adding to them
    return next((entry.header for (at, _), entry in entries if at == level and functor in entry.functors), None)


def build(header: Path) -> Loaded:
    """Compile a header's functors, or find them compiled, and load them.

    Args:
        header: the author's file, `my_loss.h`, with `struct my_loss_functors`.

    Raises:
        PluginError: its text is refused.
        ConfigError: it, or the folder of compiled functors, can be written by others.
        DmlcoreError: there is no extension, no compiler, or run-time compilation is switched off.
    """
    header = header.resolve()
    with _lock:
        level = extension.level()
        entry = _loaded.get((level, header))
        if entry is None:
            try:
                entry = _load(header, level)
            except OSError as error:
                raise PluginError(f"{header.name}: {error.filename or header}: {error.strerror}") from error
            _loaded[level, header] = entry  # before others see its functors, or they would ask whose they are
            _failed.pop((level, header), None)
            extension.refresh()
        return entry


def source_key(header: Path, level: str) -> str:
    """A hash of all that the code depends on but the compiler: the author's files, ours, the flags, the instruction set.

    Raises:
        ConfigError: everybody can write to one of the author's files.
    """
    module, root = extension.cpu(), headers.folder()
    assert module is not None
    facts = [FORMAT, header.stem, level, module.flags(level), module.headers(), platform.machine()]
    return hashed(facts, header, headers.shared(root))


def loaded() -> list[Loaded]:
    """What joined the tables of this process."""
    return list(_loaded.values())


def failed() -> dict[str, str]:
    """Headers that cannot be used at the instruction set in use, and why."""
    return {str(header): reason for (level, header), reason in _failed.items() if level == extension.level()}


def _prepare(header: Path) -> str:
    if reason := why_not_enabled():
        return reason
    with _lock:
        key = (extension.level(), header)
        if key in _loaded or key in _failed:
            return _failed.get(key, "")
        try:
            build(header)
        except DmlcoreError as error:
            _failed[key] = str(error)
            warnings.warn(f"the loss of {header.name} runs in plain PyTorch, many times slower: {error}", stacklevel=2)
        return _failed.get(key, "")


def _load(header: Path, level: str) -> Loaded:
    began = time.perf_counter()
    if (module := extension.cpu()) is None:
        raise DmlcoreError(why_not_enabled() or extension.why_not("cpu"))
    check_header(header, headers.folder(), "cpu", module.headers())
    compiler = find_compiler()
    for attempt in range(2):
        file, compiled = _cached_or_compiled(header, level, compiler)
        try:
            names = _join(file)
        except (OSError, AttributeError) as error:  # of another machine, or of a C library that is gone
            if compiled or attempt:
                raise PluginError(f"the compiled functors of {header.name} cannot be loaded: {error}") from error
            file.unlink(missing_ok=True)
            continue
        return Loaded(header, file, level, names, compiled, time.perf_counter() - began)
    raise AssertionError("the second attempt compiles, and so returns or raises")


def _cached_or_compiled(header: Path, level: str, compiler: Compiler | str) -> tuple[Path, bool]:
    key = source_key(header, level)
    if isinstance(compiler, str):  # what was compiled before will do, whoever did
        file = cache.latest(f"{header.stem}-{key}-*.so")
        if file is None:
            raise DmlcoreError(compiler)
        return file, False
    who = hashlib.sha256(compiler.identity.encode()).hexdigest()[:8]
    name = f"{header.stem}-{key}-{who}.so"
    return cache.cached_or_compiled(name, lambda place: _compile(header, level, compiler, place, who))


def _compile(header: Path, level: str, compiler: Compiler, place: Path, who: str) -> Path:
    module, root = extension.cpu(), headers.folder()
    assert module is not None
    defines = [f"-DDML_LEVEL={level}", f'-DDML_HEADERS="{module.headers()}"']
    began = time.perf_counter()
    while True:
        key = source_key(header, level)
        with cache.workplace(place) as work:
            source, out = work / "functors.cpp", work / "functors.so"
            source.write_text(f'#include "cpu/functors.h"\n#include "{header}"\nDML_FUNCTORS({header.stem})\n')
            compile_shared(compiler, [*module.flags(level).split(), *defines, f"-I{root}"], source, out, header)
            if key != source_key(header, level):
                continue  # saved by an editor meanwhile
            facts = {
                "header": str(header),
                "functors": _names_in(out),
                "level": level,
                "compiler": " ".join(compiler.command),
                "seconds": round(time.perf_counter() - began, 3),
                "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            return cache.add(place, f"{header.stem}-{key}-{who}", out, facts)


def _module_in(file: Path) -> int:
    """Load a shared object; the address of what it hands over."""
    library = ctypes.CDLL(str(file))
    library.dml_functor_module.restype = ctypes.c_void_p
    _libraries.append(library)
    return library.dml_functor_module()


def _names_in(file: Path) -> list[str]:
    module = extension.cpu()
    assert module is not None
    try:
        return module.functor_names(_module_in(file))
    except (OSError, AttributeError) as error:
        raise PluginError(f"the compiled functors cannot be loaded: {error}") from error


def _join(file: Path) -> tuple[str, ...]:
    module = extension.cpu()
    assert module is not None
    address = _module_in(file)
    names = module.functor_names(address)
    for name in names:
        if name in extension.functors():
            owner = header_of(name)
            raise PluginError(f"the functor '{name}' has the name of one {f'of {owner}' if owner else 'that is built in'}")
    try:
        module.register_functors(address)
    except ValueError as error:
        raise PluginError(str(error)) from error
    return tuple(names)
