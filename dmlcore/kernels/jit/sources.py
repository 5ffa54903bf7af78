"""Headers of plugins before they are compiled: which may list a functor, whether one may be compiled, and a hash of all that it
includes. What is done with them on each device is in `cpu_functors` and `cuda_functors`."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from dmlcore import plugins
from dmlcore.errors import DmlcoreError, PluginError
from dmlcore.kernels.jit import cache, headers

FORMAT = "1"
"""Of the entries of the cache; another one is another key."""


def why_not_enabled() -> str:
    """The reason why nothing is compiled or loaded at run time, or an empty string."""
    return "DML_JIT=0 switches run-time compilation off" if os.environ.get("DML_JIT", "1") == "0" else ""


def headers_with(functor: str) -> list[Path]:
    """The headers of plugins' hooks that may list a functor."""
    return [path for path in plugins.kernel_headers(plugins.manager()) if _may_list(path, functor)]


def hashed(facts: Sequence[str], header: Path, ours: Sequence[Path]) -> str:
    """A hash of facts, and of a header with all that it includes but `ours`, which a fingerprint stands for.

    Raises:
        ConfigError: everybody can write to one of the author's files.
    """
    digest = hashlib.sha256("\0".join(facts).encode())
    for path in headers.closure(header, [headers.folder()]):
        if path in ours:
            continue
        cache.check_source(path)
        digest.update(f"\0{path.name}\0{len(content := path.read_bytes())}\0".encode() + content)
    return digest.hexdigest()[:16]


def check_header(header: Path, root: Path, kind: str, compiled_with: str) -> None:
    """Raise where a header cannot be compiled, whoever compiles it.

    Args:
        header: the author's file.
        root, kind: the folder of ours, and whether they are for `cpu` or `cuda`.
        compiled_with: the fingerprint of the headers that the extension was built with.
    """
    if reason := why_not_enabled():
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


def _may_list(header: Path, functor: str) -> bool:
    return header.stem == functor or (header.is_file() and f'"{functor}"' in header.read_text(errors="replace"))
