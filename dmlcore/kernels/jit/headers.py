"""The headers that functors are compiled against: where they lie, what a file includes, and their fingerprint. Read by setup.py
too, as a file of its own, so nothing but the standard library is imported here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"\n]+)[>"]', re.MULTILINE)


def folder() -> Path:
    """Where `#include "dml/contract.h"` is looked up: in the package where it is installed, else in the sources."""
    package = Path(__file__).parents[2]
    return package / "include" if (package / "include" / "dml").is_dir() else package.parent / "csrc"


def shared(root: Path, kind: str = "cpu") -> list[Path]:
    """The headers that the extension and functors compiled at run time have in common, in the folder of `dml` and `cpu`, or
    for `cuda`."""
    return closure(root / kind / "functors.h", [root])


def fingerprint(root: Path, kind: str = "cpu") -> str:
    """The hash of the shared headers, names and contents."""
    digest = hashlib.sha256()
    for path in shared(root, kind):
        digest.update(f"{path.name}\0{len(content := path.read_bytes())}\0".encode() + content)
    return digest.hexdigest()[:16]


def closure(header: Path, folders: Sequence[Path]) -> list[Path]:
    """A header and all files that it includes, directly or through others; those found nowhere are the compiler's own.

    Args:
        header: the file to begin with.
        folders: looked up behind the including file's own folder.
    """
    files: list[Path] = []
    waiting = [header.resolve()]
    while waiting:
        path = waiting.pop()
        if path in files:
            continue
        files.append(path)
        for name in _INCLUDE.findall(path.read_text(errors="replace")):
            near = (place / name for place in (path.parent, *folders))
            waiting += [file.resolve() for file in near if file.is_file()][:1]
    return sorted(files)
