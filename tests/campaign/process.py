"""Running commands of dmlcore: by forks of a warm process, with a fault at a file operation, or as real processes."""

from __future__ import annotations

import atexit
import enum
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECONDS = 60.0  # the most that a tiny command may take
_MOST_TEXT = 200_000  # characters kept of what a command prints


class Fault(enum.IntEnum):
    """What the shim does at one operation; the numbers are those of shim.cpp."""

    NONE = 0
    KILL = 1
    """kill -9; a write does its first half before."""
    FULL = 2
    """The disk is full from here on: writes, new files and folders fail."""
    BROKEN = 3
    """This operation fails with EIO."""
    INTERRUPT = 4
    INTERRUPT_TWICE = 5
    """One interrupt here, and one at the next operation."""
    TERMINATE = 6
    HANG_UP = 7


@dataclass(frozen=True)
class Operation:
    """One line of the shim's log.

    Attributes:
        name: of the operation.
        takes_space: whether a full disk refuses it.
        path: of the file, or the number of its handle.
    """

    name: str
    takes_space: bool
    path: str


@dataclass(frozen=True)
class Said:
    """How a command ended.

    Attributes:
        status: of the exit; negative is the number of a signal.
        out, err: what it printed.
        is_late: it was killed because it took too long.
        operations: on files, where a log was asked for.
    """

    status: int
    out: str
    err: str
    is_late: bool = False
    operations: tuple[Operation, ...] = ()


@cache
def home() -> Path:
    """A home folder for all commands, so that they neither see nor change anything of the user's."""
    folder = tempfile.TemporaryDirectory(prefix="campaign-home-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def environment(**further: str) -> dict[str, str]:
    """The environment of every command: one thread, built-in plugins only, and no settings of the user."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("DML_", "DMLCORE_", "LD_PRELOAD"))}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH", "")]))
    homes = dict.fromkeys(("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(home()))
    quiet = {"DMLCORE_PLUGINS": "", "MPLBACKEND": "agg", "PYTHONPATH": path, "PYTHONHASHSEED": "0", "NO_COLOR": "1"}
    return {**own, **threads, **homes, **quiet, **further}


def compile_shim(folder: Path) -> Path:
    """The library of faults, compiled into a folder."""
    library = folder / "campaign_shim.so"
    source = HERE / "shim.cpp"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        command = [
            os.environ.get("CXX", "g++"),
            "-std=c++20",
            "-O1",
            "-shared",
            "-fPIC",
            str(source),
            "-o",
            str(library),
            "-ldl",
        ]
        subprocess.run(command, check=True, capture_output=True, text=True)
    return library


class Warm:
    """A process that has dmlcore imported and forks for every command.

    Args:
        folder: for the library and the texts of commands.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._texts = Path(tempfile.mkdtemp(prefix="texts-", dir=folder))
        preload = str(compile_shim(folder))
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(HERE / "server.py")],  # its folder is no place to import from
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(LD_PRELOAD=preload, DML_CACHE=str(folder / "cache")),
            text=True,
            cwd=folder,
            start_new_session=True,  # an interrupt at the keyboard is the campaign's
        )
        self._answer()

    def run(
        self,
        words: Sequence[str],
        folder: Path,
        fault: Fault = Fault.NONE,
        point: int = 0,
        *,
        logs: bool = False,
        seconds: float = SECONDS,
        memory: int = 0,
        call: str = "",
        **variables: str,
    ) -> Said:
        """Run `dmlcore WORDS`.

        Args:
            words: of the command.
            folder: where it runs; operations on files below are counted.
            fault: what happens at `point`.
            point: the operation, from 1.
            logs: return all operations.
            seconds: before it is killed.
            memory: the most bytes of address space; 0 for any.
            call: `module:function` to call with the words, instead of dmlcore.
            variables: of the environment.
        """
        texts = {name: str(self._texts / name) for name in ("out", "err")}
        log = str(self._texts / "log") if logs else ""
        request = {"words": list(words), "folder": str(folder), "root": str(folder), "fault": int(fault), "point": point}
        request |= {**texts, "log": log, "seconds": seconds, "memory": memory, "environment": variables, "call": call}
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._answer()
        out, err = (_text(Path(path)) for path in texts.values())
        operations = tuple(map(_operation, Path(log).read_text(errors="replace").splitlines())) if logs else ()
        return Said(answer["status"], out, err, answer["is_late"], operations)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that runs the commands has ended")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def run_real(words: Sequence[str], folder: Path, kill_after: float | None = None, seconds: float = SECONDS) -> Said:
    """Run `dmlcore WORDS` as a process of its own.

    Args:
        words: of the command.
        folder: where.
        kill_after: seconds until kill -9, or None.
        seconds: before it counts as too late.
    """
    command = [sys.executable, "-m", "dmlcore", *words]
    with subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        is_late = False
        try:
            out, err = process.communicate(timeout=kill_after if kill_after is not None else seconds)
        except subprocess.TimeoutExpired:
            is_late = kill_after is None
            os.kill(process.pid, signal.SIGKILL)
            out, err = process.communicate()
    return Said(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"), is_late)


def _text(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return file.read(_MOST_TEXT)


def _operation(line: str) -> Operation:
    _, name, takes_space, path = line.split(" ", 3)
    return Operation(name, takes_space == "1", path)
