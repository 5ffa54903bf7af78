"""The host's C++ compiler at run time: which one, what tells it from others, its errors as one line about the author's file."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dmlcore.errors import PluginError

TIMEOUT = 300
"""Seconds after which a compilation is given up."""

_ERROR = re.compile(
    r"^(?P<file>[^\n:]+?)(?::|\()(?P<line>\d+)(?::|\):)(?:\d+:)? (?:fatal |catastrophic )?error: (?P<text>.*)$", re.MULTILINE
)
"""As g++ and clang++ write it, `my_loss.h:12:3: error: ...`, and NVRTC, `my_loss.h(12): error: ...`."""
_NAMESPACE = re.compile(r"\bdml::(?:base::|avx2::|avx512::|cuda::)?")


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler.

    Attributes:
        command: its words, `("ccache", "g++")`.
        identity: what changes with the compiler: the real files behind the words, their sizes and times. Asking for its
            version would start a process, which takes longer than everything else that a cached functor needs.
    """

    command: tuple[str, ...]
    identity: str


def find_compiler() -> Compiler | str:
    """The compiler that `CXX` names, else the first of `g++`, `c++`, `clang++`; or the reason why there is none."""
    named = os.environ.get("CXX", "").strip()
    try:
        words = shlex.split(named)
    except ValueError as error:
        return f"CXX is no command: {error}"
    words = words or [next((name for name in ("g++", "c++", "clang++") if shutil.which(name)), "")]
    if not words[0]:
        return "there is no C++ compiler; install g++ or clang++, or set CXX"
    paths = [shutil.which(word) if not word.startswith("-") else None for word in words]
    if paths[0] is None:
        return f"CXX names the compiler '{words[0]}', which is not found"
    files = [Path(path).resolve() for path in paths if path is not None]
    facts = [f"{file} {(status := file.stat()).st_size} {status.st_mtime_ns}" for file in files]
    return Compiler((paths[0], *words[1:]), "\n".join([*words[1:], *facts]))


def compile_shared(compiler: Compiler, flags: Sequence[str], source: Path, out: Path, header: Path) -> None:
    """Compile one file into a shared object.

    Args:
        compiler, flags: with which.
        source: the file to compile.
        out: what to write.
        header: the author's file, which errors are told about.

    Raises:
        PluginError: the compiler refuses the text, fails, or takes too long; one line.
    """
    command = [*compiler.command, *flags, "-shared", "-o", str(out), str(source)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, env={**os.environ, "LC_ALL": "C"}
        )
    except subprocess.TimeoutExpired:
        raise PluginError(f"{header.name}: compiling took longer than {TIMEOUT} s and was given up") from None
    except OSError as error:
        raise PluginError(f"{header.name}: {compiler.command[0]} cannot be started: {error}") from error
    if done.returncode:
        raise PluginError(first_error(done.stderr, header) or _failure(compiler, done))


def first_error(output: str, header: Path) -> str:
    """The first error of a compiler's output as `my_loss.h:12: ...`, or an empty string where it names none.

    Errors inside the package's headers are the functor's when these find something missing or wrong in it: then the line is
    that of the functor's struct, or of the `list` that names it.
    """
    errors = list(_ERROR.finditer(output))
    if not errors:
        return ""
    text = header.read_text(errors="replace")
    error = next((error for error in errors if _same(error["file"], header)), None)
    if error is not None:
        return f"{header.name}:{error['line']}: {_plain(error['text'])}"
    error = errors[0]
    beside = Path(error["file"])
    if beside.parent == header.parent:
        return f"{beside.name}:{error['line']}: {_plain(error['text'])}"
    for name in re.findall(r"\b(?:dml::)?(?:\w+::)?(\w+)<(?:float|double)", output):
        if struct := re.search(rf"^.*\bstruct\s+{name}\b", text, re.MULTILINE):
            line = text.count("\n", 0, struct.end()) + 1
            return f"{header.name}:{line}: {name} breaks the contract of a functor: {_plain(error['text'])}"
    called = re.search(rf"^{re.escape(str(header))}:(\d+):", output, re.MULTILINE)
    return f"{header.name}:{called[1] if called else 1}: {_plain(error['text'])} ({beside.name}:{error['line']})"


def _same(name: str, header: Path) -> bool:
    return name == str(header) or Path(name) == header


def _plain(text: str) -> str:
    return " ".join(_NAMESPACE.sub("", text).replace("static assertion failed: ", "").split())


def _failure(compiler: Compiler, done: subprocess.CompletedProcess[str]) -> str:
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return f"{Path(compiler.command[-1]).name} failed with status {done.returncode}: {last[:300]}"
