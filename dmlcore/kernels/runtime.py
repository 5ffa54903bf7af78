"""Functors of plugins: a header is compiled on first use, kept, loaded, and joins the extension's table, and so every pass.

A functor is looked for under the class's own `header`, else among the headers that plugins name by `dmlcore_kernel_headers`.
Whatever stands in the way is a reason, given once as a warning; the loss then runs in plain PyTorch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlcore.errors import DmlcoreError, PluginError
from dmlcore.kernels import extension, headers, store
from dmlcore.kernels.compiling import Compiler, compile_shared, find_compiler

FORMAT = "1"
"""Of the entries of the store; another one is another key."""


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


def why_switched_off() -> str:
    """The reason why nothing is compiled or loaded at run time, or an empty string."""
    return "DML_JIT=0 switches run-time compilation off" if os.environ.get("DML_JIT", "1") == "0" else ""


def why_missing(functor: str, header: Path | None, device: str = "cpu") -> str:
    """Make a functor ready, and say why that did not work, or return an empty string.

    Args:
        functor: the name that `functor_call` gives.
        header: the file that lists it; None: a built-in functor, or one of a header that a plugin's hook names.
        device: `cpu` or `cuda`.
    """
    if device == "cuda":
        from dmlcore.kernels import cuda_functors

        return cuda_functors.why_missing(functor, header)
    if device != "cpu":
        return f"the functor '{functor}' has no form for {device} tensors"
    if functor in extension.functors():
        owner = None if header is None else header_of(functor)
        if owner == header:
            return ""
        return f"the functor '{functor}' of {header} has the name of one {f'of {owner}' if owner else 'that is built in'}"
    if extension.cpu() is None:
        return extension.why_not("cpu")
    candidates = [header] if header is not None else offered(functor)
    if not candidates:
        return f"the extension was built without the functor '{functor}'; install again"
    reasons = [_prepare(path) for path in candidates]
    if functor in extension.functors():
        return ""
    names = ", ".join(one.functors[0] for one in _loaded.values() if one.header in candidates)
    return next(filter(None, reasons), f"{candidates[0].name} lists no functor '{functor}', but {names}")


def header_of(functor: str) -> Path | None:
    """The header that brought a functor at the instruction set in use; None for those that are built in."""
    level = extension.level()
    joined = list(_loaded.items())  # another thread may be adding to them
    return next((one.header for (at, _), one in joined if at == level and functor in one.functors), None)


def offered(functor: str) -> list[Path]:
    """The headers of plugins' hooks that may list a functor."""
    from dmlcore import plugins

    return [path for path in plugins.kernel_headers(plugins.manager()) if _may_list(path, functor)]


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
        known = _loaded.get((level, header))
        if known is None:
            try:
                known = _load(header, level)
            except OSError as error:
                raise PluginError(f"{header.name}: {error.filename or header}: {error.strerror}") from error
            _loaded[level, header] = known  # before others see its functors, or they would ask whose they are
            _failed.pop((level, header), None)
            extension.look_again()
        return known


def source_key(header: Path, level: str) -> str:
    """A hash of all that the code depends on but the compiler: the author's files, ours, the flags, the instruction set.

    Raises:
        ConfigError: everybody can write to one of the author's files.
    """
    module, root = extension.cpu(), headers.folder()
    assert module is not None
    facts = [FORMAT, header.stem, level, module.flags(level), module.headers(), platform.machine()]
    return hashed(facts, header, headers.shared(root))


def hashed(facts: Sequence[str], header: Path, ours: Sequence[Path]) -> str:
    """A hash of facts, and of a header with all that it includes but `ours`, which a fingerprint stands for.

    Raises:
        ConfigError: everybody can write to one of the author's files.
    """
    found = hashlib.sha256("\0".join(facts).encode())
    for path in headers.closure(header, [headers.folder()]):
        if path in ours:
            continue
        store.check_source(path)
        found.update(f"\0{path.name}\0{len(content := path.read_bytes())}\0".encode() + content)
    return found.hexdigest()[:16]


def loaded() -> list[Loaded]:
    """What joined the tables of this process."""
    return list(_loaded.values())


def failed() -> dict[str, str]:
    """Headers that cannot be used at the instruction set in use, and why."""
    return {str(header): reason for (level, header), reason in _failed.items() if level == extension.level()}


def facts() -> dict[str, Any]:
    """For `info`: whether functors are compiled at run time, by whom, where they are kept, and which joined."""
    from dmlcore.kernels import cuda_functors

    compiler = find_compiler()
    try:
        place = str(store.folder())
    except DmlcoreError as error:
        place = str(error)
    return {
        "enabled": not why_switched_off(),
        "compiler": " ".join(compiler.command) if isinstance(compiler, Compiler) else compiler,
        "folder": place,
        "functors": {name: str(one.header) for one in _loaded.values() for name in one.functors},
        "failed": failed(),
        "cuda": cuda_functors.facts(),
    }


def _may_list(header: Path, functor: str) -> bool:
    return header.stem == functor or (header.is_file() and f'"{functor}"' in header.read_text(errors="replace"))


def _prepare(header: Path) -> str:
    if reason := why_switched_off():
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
        raise DmlcoreError(why_switched_off() or extension.why_not("cpu"))
    check(header, headers.folder(), "cpu", module.headers())
    compiler = find_compiler()
    for attempt in range(2):
        file, compiled = _found_or_made(header, level, compiler)
        try:
            names = _join(file)
        except (OSError, AttributeError) as error:  # of another machine, or of a C library that is gone
            if compiled or attempt:
                raise PluginError(f"the compiled functors of {header.name} cannot be loaded: {error}") from error
            file.unlink(missing_ok=True)
            continue
        return Loaded(header, file, level, names, compiled, time.perf_counter() - began)
    raise AssertionError("the second attempt compiles, and so returns or raises")


def check(header: Path, root: Path, kind: str, compiled_with: str) -> None:
    """Raise where a header cannot be compiled, whoever compiles it.

    Args:
        header: the author's file.
        root, kind: the folder of ours, and whether they are for `cpu` or `cuda`.
        compiled_with: the fingerprint of the headers that the extension was built with.
    """
    if reason := why_switched_off():
        raise DmlcoreError(reason)
    if not header.is_file():
        raise PluginError(f"there is no header {header}")
    if not header.stem.isidentifier() or not header.stem.isascii():
        raise PluginError(f"{header.name}: the name of a header must be one of C++, as in my_loss.h")
    if not str(header).isprintable() or '"' in str(header) or "\\" in str(header):
        raise PluginError(f"{header!s:.200}: a path with such characters cannot be included; move the header")
    if not re.search(rf"\bstruct\s+{header.stem}_functors\b", header.read_text(errors="replace")):
        raise PluginError(f"{header.name} must end with `struct {header.stem}_functors`, whose list() names its functors")
    if not (root / kind / "functors.h").is_file():
        raise DmlcoreError(f"the headers that functors are compiled against are not in {root}; install again")
    if headers.fingerprint(root, kind) != compiled_with:
        raise DmlcoreError(f"the headers in {root} are not those the extension was built with; install again")


def _found_or_made(header: Path, level: str, compiler: Compiler | str) -> tuple[Path, bool]:
    key = source_key(header, level)
    if isinstance(compiler, str):  # what was compiled before will do, whoever did
        kept = store.latest(f"{header.stem}-{key}-*.so")
        if kept is None:
            raise DmlcoreError(compiler)
        return kept, False
    who = hashlib.sha256(compiler.identity.encode()).hexdigest()[:8]
    return store.found_or_made(f"{header.stem}-{key}-{who}.so", lambda place: _made(header, level, compiler, place, who))


def _made(header: Path, level: str, compiler: Compiler, place: Path, who: str) -> Path:
    module, root = extension.cpu(), headers.folder()
    assert module is not None
    defines = [f"-DDML_LEVEL={level}", f'-DDML_HEADERS="{module.headers()}"']
    began = time.perf_counter()
    while True:
        key = source_key(header, level)
        with store.workplace(place) as work:
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
            return store.keep(place, f"{header.stem}-{key}-{who}", out, facts)


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
