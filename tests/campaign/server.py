"""The process that has everything imported and forks for every command, run as a script by `process.py`.

A request is one line of JSON on stdin, the answer one on stdout. Nothing here may start a thread: it would not survive a fork.
"""

from __future__ import annotations

import ctypes
import gc
import io
import json
import os
import resource
import signal
import sys
import time
import traceback
from typing import Any


def _child(request: dict[str, Any], shim: ctypes.CDLL | None) -> int:
    os.chdir(request["folder"])
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, request["out"], 0), (2, request["err"], 0)):
        handle = os.open(name, flags or os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, "r", closefd=False), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(
        io.FileIO(1, "w", closefd=False), encoding="utf-8", errors="backslashreplace", write_through=True
    )
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), encoding="utf-8", errors="backslashreplace", write_through=True
    )
    os.environ.update(request["environment"])
    if request["memory"]:
        resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) if request["log"] else -1
    sys.argv = ["dmlcore", *request["words"]]
    if shim is not None:
        shim.campaign_arm(request["root"].encode(), request["fault"], request["point"], log)
    try:
        if request["call"]:
            module, name = request["call"].split(":")
            __import__(module)
            status = getattr(sys.modules[module], name)(*request["words"]) or 0
        else:
            from dmlcore.cli import main

            status = main(request["words"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    if shim is not None:
        shim.campaign_disarm()
    return int(status)


def _answer(request: dict[str, Any], shim: ctypes.CDLL | None) -> dict[str, Any]:
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            status = _child(request, shim)
        finally:
            os._exit(status & 255)
    is_late = False
    while True:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > request["seconds"]:
            is_late = True
            os.kill(pid, signal.SIGKILL)
            _, code = os.waitpid(pid, 0)
            break
        time.sleep(0.002)
    try:  # what the command started in turn
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass
    return {"status": os.waitstatus_to_exitcode(code), "is_late": is_late, "took": time.monotonic() - began}


def main() -> None:
    """Import what commands import, then answer until stdin ends."""
    import torch

    torch.set_num_threads(1)
    from dmlcore import plugins
    from dmlcore.reports import pictures

    if pictures.can_draw():  # fonts are looked for when the first picture is drawn
        figure, axes = pictures.pyplot().subplots()
        axes.plot([1, 2], label="a")
        axes.legend()
        figure.savefig(os.devnull, format="svg")
        pictures.pyplot().close(figure)
    plugins.manager()
    shim = ctypes.CDLL(None) if "campaign" in os.environ.get("LD_PRELOAD", "") else None
    if shim is not None:
        shim.campaign_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int]
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    print(json.dumps({"is_ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), shim)), file=answers, flush=True)


if __name__ == "__main__":
    main()
