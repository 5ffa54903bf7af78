"""How a loss's memory grows with the batch: peaks of resident memory in a process of its own.

In that process every block of 64 KB and more comes from the system and goes back at once, so that the high-water mark of a step
is what the step needed.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from dmlcore import plugin_files
from dmlcore.errors import PluginError
from dmlcore.testing.report import NotApplicable

SIZES = (1024, 2048, 4096)  # definitions are streamed from 700 samples on, fused passes store no tiles from 2500 on
MOST = 400.0  # MB: no larger batch is tried beyond
WIDTH = 16
SECONDS = 120


def growth(loss_class: type, options: dict[str, Any]) -> str:
    """A sentence: the order of growth, and the peaks it was read from.

    Raises:
        NotApplicable: the class cannot be found by name in another process, or the system does not tell peaks.
        PluginError: the loss fails in that process.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise NotApplicable("this system does not tell peaks of memory")
    module = sys.modules.get(loss_class.__module__)
    if getattr(module, loss_class.__qualname__, None) is not loss_class:
        raise NotApplicable("the class is not at the top of a module, so no other process can find it")
    file = next((path for _, path, loaded in plugin_files.loaded() if loaded is loss_class), "")
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "peaks.json"
        request = {
            "path": sys.path,
            "module": loss_class.__module__,
            "name": loss_class.__qualname__,
            "file": file,
            "options": options,
            "answer": str(answer),
        }
        variables = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-c", "import sys; from dmlcore.testing import memory; memory.measure(sys.argv[1])"]
        try:
            done = subprocess.run(
                [*command, json.dumps(request)], capture_output=True, text=True, env=variables, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            raise NotApplicable(f"measuring took more than {SECONDS} s") from None
        if done.returncode or not answer.exists():
            raise PluginError(f"it fails in a process of its own: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
        peaks = {int(size): float(peak) for size, peak in json.loads(answer.read_text()).items()}
    return describe(peaks)


def describe(peaks: dict[int, float]) -> str:
    """The order of growth between the last two sizes, in words.

    Args:
        peaks: MB by batch size, ascending.
    """
    sizes = sorted(peaks)
    listed = ", ".join(f"{peaks[size]:.0f} MB at {size}" for size in sizes[-2:])
    if len(sizes) < 2:
        return f"growth with the batch unknown ({listed})"
    before, last = (max(peaks[size], 0.1) for size in sizes[-2:])
    exponent = math.log(last / before) / math.log(sizes[-1] / sizes[-2])
    return f"{'O(B^2)' if exponent > 1.5 else 'O(B)'} ({listed})"


def measure(text: str) -> None:
    """What the process of its own does: writes the peaks by size to the file it is told."""
    request = json.loads(text)
    sys.path[:] = request["path"]
    if request["file"]:
        loss_class = plugin_files.load(request["file"], "loss", "dmlcore.losses.Loss")
    else:
        loss_class = getattr(importlib.import_module(request["module"]), request["name"])
    peaks: dict[int, float] = {}
    for size in SIZES:
        labels = torch.arange(size) // 4
        loss = loss_class(num_classes=size // 4, embedding_dim=WIDTH, **request["options"])
        x = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)
        if not peaks:
            loss(x[:64], labels[:64]).backward()  # what is loaded on first use is no growth
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        loss(x, labels).backward()
        peaks[size] = _resident("VmHWM") - before
        if peaks[size] > MOST / 4:  # four times that is what O(B^2) would take next
            break
    Path(request["answer"]).write_text(json.dumps(peaks))


def _resident(what: str) -> float:
    """MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1024
    return math.nan
